"""Tests of the targets: files, centroids, assignment, generation and quality."""
