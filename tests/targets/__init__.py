"""The targets: files, centroids, assignment, making and judging them."""
