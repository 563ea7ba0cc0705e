"""Fixtures of the in-batch tests."""

import pytest
import torch

from moco.losses import blocks
from tests.in_batch import C, D, N
from tests.tiny import unit_vectors


@pytest.fixture(params=[(40, 40), (40, 2**24), (2**18, 2**24)], ids=["recomputed blocks", "blocks", "whole"])
def block(request, monkeypatch):
    """Run each test with blocks of one or two anchors, computed again in the backward pass or stored, and in one."""
    per_block, stored = request.param
    monkeypatch.setitem(blocks.MAX_LOGITS_PER_BLOCK, "cpu", per_block)
    monkeypatch.setattr(blocks, "MAX_STORED_LOGITS", stored)


@pytest.fixture(params=range(3))
def batch(request) -> dict:
    torch.manual_seed(request.param)
    return {"views": unit_vectors(N, 2, D, dim=2).requires_grad_(), "labels": torch.randint(0, C, (N,))}
