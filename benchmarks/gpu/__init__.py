"""Tests and benchmarks that need a GPU: `make gpu` writes benchmarks/RESULTS-gpu.md."""
