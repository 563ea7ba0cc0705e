"""Heads that are fitted to features. Each yields candidates, from which one is selected on validation.

To add a head, add a function here and a row to HEADS. The function takes a problem and yields lists of candidates, one
list per fit, from strong penalties to weak ones.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn

from moco.heads import fits
from moco.heads.classifiers import CosineClassifier, Projected, linear_classifier
from moco.heads.fits import Fit

PENALTIES = tuple(10.0**-power for power in range(6))  # l2, for features with mean square 1
TAUS = tuple(tenth / 10 for tenth in range(11))
SHIFTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # t of logit adjustment after training
COSINE_SCALE = 10.0  # turns cosines to means and targets into logits; does not change predictions


class Problem:
    """Training features of the frozen encoder, to which heads are fitted. Fits that several heads use are cached.

    Args:
        features: (n, d).
        labels: (n,).
        counts: (C,) training images per class.
        of_tsc: For TSC, the projection head, (n, d) -> (n, D), and the targets (C, D); row y is the target of class y.
        own: Weight (C, d) and bias (C,) of the classifier that the network was trained with, if it has one.
        lacks: Missing part of the checkpoint ("targets", "classifier") -> reason.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        counts: Tensor,
        of_tsc: tuple[nn.Module, Tensor] | None = None,
        own: tuple[Tensor, Tensor] | None = None,
        lacks: dict[str, str] = {},  # noqa: B006, never modified
    ):
        self.features, self.labels, self.counts, self.of_tsc, self.own = features, labels, counts, of_tsc, own
        self.lacks = lacks
        self._paths: dict[tuple[Way, bool], list[Fit]] = {}

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    @cached_property
    def prior(self) -> Tensor:
        """(C,) log class prior."""
        return fits.log_prior(self.counts)

    @cached_property
    def class_weights(self) -> Tensor:
        """(n,) weights with which all classes count equally."""
        return fits.class_weights(self.labels, self.num_classes)

    @cached_property
    def unit(self) -> float:
        """Factor that scales the mean square of the features to 1, so that penalties are comparable across networks."""
        square = sum(float(block.double().square().sum()) for block in self.features.split(fits.BLOCK))
        return (square / self.features.numel() + 1e-30) ** -0.5

    def logistic_path(self, way: "Way", intercept: bool = True) -> Iterator[tuple[float, Fit]]:
        """Yield a logistic regression for each of PENALTIES, each started from the previous fit."""
        kept = self._paths.setdefault((way._replace(shifted=False), intercept), [])
        for number, l2 in enumerate(PENALTIES):
            if number == len(kept):
                options = {"start": kept[-1] if kept else None, "unit": self.unit, "intercept": intercept}
                data = self.features, self.labels, self.num_classes
                kept.append(fits.logistic(*data, l2, *way.of(self), **options))
            yield l2, kept[number]


class Way(NamedTuple):
    """Treatment of class imbalance, from --sampling and --logit-adjustment.

    Attributes:
        balanced: Weight all classes equally, instead of all images.
        offset: Add the log class prior to the logits during the fit.
        shifted: Subtract t times the log class prior after the fit.
    """

    balanced: bool = False
    offset: bool = False
    shifted: bool = False

    def of(self, problem: Problem) -> tuple[Tensor | None, Tensor | None]:
        """Return the image weights (n,) and the logit offset (C,) for a fit; None where not used."""
        return problem.class_weights if self.balanced else None, problem.prior if self.offset else None

    @property
    def shifts(self) -> tuple[float, ...]:
        return SHIFTS if self.shifted else (0.0,)

    def said(self, **values: float) -> dict[str, float]:
        """Return the hyperparameters of a candidate, with t only if it is selected on validation."""
        return {name: value for name, value in values.items() if name != "t" or self.shifted}


class Candidate(NamedTuple):
    """A classifier and its hyperparameters. converged: whether the fit reached an optimum."""

    values: dict[str, float]
    classifier: nn.Module
    converged: bool = True


def logistic(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Yield multinomial logistic regressions for each penalty l2 and each shift t (--logit-adjustment post)."""
    for l2, fit in problem.logistic_path(way):
        shifted = ((t, linear_classifier(fit.weight, fit.bias - t * problem.prior)) for t in way.shifts)
        yield [Candidate(way.said(l2=l2, t=t), classifier, fit.converged) for t, classifier in shifted]


def cosine(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Yield cosine classifiers for each penalty l2 on the scale and each shift t (--logit-adjustment post)."""
    fit = None
    for l2 in PENALTIES:
        fit = fits.cosine(problem.features, problem.labels, problem.num_classes, l2, *way.of(problem), start=fit)
        shifted = ((t, CosineClassifier(fit.weight, fit.scale, -t * problem.prior)) for t in way.shifts)
        yield [Candidate(way.said(l2=l2, t=t), classifier, fit.converged) for t, classifier in shifted]


def nearest_mean(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Yield two nearest-class-mean classifiers: by cosine, and by Euclidean distance of the raw features."""
    directions = fits.class_means(problem.features, problem.labels, problem.num_classes, unit=True)
    means = fits.class_means(problem.features, problem.labels, problem.num_classes)
    by_distance = linear_classifier(2 * means, -means.square().sum(1))  # −|z − m|² + |z|²
    by_cosine = CosineClassifier(directions, COSINE_SCALE)
    yield [Candidate({"euclidean": 0}, by_cosine), Candidate({"euclidean": 1}, by_distance)]


def tau_normalised(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Yield unbalanced logistic regressions without bias, their weights divided by their norm to the power tau."""
    for l2, fit in problem.logistic_path(way, intercept=False):
        normalised = ((tau, linear_classifier(*fits.tau_normalised(fit, tau)[:2])) for tau in TAUS)
        yield [Candidate({"l2": l2, "tau": tau}, classifier, fit.converged) for tau, classifier in normalised]


def learned_scales(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Yield unbalanced logistic regressions with one scale per class, learned with class balancing."""
    for l2, fit in problem.logistic_path(way):
        scaled = fits.learned_scales(fit, problem.features, problem.labels, problem.class_weights)
        yield [Candidate({"l2": l2}, linear_classifier(*scaled[:2]), scaled.converged)]


def nearest_target(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Yield the classifier that predicts the TSC target nearest to the projected feature. Nothing is fitted."""
    projection, targets = problem.of_tsc
    yield [Candidate({}, Projected(projection, CosineClassifier(targets, COSINE_SCALE)))]


def own_classifier(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Yield the network's own classifier for each shift t. Nothing is fitted."""
    weight, bias = problem.own
    yield [Candidate(way.said(t=t), linear_classifier(weight, bias - t * problem.prior)) for t in way.shifts]
