"""Tests that need a GPU, and tests of code for GPUs that run without one."""
