"""Measure start, memory, steps and checkpoints with many classes: `python -m benchmarks.many_classes --help`."""
