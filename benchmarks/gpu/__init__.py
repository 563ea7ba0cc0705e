"""What only a GPU can show, in one command: `make gpu` writes benchmarks/RESULTS-gpu.md."""
