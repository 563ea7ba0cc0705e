"""A real Slurm, on this machine: `make test-cluster`."""
