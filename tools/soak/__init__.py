"""Runs that are broken on purpose, for hours if wanted; python -m tools.soak is the command."""
