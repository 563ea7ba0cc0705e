"""Fitted classifiers against references of their own: scikit-learn, NumPy, formulas by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize

from moco.heads import fits
from moco.heads.classifiers import CosineClassifier, linear_classifier

C, D = 4, 6
COUNTS = [40, 20, 8, 3]


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def data(request):
    """Overlapping clouds of four classes, 40 to 3 points."""
    torch.manual_seed(0)
    labels = torch.arange(C).repeat_interleave(torch.tensor(COUNTS))
    features = 1.5 * torch.randn(C, D, dtype=torch.float64)[labels] + torch.randn(len(labels), D, dtype=torch.float64)
    return features.to(request.param), labels


def objective(features, labels, weight, bias, strength, weights=None, offset=0.0) -> float:
    """scikit-learn's, divided by n·C."""
    logits = features.double() @ weight.double().T + bias.double() + offset
    losses = cross_entropy(logits, labels, reduction="none")
    share = torch.ones(len(labels)) if weights is None else weights
    return float((share * losses).mean() + weight.double().square().sum() / (2 * len(labels) * strength))


@pytest.mark.parametrize("balanced", [False, True], ids=["images", "classes"])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_logistic_is_scikit_learns(data, strength, balanced):
    features, labels = data
    weights = fits.class_weights(labels, C) if balanced else None
    fit = fits.logistic(features, labels, C, strength, weights)
    theirs = LogisticRegression(C=strength, class_weight="balanced" if balanced else None, tol=1e-8, max_iter=5000)
    theirs.fit(features.double().numpy(), labels.numpy())
    reference = [torch.from_numpy(array) for array in (theirs.coef_, theirs.intercept_)]
    assert fit.converged
    ours = objective(features, labels, fit.weight, fit.bias, strength, weights)
    assert ours == pytest.approx(objective(features, labels, *reference, strength, weights), abs=1e-4)
    logits = features.double() @ fit.weight.T + fit.bias
    probabilities = theirs.predict_proba(features.double().numpy())
    np.testing.assert_allclose(logits.softmax(1), probabilities, atol=1e-3 if features.dtype == torch.float64 else 0.05)


def test_logit_adjustment_while_it_trains_is_an_offset_of_the_logits(data):
    """At the optimum no direction is downhill, and the offset is not part of the classifier."""
    features, labels = data
    offset = fits.log_prior(torch.tensor(COUNTS))
    fit = fits.logistic(features, labels, C, 1.0, offset=offset)
    best = objective(features, labels, fit.weight, fit.bias, 1.0, offset=offset)
    for _ in range(20):
        weight, bias = fit.weight + 0.01 * torch.randn(C, D), fit.bias + 0.01 * torch.randn(C)
        assert objective(features, labels, weight, bias, 1.0, offset=offset) > best
    plain = fits.logistic(features, labels, C, 1.0)
    predicted = [((features.double() @ f.weight.T + f.bias).argmax(1) == C - 1).sum() for f in (fit, plain)]
    assert predicted[0] > predicted[1]  # of the rarest class


def test_the_prior_and_the_weights_by_hand():
    assert fits.log_prior(torch.tensor([6, 3, 1])).exp().tolist() == pytest.approx([0.6, 0.3, 0.1])
    weights = fits.class_weights(torch.tensor([0, 0, 0, 2]), 3)
    assert weights.tolist() == pytest.approx([4 / 6] * 3 + [2.0]) and weights.mean() == pytest.approx(1)


def test_a_fit_that_does_not_arrive_says_so(data, monkeypatch):
    monkeypatch.setattr(fits, "MOST_STEPS", 2)
    assert not fits.logistic(*data, C, 100.0).converged
    assert not fits.cosine(*data, C).converged


def test_a_start_near_the_end_changes_only_the_way(data):
    features, labels = data
    cold = fits.logistic(features, labels, C, 1.0)
    warm = fits.logistic(features, labels, C, 1.0, start=fits.logistic(features, labels, C, 0.1))
    torch.testing.assert_close(warm.weight, cold.weight, rtol=0, atol=1e-3 if features.dtype == torch.float64 else 0.05)


def test_class_means_are_numpys(data):
    features, labels = data
    means = fits.class_means(features, labels, C + 1)
    expected = [features[labels == c].double().numpy().mean(0) for c in range(C)]
    np.testing.assert_allclose(means[:C], expected, atol=1e-6)
    assert not means[C].any()


def test_tau_by_hand(data):
    fit = fits.logistic(*data, C, 1.0)
    for tau in (0.0, 0.4, 1.0):
        rows = torch.stack([w / np.sqrt(float(w @ w)) ** tau for w in fit.weight])
        normalised = fits.tau_normalised(fit, tau)
        torch.testing.assert_close(normalised.weight, rows, rtol=1e-12, atol=1e-12)
        assert not normalised.bias.any()


def test_scales_are_where_no_step_is_downhill(data):
    features, labels = data
    base, weights = fits.logistic(features, labels, C, 1.0), fits.class_weights(labels, C)
    fit = fits.learned_scales(base, features, labels, weights)

    def loss(weight):
        logits = features.double() @ weight.T + base.bias
        return float((weights * cross_entropy(logits, labels, reduction="none")).mean())

    scales = (fit.weight / base.weight).mean(1)
    torch.testing.assert_close(scales[:, None] * base.weight, fit.weight)
    assert fit.converged and loss(fit.weight) < loss(base.weight)
    for _ in range(20):
        assert loss((scales + 0.01 * torch.randn(C))[:, None] * base.weight) > loss(fit.weight)


def test_the_cosine_classifier_is_where_torchs_gradient_vanishes(data):
    features, labels = data
    weights = fits.class_weights(labels, C)
    fit = fits.cosine(features, labels, C, weights)
    direction, scale = (
        fit.weight.clone().requires_grad_(),
        torch.tensor(fit.scale, dtype=torch.float64).requires_grad_(),
    )
    logits = scale * normalize(features.double(), dim=1) @ normalize(direction, dim=1).T
    (weights * cross_entropy(logits, labels, reduction="none")).mean().backward()
    flat = 1e-5 if features.dtype == torch.float64 else 1e-3
    assert fit.converged and direction.grad.abs().max() < flat and scale.grad.abs() < flat


def test_blocks_change_nothing(data, monkeypatch):
    whole = fits.logistic(*data, C, 1.0)
    monkeypatch.setattr(fits, "BLOCK", 5)
    torch.testing.assert_close(fits.logistic(*data, C, 1.0).weight, whole.weight, rtol=0, atol=1e-3)


def test_classifiers_give_the_logits_of_their_fit(data):
    features = data[0].float()
    weight, bias = torch.randn(C, D), torch.randn(C)
    torch.testing.assert_close(linear_classifier(weight, bias)(features), features @ weight.T + bias)
    cosines = normalize(features, dim=1) @ normalize(weight, dim=1).T
    torch.testing.assert_close(CosineClassifier(weight, 3.0, bias)(features), 3 * cosines + bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CosineClassifier(weight, 3.0)(features.bfloat16()).dtype == torch.float32
