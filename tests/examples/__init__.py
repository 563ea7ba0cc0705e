"""README, its pages and the examples."""
