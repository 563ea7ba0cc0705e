"""The heads that are fitted to features: what each tries, from which the validation split chooses.

Adding one is a function here, Problem -> candidates, and a row of HEADS.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import normalize

from moco.heads import fits
from moco.heads.classifiers import CosineClassifier, linear_classifier
from moco.heads.fits import Fit

STRENGTHS = tuple(10.0**power for power in range(-5, 2))  # C, of features whose mean square is 1
TAUS = tuple(tenth / 10 for tenth in range(11))
SHIFTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # t of logit adjustment after training
NCM_SCALE = 10.0  # of class means' cosines, so that they are logits; it changes no prediction


class Problem(NamedTuple):
    """What a head is fitted to: the frozen encoder's features of the training split.

    features: (n, d) float32. labels: (n,). counts: (C,) training images a class. balanced: whether every class counts
    alike, not every image. adjustment: of logits by the prior, "off", "train", "post". of_tsc: the projection head,
    (n, d) -> (n, D), and the classes' targets (C, D), row y of class y; None where there are none.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    balanced: bool
    adjustment: str = "off"
    of_tsc: tuple[nn.Module, Tensor] | None = None

    @property
    def weights(self) -> Tensor | None:
        return fits.class_weights(self.labels, len(self.counts)) if self.balanced else None

    @property
    def offset(self) -> Tensor | None:
        return fits.log_prior(self.counts) if self.adjustment == "train" else None

    @property
    def shifts(self) -> tuple[float, ...]:
        return SHIFTS if self.adjustment == "post" else (0.0,)


class Candidate(NamedTuple):
    """A classifier and the values it was made with. converged: whether its fit has arrived at an optimum."""

    values: dict[str, float]
    classifier: nn.Module
    converged: bool = True


def logistic(problem: Problem) -> Iterator[Candidate]:
    """Multinomial logistic regression, for each strength C of its penalty, and shift t of --logit-adjustment post."""
    for strength, fit in _logistic_path(problem):
        for t in problem.shifts:
            yield Candidate(_said(problem, C=strength, t=t), _shifted(fit, problem, t), fit.converged)


def cosine(problem: Problem) -> Iterator[Candidate]:
    """Directions and one scale, by cross-entropy."""
    fit = fits.cosine(problem.features, problem.labels, len(problem.counts), problem.weights, problem.offset)
    for t in problem.shifts:
        bias = -t * fits.log_prior(problem.counts)
        yield Candidate(_said(problem, t=t), CosineClassifier(fit.weight, fit.scale, bias), fit.converged)


def nearest_mean(problem: Problem) -> Iterator[Candidate]:
    """The nearest class mean: by the cosine of unit features, and by the distance of features as they are."""
    classes = len(problem.counts)
    means = fits.class_means(normalize(problem.features, dim=1), problem.labels, classes)
    yield Candidate({"euclidean": 0.0}, CosineClassifier(means, NCM_SCALE))
    means = fits.class_means(problem.features, problem.labels, classes)
    yield Candidate({"euclidean": 1.0}, linear_classifier(2 * means, -means.square().sum(1)))


def tau_normalised(problem: Problem) -> Iterator[Candidate]:
    """A logistic regression without balancing, its weights divided by their length to the power tau."""
    for (strength, fit), tau in product(list(_logistic_path(problem)), TAUS):
        normalised = fits.tau_normalised(fit, tau)
        for t in problem.shifts:
            classifier = _shifted(normalised, problem, t)
            yield Candidate(_said(problem, C=strength, tau=tau, t=t), classifier, fit.converged)


def learned_scales(problem: Problem) -> Iterator[Candidate]:
    """A logistic regression without balancing, then a scale for each class's weights, trained with balancing."""
    balanced = problem._replace(balanced=True).weights
    for strength, fit in _logistic_path(problem._replace(balanced=False)):
        scaled = fits.learned_scales(fit, problem.features, problem.labels, balanced)
        yield Candidate({"C": strength}, linear_classifier(*scaled[:2]), scaled.converged)


def nearest_target(problem: Problem) -> Iterator[Candidate]:
    """The nearest assigned target of TSC, to the projection of an image; nothing is fitted."""
    projection, targets = problem.of_tsc
    yield Candidate({}, nn.Sequential(projection, CosineClassifier(targets, NCM_SCALE)))


def _scaled(features: Tensor) -> tuple[Tensor, float]:
    """Features of mean square 1, so that a strength of the penalty means the same for any network; and the factor."""
    factor = float(features.square().mean().clamp(min=1e-30).rsqrt())
    return features * factor, factor


def _logistic_path(problem: Problem) -> Iterator[tuple[float, Fit]]:
    """From the strongest penalty on, each from the one before; of the features as they are."""
    features, factor = _scaled(problem.features)
    fit = None
    for strength in STRENGTHS:
        classes, weights, offset = len(problem.counts), problem.weights, problem.offset
        fit = fits.logistic(features, problem.labels, classes, strength, weights, offset, start=fit)
        yield strength, fit._replace(weight=factor * fit.weight)


def _shifted(fit: Fit, problem: Problem, t: float) -> nn.Module:
    """logits - t · log prior, as a bias."""
    return linear_classifier(fit.weight, fit.bias - t * fits.log_prior(problem.counts))


def _said(problem: Problem, **values: float) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != "t" or problem.adjustment == "post"}
