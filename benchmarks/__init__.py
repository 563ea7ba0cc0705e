"""Benchmarks: the time of each part compared with a lower bound (floor) from the same run. `make bench` runs them."""
