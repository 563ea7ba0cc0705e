"""What runs left behind, read from their folders alone: python -m utils.report."""
