"""How start, memory, steps and checkpoints grow with the number of classes: `python -m benchmarks.many_classes`."""
