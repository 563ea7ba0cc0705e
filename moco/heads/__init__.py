"""The classifiers of stage 2, called heads. networks.py builds the networks that they belong to.

HEADS lists the heads. Some are trained on random views (trained.py). The others are fitted to stored features:

- data.py holds the features, and the parts of the checkpoint that inputs.py reads;
- candidates.py fits several classifiers per head, with the functions in fits.py;
- selection.py selects one on validation and tests it;
- comparison.py does the last two steps for every head.

To add a head, add a row to HEADS and a function, which builds the module (in trained.py) or fits it (in candidates.py).
This file does not import PyTorch, which takes seconds, because --help lists the heads.
"""

from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from moco.heads.classifiers import Fit
    from moco.heads.data import HeadData

Loss = Callable[["Tensor", "Tensor", int], "Tensor"]  # loss(logits (N, C), labels (N,), epoch); epochs count from 0


def _cross_entropy(logits: "Tensor", labels: "Tensor", epoch: int) -> "Tensor":
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, labels)


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
    build: Callable[[int, "np.ndarray"], "nn.Module"] | None = None
    loss: Loss = _cross_entropy
    build_loss: Callable[["np.ndarray", int, "torch.device"], Loss] | None = None
    candidates: Callable[["HeadData", str, str], Iterator[Iterable["Fit"]]] | None = None
    samplings: tuple[str, ...] = ("instance",)
    adjustments: tuple[str, ...] = ("off",)
    needs: str = ""

    @property
    def is_fitted(self) -> bool:
        """Whether the classifier is fitted to stored features, instead of trained on random views."""
        return self.candidates is not None

    def criterion(self, counts: "np.ndarray", epochs: int, adjustment: str, device: "torch.device") -> Loss:
        """Return the loss of a run with this many epochs. adjustment "train" adds the log class prior to the logits."""
        loss = self.build_loss(counts, epochs, device) if self.build_loss else self.loss
        if adjustment != "train":
            return loss
        import torch

        from moco.losses import log_prior

        prior = log_prior(torch.from_numpy(counts)).float().to(device)  # (C,)
        return lambda logits, labels, epoch: loss(logits + prior, labels, epoch)


def _trained(choose: Callable[[ModuleType], Callable]) -> Callable:
    """Return a function that imports trained.py when called, and then calls the function that `choose` selects."""

    def call(*inputs):
        from moco.heads import trained

        return choose(trained)(*inputs)

    return call


def _fitted(choose: Callable[[ModuleType], Callable]) -> Callable:
    """Return a function that imports candidates.py when called, and then calls the function `choose` selects."""

    def call(*inputs):
        from moco.heads import candidates

        return choose(candidates)(*inputs)

    return call


ADJUSTMENTS = ("off", "train", "post")
BOTH, ADJUSTED = ("instance", "class-balanced"), ("post", "train", "off")
HEADS = {
    "linear": Head(
        "linear probe, trained with cross-entropy, as in the authors' code",
        build=_trained(lambda trained: trained.build_linear),
        samplings=("class-balanced", "instance"),
        adjustments=("off", "train"),
    ),
    "ldam": Head(
        "cosine classifier with larger margins for rare classes and re-weighting late in training (LDAM-DRW)",
        build=_trained(lambda trained: trained.build_ldam),
        build_loss=_trained(lambda trained: trained.build_ldam_loss),
    ),
    "logistic": Head(
        "logistic regression; its L2 penalty is selected on validation",
        candidates=_fitted(lambda candidates: candidates.logistic),
        samplings=BOTH,
        adjustments=ADJUSTED,
    ),
    "cosine": Head(
        "cosine classifier with one learned scale",
        candidates=_fitted(lambda candidates: candidates.cosine),
        samplings=BOTH,
        adjustments=ADJUSTED,
    ),
    "ncm": Head(
        "nearest class mean, by cosine or Euclidean distance", candidates=_fitted(lambda candidates: candidates.ncm)
    ),
    "tau": Head(
        "logistic regression with weights divided by their norm to the power tau",
        candidates=_fitted(lambda candidates: candidates.tau),
    ),
    "lws": Head(
        "logistic regression with one scale per class, learned with class balancing",
        candidates=_fitted(lambda candidates: candidates.lws),
    ),
    "target": Head(
        "nearest TSC target; needs no training (TSC checkpoints only)",
        candidates=_fitted(lambda candidates: candidates.target),
        needs="targets",
    ),
    "own": Head(
        "the classifier that the network was trained with (stage 1 with --joint, bcl or paco, examples.cross_entropy)",
        candidates=_fitted(lambda candidates: candidates.own),
        adjustments=("post", "off"),
        needs="classifier",
    ),
}
