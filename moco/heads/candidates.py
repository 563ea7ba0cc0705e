"""Heads that are fitted to features.

To add a head, add a function here and a row to HEADS. The function takes the data and the values of --sampling and
--logit-adjustment. For each penalty, from strong to weak, it yields one or several fits. One of all of them is selected
on validation. The function does not implement --logit-adjustment post: the selection applies it to every fit.
"""

from collections.abc import Iterable, Iterator

import torch

from moco.heads import fits
from moco.heads.classifiers import Fit
from moco.heads.data import PENALTIES, HeadData

TAUS = tuple(tenth / 10 for tenth in range(11))
PRIOR_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # t of --logit-adjustment post
COSINE_SCALE = 10.0  # factor from cosine to logit for class means and targets; predictions do not depend on it


def logistic(data: HeadData, sampling: str, adjustment: str) -> Iterator[Iterable[Fit]]:
    """Yield multinomial logistic regressions for each penalty l2."""
    for fit in data.logistic_path(sampling, adjustment):
        yield [fit]


def cosine(data: HeadData, sampling: str, adjustment: str) -> Iterator[Iterable[Fit]]:
    """Yield cosine classifiers for each penalty l2 on the scale. Each starts from the one before."""
    weights, offset, fit = data.image_weights(sampling), data.logit_offset(adjustment), None
    for l2 in PENALTIES:
        fit = fits.fit_cosine(*data.train, data.num_classes, l2, weights, offset, fit)
        yield [fit]


def ncm(data: HeadData, sampling: str, adjustment: str) -> Iterator[Iterable[Fit]]:
    """Yield two nearest-class-mean classifiers: by cosine, and by Euclidean distance of the raw features."""
    directions = fits.class_means(*data.train, data.num_classes, normalise_features=True)
    means = fits.class_means(*data.train, data.num_classes)
    by_cosine = Fit(directions, torch.zeros(data.num_classes), {"euclidean": 0}, scale=COSINE_SCALE)
    yield by_cosine, Fit(2 * means, -means.square().sum(1), {"euclidean": 1})  # −|z − m|² + |z|²


def tau(data: HeadData, sampling: str, adjustment: str) -> Iterator[Iterable[Fit]]:
    """Yield logistic regressions without bias, their weights divided by their norm to the power tau."""
    for fit in data.logistic_path(sampling, adjustment, intercept=False):
        yield (fits.normalise_by_tau(fit, tau) for tau in TAUS)  # one at a time, to save memory


def lws(data: HeadData, sampling: str, adjustment: str) -> Iterator[Iterable[Fit]]:
    """Yield logistic regressions with one scale per class, learned with class balancing."""
    for fit in data.logistic_path(sampling, adjustment):
        yield [fits.fit_class_scales(fit, *data.train, data.image_weights("class-balanced"))]


def target(data: HeadData, sampling: str, adjustment: str) -> Iterator[Iterable[Fit]]:
    """Yield the classifier that predicts the TSC target nearest to the projected feature. Nothing is fitted."""
    projection, targets = data.parts["targets"]
    yield [Fit(targets, torch.zeros(len(targets)), scale=COSINE_SCALE, projection=projection)]


def own(data: HeadData, sampling: str, adjustment: str) -> Iterator[Iterable[Fit]]:
    """Yield the classifier that the network was trained with. Nothing is fitted."""
    weight, bias, scale, projection = data.parts["classifier"]
    yield [Fit(weight, bias, scale=scale, projection=projection)]
