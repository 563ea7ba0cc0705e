"""Reports of finished and unfinished runs, from their folders: python -m utils.report."""
