"""Tests of devices, library versions, speed and console output."""
