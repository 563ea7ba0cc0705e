"""The heads that are fitted to features: what each tries, from which the validation split chooses.

Adding one is a function here and a row of HEADS: from a problem to lists of candidates, a list for what is fitted at
once, from strong penalties to weak ones.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn

from moco.heads import fits
from moco.heads.classifiers import CosineClassifier, Projected, linear_classifier
from moco.heads.fits import Fit

PENALTIES = tuple(10.0**-power for power in range(6))  # l2, of features whose mean square is 1
TAUS = tuple(tenth / 10 for tenth in range(11))
SHIFTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # t of logit adjustment after training
COSINE_SCALE = 10.0  # of cosines to means and targets, so that they are logits; it changes no prediction


class Problem:
    """What heads are fitted to: the frozen encoder's features of the training split. Fits that heads share are kept.

    Args:
        features: (n, d). labels: (n,). counts: (C,) training images a class.
        of_tsc: the projection head, (n, d) -> (n, D), and the classes' targets (C, D), row y of class y, of TSC.
        lacks: what of a head's `needs` there is not -> why.
        own: weight (C, d) and bias (C,) of the classifier that the network was trained with, where it was.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        counts: Tensor,
        of_tsc: tuple[nn.Module, Tensor] | None = None,
        own: tuple[Tensor, Tensor] | None = None,
        lacks: dict[str, str] = {},  # noqa: B006, it is not written to
    ):
        self.features, self.labels, self.counts, self.of_tsc, self.own = features, labels, counts, of_tsc, own
        self.lacks = lacks
        self._paths: dict[tuple[Way, bool], list[Fit]] = {}

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    @cached_property
    def prior(self) -> Tensor:
        """(C,) its logarithm."""
        return fits.log_prior(self.counts)

    @cached_property
    def class_weights(self) -> Tensor:
        """(n,)."""
        return fits.class_weights(self.labels, self.num_classes)

    @cached_property
    def unit(self) -> float:
        """The factor that makes the features' mean square 1: a penalty then means the same for all networks."""
        square = sum(float(block.double().square().sum()) for block in self.features.split(fits.BLOCK))
        return (square / self.features.numel() + 1e-30) ** -0.5

    def logistic_path(self, way: "Way", intercept: bool = True) -> Iterator[tuple[float, Fit]]:
        """A logistic regression for each of PENALTIES, each from the one before it."""
        kept = self._paths.setdefault((way._replace(shifted=False), intercept), [])
        for number, l2 in enumerate(PENALTIES):
            if number == len(kept):
                options = {"start": kept[-1] if kept else None, "unit": self.unit, "intercept": intercept}
                data = self.features, self.labels, self.num_classes
                kept.append(fits.logistic(*data, l2, *way.of(self), **options))
            yield l2, kept[number]


class Way(NamedTuple):
    """How a head meets the imbalance: --sampling and --logit-adjustment.

    balanced: every class counts alike, not every image. offset: the log of the prior is added while it is fitted.
    shifted: t times that is taken off afterwards.
    """

    balanced: bool = False
    offset: bool = False
    shifted: bool = False

    def of(self, problem: Problem) -> tuple[Tensor | None, Tensor | None]:
        """Weights (n,) of the images and offset (C,) of the logits, for a fit."""
        return problem.class_weights if self.balanced else None, problem.prior if self.offset else None

    @property
    def shifts(self) -> tuple[float, ...]:
        return SHIFTS if self.shifted else (0.0,)

    def said(self, **values: float) -> dict[str, float]:
        """The values that a candidate was made with; t only where it is chosen."""
        return {name: value for name, value in values.items() if name != "t" or self.shifted}


class Candidate(NamedTuple):
    """A classifier and the values it was made with. converged: whether its fit has arrived at an optimum."""

    values: dict[str, float]
    classifier: nn.Module
    converged: bool = True


def logistic(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Multinomial logistic regression, for each penalty l2, and shift t of --logit-adjustment post."""
    for l2, fit in problem.logistic_path(way):
        shifted = ((t, linear_classifier(fit.weight, fit.bias - t * problem.prior)) for t in way.shifts)
        yield [Candidate(way.said(l2=l2, t=t), classifier, fit.converged) for t, classifier in shifted]


def cosine(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """Directions and one scale, for each penalty l2 of the scale, and shift t of --logit-adjustment post."""
    fit = None
    for l2 in PENALTIES:
        fit = fits.cosine(problem.features, problem.labels, problem.num_classes, l2, *way.of(problem), start=fit)
        shifted = ((t, CosineClassifier(fit.weight, fit.scale, -t * problem.prior)) for t in way.shifts)
        yield [Candidate(way.said(l2=l2, t=t), classifier, fit.converged) for t, classifier in shifted]


def nearest_mean(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """The nearest class mean: by the cosine of unit features, and by the distance of features as they are."""
    directions = fits.class_means(problem.features, problem.labels, problem.num_classes, unit=True)
    means = fits.class_means(problem.features, problem.labels, problem.num_classes)
    by_distance = linear_classifier(2 * means, -means.square().sum(1))  # −|z − m|² + |z|²
    by_cosine = CosineClassifier(directions, COSINE_SCALE)
    yield [Candidate({"euclidean": 0}, by_cosine), Candidate({"euclidean": 1}, by_distance)]


def tau_normalised(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """A logistic regression without balancing and b, its weights divided by their length to the power tau."""
    for l2, fit in problem.logistic_path(way, intercept=False):
        normalised = ((tau, linear_classifier(*fits.tau_normalised(fit, tau)[:2])) for tau in TAUS)
        yield [Candidate({"l2": l2, "tau": tau}, classifier, fit.converged) for tau, classifier in normalised]


def learned_scales(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """A logistic regression without balancing, then a scale for each class's weights, trained with balancing."""
    for l2, fit in problem.logistic_path(way):
        scaled = fits.learned_scales(fit, problem.features, problem.labels, problem.class_weights)
        yield [Candidate({"l2": l2}, linear_classifier(*scaled[:2]), scaled.converged)]


def nearest_target(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """The nearest assigned target of TSC, to the projection of an image; nothing is fitted."""
    projection, targets = problem.of_tsc
    yield [Candidate({}, Projected(projection, CosineClassifier(targets, COSINE_SCALE)))]


def own_classifier(problem: Problem, way: Way) -> Iterator[list[Candidate]]:
    """The classifier that the network was trained with, for each shift t; nothing is fitted."""
    weight, bias = problem.own
    yield [Candidate(way.said(t=t), linear_classifier(weight, bias - t * problem.prior)) for t in way.shifts]
