"""Class targets of TSC: files, generation, quality measures, and assignment to classes."""
