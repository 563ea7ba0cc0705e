"""Stage 2's network: a frozen encoder and a classifier `fc` on it, and the proof that nothing else moved.

Adding a classifier is one row of HEADS, and a function: one that makes it, or one in fitted.py that fits it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import skip_init

from moco.encoders import get_encoder
from moco.heads import fitted
from moco.heads.classifiers import Float32Linear
from moco.heads.fitted import Candidate, Problem
from moco.pretrained import load_encoder


class Head(NamedTuple):
    """A classifier on the d features of an encoder, for C classes: trained on random views, or fitted to features.

    help: what it is, for --help.
    make: make(d, counts) is the module that becomes `fc`, (N, d) -> (N, C). counts: (C,) training images of each class.
    loss: loss(logits, labels, epoch) of (N, C) and (N,), a scalar; epochs are counted from 0.
    fit: instead of both, makes the candidates that the validation split chooses from.
    samplings, adjustments: what --sampling and --logit-adjustment may be, the first by default.
    needs_targets: whether it is for a checkpoint of TSC alone.
    """

    help: str
    make: Callable[[int, np.ndarray], nn.Module] | None = None
    loss: Callable[[Tensor, Tensor, int], Tensor] = lambda logits, labels, epoch: cross_entropy(logits, labels)
    fit: Callable[[Problem], Iterator[Candidate]] | None = None
    samplings: tuple[str, ...] = ("class-balanced", "instance")
    adjustments: tuple[str, ...] = ("off",)
    needs_targets: bool = False


def _linear(width: int, counts: np.ndarray) -> nn.Module:
    """The release's probe: weight N(0, 0.01), bias 0."""
    fc = skip_init(Float32Linear, width, len(counts))
    nn.init.normal_(fc.weight, mean=0.0, std=0.01)
    nn.init.zeros_(fc.bias)
    return fc


INSTANCE, EITHER = ("instance",), ("instance", "class-balanced")
HEADS = {
    "linear": Head(
        "a linear classifier by cross-entropy and SGD on random views, the release's probe",
        make=_linear,
        adjustments=("off", "train"),
    ),
    "logistic": Head(
        "logistic regression to its optimum, its penalty chosen",
        fit=fitted.logistic,
        samplings=EITHER,
        adjustments=("post", "train", "off"),
    ),
    "cosine": Head(
        "a cosine classifier with one scale",
        fit=fitted.cosine,
        samplings=EITHER,
        adjustments=("post", "train", "off"),
    ),
    "ncm": Head("the nearest class mean, nothing trained", fit=fitted.nearest_mean, samplings=INSTANCE),
    "tau": Head(
        "weights of an unbalanced logistic regression divided by their length to the power tau",
        fit=fitted.tau_normalised,
        samplings=INSTANCE,
        adjustments=("off", "post"),
    ),
    "lws": Head(
        "the same weights, each class's scaled by a balanced fit", fit=fitted.learned_scales, samplings=INSTANCE
    ),
    "target": Head(
        "the nearest target of TSC to the projection, nothing trained",
        fit=fitted.nearest_target,
        samplings=INSTANCE,
        needs_targets=True,
    ),
}
ADJUSTMENTS = ("off", "train", "post")


def build_classifier(
    arch: str,
    image_size: int,
    num_classes: int,
    batch: int,
    pretrained: str | Path | None,
    head: str = "linear",
    counts: np.ndarray | None = None,
) -> nn.Module:
    """The network with the pre-trained encoder frozen and a new `fc`, on the CPU.

    Args:
        batch: images a process trains on at a time, (batch, 3, image_size, image_size).
        pretrained: the encoder's file; None: its weights are random, for a checkpoint that brings all.
        head: a name of HEADS. counts: as in `freeze`.

    Raises:
        InputError: as `get_encoder` and `load_encoder`.
    """
    model = get_encoder(arch, image_size, batch)(num_classes=num_classes)
    if pretrained is not None:
        load_encoder(model, pretrained, arch)
    return freeze(model, head, counts)


def freeze(model: nn.Module, head: str = "linear", counts: np.ndarray | None = None) -> nn.Module:
    """The same network with a new `fc`, the only part that trains.

    Args:
        counts: (C,) training images of each class; None, one each: nothing will be trained that depends on them.
    """
    model.requires_grad_(False)
    counts = np.ones(model.fc.out_features, dtype=np.int64) if counts is None else counts
    model.fc = HEADS[head].make(model.fc.in_features, counts)
    return model


def with_float32_logits(model: nn.Module) -> nn.Module:
    """The same network, its `fc` replaced by a Float32Linear of the same weights, which train."""
    fc = skip_init(Float32Linear, model.fc.in_features, model.fc.out_features)
    fc.load_state_dict(model.fc.state_dict())
    model.fc = fc
    return model


def frozen_weights(model: nn.Module, bn_mode: str) -> dict[str, Tensor]:
    """Copies of what must not change; with bn_mode train the batch-norm statistics may."""
    assert all(name.startswith("fc.") for name, p in model.named_parameters() if p.requires_grad)
    tensors = model.state_dict() if bn_mode == "eval" else dict(model.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if not name.startswith("fc.")}


def moved(model: nn.Module, frozen: dict[str, Tensor]) -> list[str]:
    """The names of frozen weights that are not what they were, to the bit."""
    now = model.state_dict()
    return [name for name, before in frozen.items() if not torch.equal(now[name], before)]
