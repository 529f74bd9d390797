"""Experiments: one file per experiment, thin over the shared parts beside them."""
