"""From a run and data to trained weights."""
