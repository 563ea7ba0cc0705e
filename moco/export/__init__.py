"""A run's network in the formats of others: python -m moco.export."""
