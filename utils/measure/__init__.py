"""Measurements: features, their quality, accuracies, and the selection of results."""
