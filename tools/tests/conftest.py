"""Fixtures of tests/conftest.py that the tests of the tools use."""

from tests.conftest import data_flags, digits_root, fixed_seed, flags, tsc_run  # noqa: F401
