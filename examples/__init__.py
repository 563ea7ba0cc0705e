"""Example programs: the demo, baselines, figures and the comparison of methods."""
