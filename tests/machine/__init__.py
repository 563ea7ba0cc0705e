"""Processes, devices, versions, speed."""
