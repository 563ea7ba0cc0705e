"""Tests of reports and trials tables made from run folders."""
