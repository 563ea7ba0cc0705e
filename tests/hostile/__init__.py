"""Malicious or damaged files and names."""
