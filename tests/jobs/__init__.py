"""Tests of jobs of several processes: launching, rendezvous, shared steps and shutdown."""
