"""The tests, in the same folders as the code. `oracle.py` contains the method as plain loops."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
