"""Predictions of a trained classifier: python -m imagenet_inat.predict."""
