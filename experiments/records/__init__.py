"""What a run is, and what is written about it: options, names, rows, counts, files."""
