"""All candidates of a head, not only the selected one, against formulas and NumPy."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from moco.heads import HEADS, Head, candidates
from moco.heads.candidates import PRIOR_STRENGTHS, Balancing, Candidate, FitInputs
from moco.heads.classifiers import linear_classifier
from moco.heads.selection import FeatureLoader, HeadData, select_head
from tests.heads.test_selection import COUNTS, CPU, C, D, head_data
from utils.measure.feature_cache import Features
from utils.run.compute import ComputeConfig


@pytest.mark.parametrize("head", [candidates.logistic_candidates, candidates.cosine_candidates])
def test_shift_subtracts_t_times_log_prior(head):
    prior = torch.tensor([math.log(n / sum(COUNTS)) for n in COUNTS])
    for candidates_of_fit in head(head_data().inputs, Balancing(post_adjusted=True)):
        plain, *shifted = candidates_of_fit
        assert [candidate.hyperparameters["t"] for candidate in candidates_of_fit] == list(
            PRIOR_STRENGTHS
        ) and plain.hyperparameters["t"] == 0
        for candidate in shifted:
            subtracted = plain.classifier.bias - candidate.classifier.bias
            torch.testing.assert_close(subtracted, candidate.hyperparameters["t"] * prior, rtol=1e-4, atol=1e-4)
            assert torch.equal(plain.classifier.weight, candidate.classifier.weight)


def test_own_classifier_of_network_is_shifted_too():
    weight, bias, prior = torch.randn(C, D), torch.randn(C), torch.tensor([math.log(n / sum(COUNTS)) for n in COUNTS])
    (candidates_of_fit,) = candidates.own_candidates(
        head_data(classifier=(weight, bias)).inputs, Balancing(post_adjusted=True)
    )
    for candidate in candidates_of_fit:
        torch.testing.assert_close(candidate.classifier.bias, bias - candidate.hyperparameters["t"] * prior)


def test_nearest_class_mean_matches_numpy():
    data = head_data()
    z, y = (tensor.numpy() for tensor in (data.inputs.features, data.inputs.labels))
    means = np.stack([z[y == c].mean(0) for c in range(C)])
    directions = np.stack([(z / np.linalg.norm(z, axis=1, keepdims=True))[y == c].mean(0) for c in range(C)])
    ((by_cosine, by_distance),) = candidates.ncm_candidates(data.inputs, Balancing())
    points = data.splits["test"].split_features.features
    distances = ((points.numpy()[:, None] - means) ** 2).sum(2)
    assert (by_distance.classifier(points).argmax(1).numpy() == distances.argmin(1)).all()
    cosines = normalize(points, dim=1).numpy() @ normalize(torch.tensor(directions), dim=1).numpy().T
    assert (by_cosine.classifier(points).argmax(1).numpy() == cosines.argmax(1)).all()


def test_selection_depends_only_on_validation(monkeypatch):
    """Validation has only class 0, test only class 1. The head that always answers 0 is selected, with 0 % on test."""
    answers = [linear_classifier(torch.zeros(2, 1), torch.tensor(bias)) for bias in ([0.0, 1], [1.0, 0])]
    candidates_of_fit = [Candidate({"answer": 1 - number}, classifier) for number, classifier in enumerate(answers)]
    monkeypatch.setitem(HEADS, "toy", Head("", candidates=lambda inputs, balancing: iter([candidates_of_fit])))
    splits = {
        name: FeatureLoader(Features(torch.ones(6, 1), torch.full((6,), c)), CPU)
        for c, name in enumerate(("val", "test"))
    }
    inputs = FitInputs(torch.ones(2, 1), torch.arange(2), torch.tensor([1, 1]))
    entry = select_head("toy", "instance", "off", HeadData(inputs, splits, ComputeConfig(CPU), "val")).entry
    assert entry["values"] == {"answer": 0} and (entry["val_acc1"], entry["acc1"]) == (100, 0)
