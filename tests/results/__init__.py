"""The study of examples/results: its plan, its trials, its page."""
