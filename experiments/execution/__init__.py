"""A grid of runs, from its options to its rows, here or on Ray."""
