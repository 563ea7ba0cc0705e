"""The method: losses, positives, the step, what its flags change."""
