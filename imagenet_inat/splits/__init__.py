"""Download, check or create split lists: python -m imagenet_inat.splits."""
