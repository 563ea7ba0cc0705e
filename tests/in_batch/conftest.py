"""What the tests of the room share: all run with some anchors at a time, and with all at once."""

import pytest
import torch

from moco.losses import blocks
from tests.in_batch import C, D, N
from tests.tiny import unit


@pytest.fixture(params=[40, 2**18], ids=["in blocks", "whole"])
def block(request, monkeypatch):
    """One or two anchors at a time, and all at once."""
    monkeypatch.setitem(blocks.LOGITS, "cpu", request.param)


@pytest.fixture(params=range(3))
def batch(request) -> dict:
    torch.manual_seed(request.param)
    return {"views": unit(N, 2, D, dim=2).requires_grad_(), "labels": torch.randint(0, C, (N,))}
