"""Marks and environment of tests that need a CUDA device."""

import os

import pytest
import torch

# --deterministic needs this variable. cuBLAS reads it at its first call in a process, so it is set before any test.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
os.environ.setdefault(WORKSPACE, ":4096:8")
NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Harmless warnings, given once per process: a new debug mode, and a backward pass that starts with cuBLAS.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
    pytest.mark.filterwarnings(r"ignore:::torch\._|triton"),  # advice from torch.compile
]
