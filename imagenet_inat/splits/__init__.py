"""Split lists: fetch the published ones, check a data set, cut a long tail: python -m imagenet_inat.splits."""
