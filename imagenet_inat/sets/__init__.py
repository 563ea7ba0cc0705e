"""Small data sets in their packages' own files, and the long tails cut out of them at first use."""
