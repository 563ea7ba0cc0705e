"""Small models of all methods with a classifier in stage 1, and their batches: C = 3, D = 4, float64."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from moco.classifier import add_classifier
from tests.one_stage import test_bcl, test_paco
from tests.tiny import tiny_batch, tiny_model


def joint_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = tiny_model(targeted=True)
    add_classifier(model, torch.tensor([6, 2, 1]), 1.0, kind)
    return model.double()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear classifier": partial(joint_model, "linear"),
    "classifier of targets": partial(joint_model, "targets"),
    "PaCo": partial(test_paco.build, momentum_keys=True),
    "GPaCo": partial(test_paco.build, momentum_keys=False),
    "BCL": test_bcl.build,
}


def batch_for(method: str, size: int = 4) -> tuple[Tensor, ...]:
    """Return the views and labels of `size` images, for a method of MODELS."""
    return test_bcl.batch(size) if method == "BCL" else tiny_batch(size)
