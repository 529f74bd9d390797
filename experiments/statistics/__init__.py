"""Which differences between configurations are significant, and how large they may be."""
