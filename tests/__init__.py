"""The tests: a room for each of the project's; oracle.py is the method in loops."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
