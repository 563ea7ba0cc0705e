"""Second stage: classifiers on features."""
