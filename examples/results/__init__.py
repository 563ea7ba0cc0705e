"""Comparison of methods: runs the study of a plan and writes its page of results."""
