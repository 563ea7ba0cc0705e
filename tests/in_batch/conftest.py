"""Fixtures of the in-batch tests."""

import pytest
import torch

from moco.losses import blocks
from tests.in_batch import C, D, N
from tests.tiny import unit_vectors


@pytest.fixture(params=[40, 2**18], ids=["in blocks", "whole"])
def block(request, monkeypatch):
    """Run each test with one or two anchors at a time, and with all anchors at once."""
    monkeypatch.setitem(blocks.MAX_LOGITS_PER_BLOCK, "cpu", request.param)


@pytest.fixture(params=range(3))
def batch(request) -> dict:
    torch.manual_seed(request.param)
    return {"views": unit_vectors(N, 2, D, dim=2).requires_grad_(), "labels": torch.randint(0, C, (N,))}
