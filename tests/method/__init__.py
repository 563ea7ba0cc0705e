"""Tests of the method: losses, positives, training steps, ablation flags."""
