"""Runs that are broken on purpose, for hours if wanted; tests/faults.py is the command."""
