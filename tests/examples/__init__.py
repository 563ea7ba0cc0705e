"""The README, the pages in docs/ and the examples."""
