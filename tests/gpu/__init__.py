"""GPUs: what only they can show, and what a machine without one can tell."""
