"""What each part costs beside its floor, measured in the same run. `make bench` writes RESULTS.md."""
