"""The targets of TSC: their files, how they are made and judged, and which class has which."""
