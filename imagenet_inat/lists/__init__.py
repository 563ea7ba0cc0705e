"""Split lists: their format, the known ones, the shapes of a tail."""
