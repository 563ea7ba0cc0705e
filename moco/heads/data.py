"""The data of fitted heads: features of a frozen encoder, and what else its checkpoint contains."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moco.heads import fits
from moco.heads.classifiers import Fit
from moco.losses import log_prior
from utils.measure.feature_cache import Features
from utils.run.compute import ComputeConfig

PENALTIES = tuple(10.0**-power for power in range(6))  # l2, for features with mean square 1


@dataclass(frozen=True)
class HeadData:
    """What heads are fitted to, selected by and tested on.

    Attributes:
        train: Features (n, d) and labels (n,), on the device and in the precision of the fits.
        val, test: Features and labels on the CPU. `val` selects, `test` is measured once per head.
        counts: (C,) training images per class.
        compute: Device and precision of val and test.
        selection_split: See `DataConfig.selection_split`.
        parts: Parts of the checkpoint besides its encoder. "targets" (TSC): the projection head, (N, d) -> (N, D),
            and the targets (C, D); row y is the target of class y. "classifier": weight, bias, scale and
            projection (see `Fit`) of the classifier that the network was trained with.
        lacks: Maps each missing part to the reason.
        described: Entries of checkpoints that describe the training images, such as class_names.
    """

    train: Features
    val: Features
    test: Features
    counts: np.ndarray
    compute: ComputeConfig
    selection_split: str
    parts: dict[str, tuple] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    described: dict[str, object] = field(default_factory=dict)
    _logistic_fits: dict[tuple, Fit] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    @property
    def log_prior(self) -> Tensor:
        """(C,) log class prior."""
        return log_prior(torch.from_numpy(self.counts))

    @cached_property
    def feature_scale(self) -> float:
        """Factor that scales the mean square of the features to 1, so that penalties are comparable across networks."""
        features = self.train.features
        square = sum(float(block.double().square().sum()) for block in features.split(fits.BLOCK))
        return (square / features.numel() + 1e-30) ** -0.5

    def image_weights(self, sampling: str) -> Tensor | None:
        """Return image weights (n,) for --sampling class-balanced, and None if all images count equally."""
        return (
            fits.balanced_image_weights(self.train.labels, self.num_classes) if sampling == "class-balanced" else None
        )

    def logit_offset(self, adjustment: str) -> Tensor | None:
        """Return what is added to the logits (C,) during a fit with --logit-adjustment train, and None otherwise."""
        return self.log_prior if adjustment == "train" else None

    def logistic_path(self, sampling: str, adjustment: str, intercept: bool = True) -> Iterator[Fit]:
        """Yield the logistic regression for each l2 in PENALTIES. Each starts from the one before.

        The fits are kept, because several heads use the same ones. --logit-adjustment train uses the same fit as off:
        the bias is not penalised, so adding the log prior to the logits during the fit is equivalent to subtracting it
        from the fitted bias. Without a bias (intercept=False), train is not supported.
        """
        assert intercept or adjustment != "train"
        weights, offset, fit = self.image_weights(sampling), self.logit_offset(adjustment), None
        for l2 in PENALTIES:
            key = l2, sampling, intercept
            if key not in self._logistic_fits:
                self._logistic_fits[key] = fits.fit_logistic(
                    *self.train, self.num_classes, l2, weights, fit, self.feature_scale, intercept
                )
            fit = self._logistic_fits[key]
            yield fit if offset is None else fit._replace(bias=fit.bias - offset)
