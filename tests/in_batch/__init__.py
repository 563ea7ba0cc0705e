"""Tests of the in-batch contrast: shared constants and helpers."""

import pytest
import torch

from tests.tiny import unit_vectors

N, D, C = 7, 4, 3  # images, feature dimension, targets
BOTH_DENOMINATORS = pytest.mark.parametrize("unbiased", [False, True], ids=["all in the denominator", "unbiased"])


def make_target_args(repeat: int = 3) -> dict:
    return {"targets": unit_vectors(C, D).requires_grad_(), "target_class": torch.randperm(C), "target_repeat": repeat}


def seeded_generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(loss: torch.Tensor, options: dict) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [x for x in options.values() if getattr(x, "requires_grad", False)]))


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
