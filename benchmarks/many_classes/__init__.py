"""Benchmarks with many classes: start, steps, memory, checkpoints. Help: `python -m benchmarks.many_classes --help`."""
