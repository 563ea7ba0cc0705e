"""Split lists: file format, known lists, long-tailed class sizes."""
