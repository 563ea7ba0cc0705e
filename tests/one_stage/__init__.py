"""Tests of methods that train a classifier and a contrastive loss together."""
