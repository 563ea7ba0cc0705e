"""What tests that need a CUDA device have in common."""

import os

import pytest
import torch

# cuBLAS looks at it once, at its first call in a process: here, before any test; --deterministic needs it.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
os.environ.setdefault(WORKSPACE, ":4096:8")
NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Said once a process, of what is no fault: the debug mode's newness, and a backward pass that begins with cuBLAS.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
    pytest.mark.filterwarnings(r"ignore:::torch\._|triton"),  # a compiler's advice
]
