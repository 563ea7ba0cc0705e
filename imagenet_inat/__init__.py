"""The long-tailed data sets: registry, split files, samplers."""
