"""Devices, versions, speed, the console."""
