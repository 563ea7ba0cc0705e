"""Heads that are fitted to features. Each yields candidates, from which one is selected on validation.

To add a head, add a function here and a row to HEADS. The function takes FitInputs and a Balancing, and yields lists of
candidates, one list per fit, from strong penalties to weak ones.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn

from moco.heads import fits
from moco.heads.classifiers import CosineClassifier, ProjectedClassifier, linear_classifier
from moco.heads.fits import Fit

PENALTIES = tuple(10.0**-power for power in range(6))  # l2, for features with mean square 1
TAUS = tuple(tenth / 10 for tenth in range(11))
PRIOR_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # t of --logit-adjustment post
COSINE_SCALE = 10.0  # factor from cosine to logit for class means and targets; predictions do not depend on it


class FitInputs:
    """Training features of the frozen encoder, to which heads are fitted. Fits that several heads use are cached.

    Args:
        features: (n, d).
        labels: (n,).
        counts: (C,) training images per class.
        projection_and_targets: For TSC, the projection head, (n, d) -> (n, D), and the targets (C, D); row y is the
            target of class y.
        classifier: Weight (C, d) and bias (C,) of the classifier that the network was trained with, if it has one.
        lacks: Maps a missing part of the checkpoint ("targets" or "classifier") to the reason.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        counts: Tensor,
        projection_and_targets: tuple[nn.Module, Tensor] | None = None,
        classifier: tuple[Tensor, Tensor] | None = None,
        lacks: dict[str, str] = {},  # noqa: B006, never modified
    ):
        self.features, self.labels, self.counts = features, labels, counts
        self.projection_and_targets, self.classifier, self.lacks = projection_and_targets, classifier, lacks
        self._paths: dict[tuple[Balancing, bool], list[Fit]] = {}

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    @cached_property
    def prior(self) -> Tensor:
        """(C,) log class prior."""
        return fits.log_prior(self.counts)

    @cached_property
    def balanced_image_weights(self) -> Tensor:
        """(n,) image weights with which all classes count equally."""
        return fits.balanced_image_weights(self.labels, self.num_classes)

    @cached_property
    def feature_scale(self) -> float:
        """Factor that scales the mean square of the features to 1, so that penalties are comparable across networks."""
        square = sum(float(block.double().square().sum()) for block in self.features.split(fits.BLOCK))
        return (square / self.features.numel() + 1e-30) ** -0.5

    def logistic_path(self, balancing: "Balancing", intercept: bool = True) -> Iterator[tuple[float, Fit]]:
        """Yield (l2, fit) for each l2 in PENALTIES. Each logistic regression starts from the previous fit."""
        cached = self._paths.setdefault((balancing._replace(post_adjusted=False), intercept), [])
        for number, l2 in enumerate(PENALTIES):
            if number == len(cached):
                start = cached[-1] if cached else None
                options = {"start": start, "feature_scale": self.feature_scale, "intercept": intercept}
                data = self.features, self.labels, self.num_classes
                cached.append(fits.fit_logistic(*data, l2, *balancing.fit_options(self), **options))
            yield l2, cached[number]


class Balancing(NamedTuple):
    """Treatment of class imbalance, from --sampling and --logit-adjustment.

    Attributes:
        balanced: Weight all classes equally, instead of all images.
        train_adjusted: Add the log class prior to the logits during the fit.
        post_adjusted: Subtract t times the log class prior after the fit.
    """

    balanced: bool = False
    train_adjusted: bool = False
    post_adjusted: bool = False

    def fit_options(self, inputs: FitInputs) -> tuple[Tensor | None, Tensor | None]:
        """Return the image weights (n,) and the logit offset (C,) for a fit; None where not used."""
        weights = inputs.balanced_image_weights if self.balanced else None
        return weights, inputs.prior if self.train_adjusted else None

    @property
    def prior_strengths(self) -> tuple[float, ...]:
        """The values of t to try."""
        return PRIOR_STRENGTHS if self.post_adjusted else (0.0,)

    def hyperparameters(self, **values: float) -> dict[str, float]:
        """Return the hyperparameters of a candidate, with t only if it is selected on validation."""
        return {name: value for name, value in values.items() if name != "t" or self.post_adjusted}


class Candidate(NamedTuple):
    """A classifier and its hyperparameters. converged: whether the fit reached an optimum."""

    hyperparameters: dict[str, float]
    classifier: nn.Module
    converged: bool = True


def logistic_candidates(inputs: FitInputs, balancing: Balancing) -> Iterator[list[Candidate]]:
    """Yield multinomial logistic regressions for each penalty l2 and each t of --logit-adjustment post."""
    for l2, fit in inputs.logistic_path(balancing):
        yield [
            Candidate(
                balancing.hyperparameters(l2=l2, t=t),
                linear_classifier(fit.weight, fit.bias - t * inputs.prior),
                fit.converged,
            )
            for t in balancing.prior_strengths
        ]


def cosine_candidates(inputs: FitInputs, balancing: Balancing) -> Iterator[list[Candidate]]:
    """Yield cosine classifiers for each penalty l2 on the scale and each t of --logit-adjustment post."""
    fit = None
    for l2 in PENALTIES:
        fit = fits.fit_cosine(
            inputs.features, inputs.labels, inputs.num_classes, l2, *balancing.fit_options(inputs), start=fit
        )
        yield [
            Candidate(
                balancing.hyperparameters(l2=l2, t=t),
                CosineClassifier(fit.weight, fit.scale, -t * inputs.prior),
                fit.converged,
            )
            for t in balancing.prior_strengths
        ]


def ncm_candidates(inputs: FitInputs, balancing: Balancing) -> Iterator[list[Candidate]]:
    """Yield two nearest-class-mean classifiers: by cosine, and by Euclidean distance of the raw features."""
    directions = fits.class_means(inputs.features, inputs.labels, inputs.num_classes, normalise_features=True)
    means = fits.class_means(inputs.features, inputs.labels, inputs.num_classes)
    by_distance = linear_classifier(2 * means, -means.square().sum(1))  # −|z − m|² + |z|²
    by_cosine = CosineClassifier(directions, COSINE_SCALE)
    yield [Candidate({"euclidean": 0}, by_cosine), Candidate({"euclidean": 1}, by_distance)]


def tau_candidates(inputs: FitInputs, balancing: Balancing) -> Iterator[list[Candidate]]:
    """Yield unbalanced logistic regressions without bias, their weights divided by their norm to the power tau."""
    for l2, fit in inputs.logistic_path(balancing, intercept=False):
        normalised = ((tau, linear_classifier(*fits.normalise_by_tau(fit, tau)[:2])) for tau in TAUS)
        yield [Candidate({"l2": l2, "tau": tau}, classifier, fit.converged) for tau, classifier in normalised]


def lws_candidates(inputs: FitInputs, balancing: Balancing) -> Iterator[list[Candidate]]:
    """Yield unbalanced logistic regressions with one scale per class, learned with class balancing."""
    for l2, fit in inputs.logistic_path(balancing):
        scaled = fits.fit_class_scales(fit, inputs.features, inputs.labels, inputs.balanced_image_weights)
        yield [Candidate({"l2": l2}, linear_classifier(*scaled[:2]), scaled.converged)]


def target_candidates(inputs: FitInputs, balancing: Balancing) -> Iterator[list[Candidate]]:
    """Yield the classifier that predicts the TSC target nearest to the projected feature. Nothing is fitted."""
    projection, targets = inputs.projection_and_targets
    yield [Candidate({}, ProjectedClassifier(projection, CosineClassifier(targets, COSINE_SCALE)))]


def own_candidates(inputs: FitInputs, balancing: Balancing) -> Iterator[list[Candidate]]:
    """Yield the classifier that the network was trained with, for each t. Nothing is fitted."""
    weight, bias = inputs.classifier
    yield [
        Candidate(balancing.hyperparameters(t=t), linear_classifier(weight, bias - t * inputs.prior))
        for t in balancing.prior_strengths
    ]
