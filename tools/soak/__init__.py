"""Stress tests of runs. The command is `python -m tools.soak`."""
