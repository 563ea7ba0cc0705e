"""One file per idea, named after it; the oracle is oracle.py."""
