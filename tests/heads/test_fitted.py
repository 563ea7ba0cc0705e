"""Every candidate of a head, not only the one that is chosen, by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from moco.heads import HEADS, Head, fitted
from moco.heads.choice import Split, Task, choose
from moco.heads.classifiers import linear_classifier
from moco.heads.fitted import SHIFTS, Candidate, Problem, Way
from tests.heads.test_choice import COUNTS, CPU, C, D, task
from utils.measure.kept_features import Features
from utils.run.compute import ComputeConfig


@pytest.mark.parametrize("head", [fitted.logistic, fitted.cosine])
def test_each_shift_takes_t_times_the_log_of_the_share_off(head):
    prior = torch.tensor([math.log(n / sum(COUNTS)) for n in COUNTS])
    for together in head(task().problem, Way(shifted=True)):
        plain, *shifted = together
        assert [candidate.values["t"] for candidate in together] == list(SHIFTS) and plain.values["t"] == 0
        for candidate in shifted:
            taken_off = plain.classifier.bias - candidate.classifier.bias
            torch.testing.assert_close(taken_off, candidate.values["t"] * prior, rtol=1e-4, atol=1e-4)
            assert torch.equal(plain.classifier.weight, candidate.classifier.weight)


def test_the_networks_own_classifier_is_shifted_too():
    weight, bias, prior = torch.randn(C, D), torch.randn(C), torch.tensor([math.log(n / sum(COUNTS)) for n in COUNTS])
    (together,) = fitted.own_classifier(task(own=(weight, bias)).problem, Way(shifted=True))
    for candidate in together:
        torch.testing.assert_close(candidate.classifier.bias, bias - candidate.values["t"] * prior)


def test_the_nearest_mean_is_numpys_by_cosine_and_by_distance():
    of = task()
    z, y = (tensor.numpy() for tensor in (of.problem.features, of.problem.labels))
    means = np.stack([z[y == c].mean(0) for c in range(C)])
    directions = np.stack([(z / np.linalg.norm(z, axis=1, keepdims=True))[y == c].mean(0) for c in range(C)])
    ((by_cosine, by_distance),) = fitted.nearest_mean(of.problem, Way())
    points = of.splits["test"].found.features
    distances = ((points.numpy()[:, None] - means) ** 2).sum(2)
    assert (by_distance.classifier(points).argmax(1).numpy() == distances.argmin(1)).all()
    cosines = normalize(points, dim=1).numpy() @ normalize(torch.tensor(directions), dim=1).numpy().T
    assert (by_cosine.classifier(points).argmax(1).numpy() == cosines.argmax(1)).all()


def test_validation_chooses_and_test_has_no_say(monkeypatch):
    """Class 0 is all there is on val, class 1 on test: who always answers 0 is chosen, and is wrong for all of test."""
    answers = [linear_classifier(torch.zeros(2, 1), torch.tensor(bias)) for bias in ([0.0, 1], [1.0, 0])]
    together = [Candidate({"answer": 1 - number}, classifier) for number, classifier in enumerate(answers)]
    monkeypatch.setitem(HEADS, "toy", Head("", fit=lambda problem, way: iter([together])))
    splits = {
        name: Split(Features(torch.ones(6, 1), torch.full((6,), c)), CPU) for c, name in enumerate(("val", "test"))
    }
    problem = Problem(torch.ones(2, 1), torch.arange(2), torch.tensor([1, 1]))
    entry = choose("toy", "instance", "off", Task(problem, splits, ComputeConfig(CPU), "val")).entry
    assert entry["values"] == {"answer": 0} and (entry["val_acc1"], entry["acc1"]) == (100, 0)
