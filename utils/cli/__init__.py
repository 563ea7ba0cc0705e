"""The command line: the parser, recipes, and what a flag declares."""
