"""All candidates of a head, not only the selected one, against formulas and NumPy."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from moco.heads import HEADS, Head, candidates
from moco.heads.candidates import PRIOR_STRENGTHS
from moco.heads.classifiers import Fit
from moco.heads.data import HeadData
from moco.heads.selection import select_head, subtract_prior
from tests.heads.test_selection import COUNTS, CPU, C, D, head_data
from utils.measure.feature_cache import Features
from utils.run.compute import ComputeConfig


def test_post_adjustment_subtracts_t_times_log_prior_from_the_bias():
    fit = Fit(torch.randn(C, D), torch.randn(C), {"l2": 0.1})
    prior = torch.tensor(COUNTS).double().div(sum(COUNTS)).log()
    adjusted = list(subtract_prior([fit], prior))
    assert [one.hyperparameters for one in adjusted] == [{"l2": 0.1, "t": t} for t in PRIOR_STRENGTHS]
    for one in adjusted:
        torch.testing.assert_close(one.bias, fit.bias - one.hyperparameters["t"] * prior)
        assert torch.equal(one.weight, fit.weight)


@pytest.mark.parametrize("name", ["logistic", "cosine", "own"])
def test_post_adjustment_tries_every_t_of_every_fit(name):
    own = torch.randn(C, D), torch.randn(C), None, None
    tried = select_head(name, "instance", "post", head_data(parts={"classifier": own})).tried
    assert tried["t"] == list(PRIOR_STRENGTHS)


def test_nearest_class_mean_matches_numpy():
    data = head_data()
    z, y = (tensor.numpy() for tensor in data.train)
    means = np.stack([z[y == c].mean(0) for c in range(C)])
    directions = np.stack([(z / np.linalg.norm(z, axis=1, keepdims=True))[y == c].mean(0) for c in range(C)])
    (both,) = candidates.ncm(data, "instance", "off")
    by_cosine, by_distance = (fit.build_module(data.counts) for fit in both)
    points = data.test.features
    distances = ((points.numpy()[:, None] - means) ** 2).sum(2)
    assert (by_distance(points).argmax(1).numpy() == distances.argmin(1)).all()
    cosines = normalize(points, dim=1).numpy() @ normalize(torch.tensor(directions), dim=1).numpy().T
    assert (by_cosine(points).argmax(1).numpy() == cosines.argmax(1)).all()


def test_selection_depends_only_on_validation(monkeypatch):
    """Validation has only class 0, test only class 1. The head that always answers 0 is selected, with 0 % on test."""
    answers = {0: torch.tensor([1.0, 0]), 1: torch.tensor([0.0, 1])}
    fits = [Fit(torch.zeros(2, 1), bias, {"answer": answer}) for answer, bias in answers.items()]
    monkeypatch.setitem(HEADS, "toy", Head("", candidates=lambda *_: iter([fits])))
    train, val, test = (Features(torch.ones(len(y), 1), torch.tensor(y)) for y in ([0, 1], [0] * 6, [1] * 6))
    data = HeadData(train, val, test, np.array([1, 1]), ComputeConfig(CPU), "val")
    entry = select_head("toy", "instance", "off", data).entry
    assert entry["values"] == {"answer": 0} and (entry["val_acc1"], entry["acc1"]) == (100, 0)
