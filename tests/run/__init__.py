"""Tests of a run: folder, checkpoints, log, refused input."""
