"""Runs to try and to read."""
