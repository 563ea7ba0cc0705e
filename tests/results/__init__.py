"""Tests of the study in examples/results: plan, trials, page."""
