"""A run: its folder, checkpoints, log, and what it refuses."""
