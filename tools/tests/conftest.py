"""The fixtures of tests/conftest.py that tests of the tools use."""

from tests.conftest import data_flags, digits_root, fixed_seed, flags, tsc_run  # noqa: F401
