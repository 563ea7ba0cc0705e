"""Small data sets in their original files, from which long-tailed lists are generated at first use."""
