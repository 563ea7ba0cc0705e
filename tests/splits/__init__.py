"""Tests of image views, computed on the host and on the device."""
