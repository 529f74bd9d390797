"""Shared parts of the speed benchmarks: cases, providers, timing, report."""
