"""The classifiers of stage 2, called heads, and the network that they belong to: a frozen encoder with a head as `fc`.

HEADS lists the heads. Some are trained on random views. The others are fitted to stored features:

- data.py holds the features, and the parts of the checkpoint that inputs.py reads;
- candidates.py fits several classifiers per head, with the functions in fits.py;
- selection.py selects one on validation and tests it;
- comparison.py does the last two steps for every head.

To add a head, add a row to HEADS and a function, which builds the module or fits it (in candidates.py).
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from moco.encoders import get_encoder
from moco.heads import candidates
from moco.heads.classifiers import CosineClassifier, Fit, fitted_classifier, linear_classifier
from moco.heads.data import HeadData
from moco.heads.ldam import DEFERRED, SCALE, effective_weights, ldam_loss, ldam_margins
from moco.losses import log_prior
from moco.pretrained import check_stage2, load_encoder
from utils.distributed import log
from utils.errors import InputError
from utils.run import checkpoint

Loss = Callable[[Tensor, Tensor, int], Tensor]  # loss(logits (N, C), labels (N,), epoch); epochs count from 0


class Head(NamedTuple):
    """A kind of classifier for d features and C classes, either trained on random views or fitted to stored features.

    Attributes:
        help: Description for --help.
        build: For a trained head, build(d, counts) returns the module that becomes `fc`, mapping (N, d) to (N, C).
            counts: (C,) training images per class.
        loss: loss(logits, labels, epoch) of (N, C) and (N,) returns a scalar. Epochs count from 0.
        build_loss: build_loss(counts, epochs, device) returns the loss, if it depends on the class sizes or the
            number of epochs. Replaces loss.
        candidates: For a fitted head, candidates(data, sampling, adjustment) yields lists of fits; see candidates.py.
            Replaces build and loss.
        samplings, adjustments: Allowed values of --sampling and --logit-adjustment. The first is the default.
        needs: What the checkpoint must contain besides an encoder: "targets" (TSC), "classifier" or "" (nothing).
    """

    help: str
    build: Callable[[int, np.ndarray], nn.Module] | None = None
    loss: Loss = lambda logits, labels, epoch: cross_entropy(logits, labels)
    build_loss: Callable[[np.ndarray, int, torch.device], Loss] | None = None
    candidates: Callable[[HeadData, str, str], Iterator[Iterable[Fit]]] | None = None
    samplings: tuple[str, ...] = ("instance",)
    adjustments: tuple[str, ...] = ("off",)
    needs: str = ""

    @property
    def is_fitted(self) -> bool:
        """Whether the classifier is fitted to stored features, instead of trained on random views."""
        return self.candidates is not None

    def criterion(self, counts: np.ndarray, epochs: int, adjustment: str, device: torch.device) -> Loss:
        """Return the loss of a run with this many epochs. adjustment "train" adds the log class prior to the logits."""
        loss = self.build_loss(counts, epochs, device) if self.build_loss else self.loss
        if adjustment != "train":
            return loss
        prior = log_prior(torch.from_numpy(counts)).float().to(device)  # (C,)
        return lambda logits, labels, epoch: loss(logits + prior, labels, epoch)


def _build_linear(width: int, counts: np.ndarray) -> nn.Module:
    """Build the linear probe of the TSC authors' code: weights from N(0, 0.01²), bias 0."""
    return linear_classifier(torch.empty(len(counts), width).normal_(std=0.01), torch.zeros(len(counts)))


def _build_ldam(width: int, counts: np.ndarray) -> nn.Module:
    """Build LDAM's cosine classifier: only the directions are trained, scale and bias are fixed."""
    fc = CosineClassifier(normalize(torch.empty(len(counts), width).uniform_(-1, 1), dim=1), SCALE)
    fc.scale.requires_grad_(False)
    fc.bias.requires_grad_(False)
    return fc


def _build_ldam_loss(counts: np.ndarray, epochs: int, device: torch.device) -> Loss:
    margins, weights = ldam_margins(counts).to(device), effective_weights(counts).to(device)

    def loss(logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        return ldam_loss(logits, labels, margins, weights if epoch >= int(DEFERRED * epochs) else None)

    return loss


ADJUSTMENTS = ("off", "train", "post")
BOTH, ADJUSTED = ("instance", "class-balanced"), ("post", "train", "off")
HEADS = {
    "linear": Head(
        "linear probe, trained with cross-entropy, as in the authors' code",
        build=_build_linear,
        samplings=("class-balanced", "instance"),
        adjustments=("off", "train"),
    ),
    "ldam": Head(
        "cosine classifier with larger margins for rare classes and re-weighting late in training (LDAM-DRW)",
        build=_build_ldam,
        build_loss=_build_ldam_loss,
    ),
    "logistic": Head(
        "logistic regression; its L2 penalty is selected on validation",
        candidates=candidates.logistic,
        samplings=BOTH,
        adjustments=ADJUSTED,
    ),
    "cosine": Head(
        "cosine classifier with one learned scale",
        candidates=candidates.cosine,
        samplings=BOTH,
        adjustments=ADJUSTED,
    ),
    "ncm": Head("nearest class mean, by cosine or Euclidean distance", candidates=candidates.ncm),
    "tau": Head("logistic regression with weights divided by their norm to the power tau", candidates=candidates.tau),
    "lws": Head(
        "logistic regression with one scale per class, learned with class balancing", candidates=candidates.lws
    ),
    "target": Head(
        "nearest TSC target; needs no training (TSC checkpoints only)",
        candidates=candidates.target,
        needs="targets",
    ),
    "own": Head(
        "the classifier that the network was trained with (stage 1 with --joint, bcl or paco, examples.cross_entropy)",
        candidates=candidates.own,
        adjustments=("post", "off"),
        needs="classifier",
    ),
}


def build_classifier(
    arch: str,
    image_size: int,
    num_classes: int,
    batch: int = 2,
    pretrained: str | Path | None = None,
    head: str = "linear",
    counts: np.ndarray | None = None,
    quiet: bool = False,
) -> nn.Module:
    """Build the network with the frozen pre-trained encoder and a new `fc`, on the CPU.

    Args:
        batch: Images per process and training step. Keep the default if nothing will be trained.
        pretrained: File of the encoder. None keeps random weights, for a checkpoint that replaces all of them.
        head: Name in HEADS.
        counts: See `freeze_and_replace_classifier`.
        quiet: Do not log what was loaded.

    Raises:
        InputError: See `get_encoder` and `load_encoder`.
    """
    model = get_encoder(arch, image_size, batch)(num_classes=num_classes)
    if pretrained is not None:
        found = load_encoder(model, pretrained, arch)
        if not quiet:
            log(f"pretrained: {pretrained}: {found.summary()}")
    return freeze_and_replace_classifier(model, head, counts)


def freeze_and_replace_classifier(
    model: nn.Module, head: str = "linear", counts: np.ndarray | None = None
) -> nn.Module:
    """Freeze the network and give it a new `fc`, the only trainable part. Return the network.

    Args:
        counts: (C,) training images per class. None is for heads that do not use them.
    """
    model.requires_grad_(False)
    counts = np.ones(model.fc.out_features, dtype=np.int64) if counts is None else counts
    build = HEADS[head].build or _build_linear  # a fitted head replaces the linear `fc` later
    model.fc = build(model.fc.in_features, counts)
    return model


def load_trained(model: nn.Module, head: str, weights: dict[str, Tensor], source: Path) -> nn.Module:
    """Load the weights of a finished second stage into its network. Return the network.

    Raises:
        InputError: The weights do not fit the network, the head, or the number of classes.
    """
    check_stage2(weights, source)
    if HEADS[head].is_fitted:
        expected, model.fc = model.fc.out_features, fitted_classifier(weights, source)
        found = len(getattr(model.fc, "classifier", model.fc).weight)
        if found != expected:
            raise InputError(f"checkpoint {source}: fitted to {found} classes, but the data has {expected}")
    checkpoint.load_weights(model, weights, source)
    return model


def unfreeze(model: nn.Module) -> None:
    """Make the encoder trainable. In `fc`, frozen parameters stay frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or not name.startswith("fc."))


def without_classifier(model: nn.Module) -> nn.Module:
    """Replace `fc` by the identity, so that the network returns features, (N, d). Return the network."""
    model.fc = nn.Identity()
    return model


def with_float32_logits(model: nn.Module) -> nn.Module:
    """Replace `fc` by a trainable Float32Linear with the same weights. Return the network."""
    model.fc = linear_classifier(model.fc.weight, model.fc.bias)
    return model


def frozen_weights(model: nn.Module, bn_mode: str) -> dict[str, Tensor]:
    """Return copies of the tensors that must not change. With bn_mode "train", batch-norm statistics are excluded."""
    assert all(name.startswith("fc.") for name, p in model.named_parameters() if p.requires_grad)
    tensors = model.state_dict() if bn_mode == "eval" else dict(model.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if not name.startswith("fc.")}


def changed_weights(model: nn.Module, frozen: dict[str, Tensor]) -> list[str]:
    """Return the names of frozen weights that are no longer bit-identical."""
    current = model.state_dict()
    return [name for name, stored in frozen.items() if not torch.equal(current[name], stored)]


def check_unchanged(model: nn.Module, frozen: dict[str, Tensor], message: str) -> None:
    """Raise InputError, with the message and the first names, if frozen weights are no longer bit-identical."""
    if names := changed_weights(model, frozen):
        raise InputError(f"{message} {checkpoint.first_keys(names)}")
