"""Benchmarks that need a GPU. `make gpu` runs them and the GPU tests, and writes benchmarks/RESULTS-gpu.md."""
