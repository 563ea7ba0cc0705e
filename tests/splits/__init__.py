"""Tests of imagenet_inat.splits: make, verify, recipes and names of classes."""
