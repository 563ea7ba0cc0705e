"""Tests of metrics, evaluation, feature measures and epoch selection."""
