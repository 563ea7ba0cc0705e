"""Stage 2's network: a frozen encoder and a classifier `fc` on it, and the proof that nothing else moved.

Adding a classifier is one row of HEADS, and a function: one that makes it, or one in fitted.py that fits it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils import skip_init

from moco.encoders import get_encoder
from moco.heads import fitted
from moco.heads.classifiers import CosineClassifier, Float32Linear
from moco.heads.fits import log_prior
from moco.heads.fitted import Candidate, Problem, Way
from moco.losses.ldam import DEFERRED, SCALE, effective_weights, ldam_loss, ldam_margins
from moco.pretrained import load_encoder

Loss = Callable[[Tensor, Tensor, int], Tensor]  # loss(logits, labels, epoch) of (N, C) and (N,); epochs from 0


class Head(NamedTuple):
    """A classifier on the d features of an encoder, for C classes: trained on random views, or fitted to features.

    help: what it is, for --help.
    make: make(d, counts) is the module that becomes `fc`, (N, d) -> (N, C). counts: (C,) training images of each class.
    loss: loss(logits, labels, epoch) of (N, C) and (N,), a scalar; epochs are counted from 0.
    loss_of: instead of loss, where it depends on more: loss_of(counts, epochs) is such a loss.
    fit: instead of these, makes the candidates that the validation split chooses from.
    samplings, adjustments: what --sampling and --logit-adjustment may be, the first by default.
    needs: what a checkpoint must have, "targets" of TSC or a "classifier", where it needs more than an encoder.
    """

    help: str
    make: Callable[[int, np.ndarray], nn.Module] | None = None
    loss: Loss = lambda logits, labels, epoch: cross_entropy(logits, labels)
    loss_of: Callable[[np.ndarray, int], Loss] | None = None
    fit: Callable[[Problem, Way], Iterator[list[Candidate]]] | None = None
    samplings: tuple[str, ...] = ("class-balanced", "instance")
    adjustments: tuple[str, ...] = ("off",)
    needs: str = ""

    def criterion(self, counts: np.ndarray, epochs: int, adjustment: str, device: torch.device) -> Loss:
        """The loss of a run of so many epochs. adjustment: "train" adds the log of the prior to the logits."""
        loss = self.loss_of(counts, epochs) if self.loss_of else self.loss
        if adjustment != "train":
            return loss
        prior = log_prior(torch.from_numpy(counts)).float().to(device)  # (C,)
        return lambda logits, labels, epoch: loss(logits + prior, labels, epoch)


def _linear(width: int, counts: np.ndarray) -> nn.Module:
    """The release's probe: weight N(0, 0.01), bias 0."""
    fc = skip_init(Float32Linear, width, len(counts))
    nn.init.normal_(fc.weight, mean=0.0, std=0.01)
    nn.init.zeros_(fc.bias)
    return fc


def _ldam(width: int, counts: np.ndarray) -> nn.Module:
    """Cosines times LDAM's scale, of which the directions train."""
    fc = CosineClassifier(normalize(torch.empty(len(counts), width).uniform_(-1, 1), dim=1), SCALE)
    fc.scale.requires_grad_(False)
    fc.bias.requires_grad_(False)
    return fc


def _ldam_drw(counts: np.ndarray, epochs: int) -> Loss:
    margins, weights = ldam_margins(counts), effective_weights(counts)

    def loss(logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        late = epoch >= int(DEFERRED * epochs)
        device = logits.device
        return ldam_loss(logits, labels, margins.to(device), weights.to(device) if late else None)

    return loss


INSTANCE, BOTH, ADJUSTED = ("instance",), ("instance", "class-balanced"), ("post", "train", "off")
HEADS = {
    "linear": Head(
        "linear probe, trained with cross-entropy, as in the authors' code",
        make=_linear,
        adjustments=("off", "train"),
    ),
    "ldam": Head(
        "cosine classifier with larger margins for rare classes and re-weighting late in training (LDAM-DRW)",
        make=_ldam,
        loss_of=_ldam_drw,
        samplings=INSTANCE,
    ),
    "logistic": Head(
        "logistic regression; its L2 penalty is selected on validation",
        fit=fitted.logistic,
        samplings=BOTH,
        adjustments=ADJUSTED,
    ),
    "cosine": Head(
        "cosine classifier with one learned scale",
        fit=fitted.cosine,
        samplings=BOTH,
        adjustments=ADJUSTED,
    ),
    "ncm": Head(
        "nearest class mean, by cosine or Euclidean distance",
        fit=fitted.nearest_mean,
        samplings=INSTANCE,
    ),
    "tau": Head(
        "logistic regression with weights divided by their norm to the power tau",
        fit=fitted.tau_normalised,
        samplings=INSTANCE,
    ),
    "lws": Head(
        "logistic regression with one scale per class, learned with class balancing",
        fit=fitted.learned_scales,
        samplings=INSTANCE,
    ),
    "target": Head(
        "nearest TSC target of the projected features",
        fit=fitted.nearest_target,
        samplings=INSTANCE,
        needs="targets",
    ),
    "own": Head(
        "classifier that the checkpoint was trained with",
        fit=fitted.own_classifier,
        samplings=INSTANCE,
        adjustments=("post", "off"),
        needs="classifier",
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
    make = HEADS[head].make or _linear  # of a head that is fitted: to be replaced
    model.fc = make(model.fc.in_features, counts)
    return model


def unfreeze(model: nn.Module) -> None:
    """Let the encoder train too; of `fc` what trained before."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or not name.startswith("fc."))


def without_classifier(model: nn.Module) -> nn.Module:
    """The same network, which gives its features, (N, d)."""
    model.fc = nn.Identity()
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
