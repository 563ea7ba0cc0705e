"""Fitted classifiers against independent references: scikit-learn, NumPy and formulas."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize

from moco.heads import fits
from moco.heads.classifiers import CosineClassifier, linear_classifier
from moco.heads.data import HeadData
from moco.losses import log_prior
from utils.measure.feature_cache import Features
from utils.run.compute import ComputeConfig

C, D = 4, 6
COUNTS = [40, 20, 8, 3]


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def data(request):
    """Return overlapping clouds of four classes, with 40 to 3 points."""
    torch.manual_seed(0)
    labels = torch.arange(C).repeat_interleave(torch.tensor(COUNTS))
    features = 1.5 * torch.randn(C, D, dtype=torch.float64)[labels] + torch.randn(len(labels), D, dtype=torch.float64)
    return features.to(request.param), labels


def objective(features, labels, weight, bias, l2, weights=None, offset=0.0) -> float:
    """Return scikit-learn's objective with C = 1 / (n·l2), divided by n·C."""
    logits = features.double() @ weight.double().T + bias.double() + offset
    losses = cross_entropy(logits, labels, reduction="none")
    share = torch.ones(len(labels)) if weights is None else weights
    return float((share * losses).mean() + l2 / 2 * weight.double().square().sum())


@pytest.mark.parametrize("balanced", [False, True], ids=["images", "classes"])
@pytest.mark.parametrize("intercept", [True, False], ids=["with b", "without"])
@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_logistic_matches_scikit_learn(data, l2, intercept, balanced):
    features, labels = data
    weights = fits.balanced_image_weights(labels, C) if balanced else None
    fit = fits.fit_logistic(features, labels, C, l2, weights, intercept=intercept)
    options = {"class_weight": "balanced" if balanced else None, "fit_intercept": intercept}
    theirs = LogisticRegression(C=1 / (len(labels) * l2), tol=1e-8, max_iter=5000, **options)
    theirs.fit(features.double().numpy(), labels.numpy())
    reference = torch.from_numpy(theirs.coef_), torch.from_numpy(np.broadcast_to(theirs.intercept_, C).copy())
    assert fit.converged and fit.bias.any() == intercept
    ours = objective(features, labels, fit.weight, fit.bias, l2, weights)
    assert ours == pytest.approx(objective(features, labels, *reference, l2, weights), abs=1e-4)
    logits = features.double() @ fit.weight.T + fit.bias
    probabilities = theirs.predict_proba(features.double().numpy())
    np.testing.assert_allclose(logits.softmax(1), probabilities, atol=1e-3 if features.dtype == torch.float64 else 0.05)


def test_unit_vectors_scales_the_features(data):
    features, labels = data
    exact = features.dtype == torch.float64
    longer, fit = (
        fits.fit_logistic(7 * features, labels, C, 0.01),
        fits.fit_logistic(features, labels, C, 0.01, feature_scale=7.0),
    )
    torch.testing.assert_close(fit.weight, 7 * longer.weight, rtol=0, atol=0.01 if exact else 0.2)
    torch.testing.assert_close(fit.bias, longer.bias, rtol=0, atol=1e-3 if exact else 0.2)


def test_logistic_converges_on_features_far_from_0(data):
    """A shift of the features changes only the bias."""
    features, labels = data
    fit, shifted_fit = (fits.fit_logistic(z, labels, C, 0.01) for z in (features, features + 10))
    assert shifted_fit.converged
    torch.testing.assert_close(
        shifted_fit.weight, fit.weight, rtol=0, atol=1e-3 if features.dtype == torch.float64 else 0.05
    )


def test_logistic_with_logit_adjustment_train_is_optimal(data):
    """With the log prior added to the logits no direction is downhill; it is not part of the classifier."""
    split, offset = Features(*data), log_prior(torch.tensor(COUNTS))
    head_data = HeadData(split, split, split, np.array(COUNTS), ComputeConfig(torch.device("cpu")), "val")
    plain, fit = ([*head_data.logistic_path("instance", adjustment)][2] for adjustment in ("off", "train"))
    features, labels = data
    l2 = fit.hyperparameters["l2"] / head_data.feature_scale**2
    best = objective(features, labels, fit.weight, fit.bias, l2, offset=offset)
    for _ in range(20):
        weight, bias = fit.weight + 0.02 * torch.randn(C, D), fit.bias + 0.02 * torch.randn(C)
        assert objective(features, labels, weight, bias, l2, offset=offset) > best
    predicted = [((features.double() @ f.weight.T + f.bias).argmax(1) == C - 1).sum() for f in (fit, plain)]
    assert predicted[0] > predicted[1]  # predictions of the rarest class


def test_log_prior_and_class_weights_match_hand_computed_values():
    assert log_prior(torch.tensor([6, 3, 1])).exp().tolist() == pytest.approx([0.6, 0.3, 0.1])
    weights = fits.balanced_image_weights(torch.tensor([0, 0, 0, 2]), 3)
    assert weights.tolist() == pytest.approx([4 / 6] * 3 + [2.0]) and weights.mean() == pytest.approx(1)


def test_fit_reports_that_it_did_not_converge(data, monkeypatch):
    monkeypatch.setattr(fits, "MAX_ITERATIONS", 2)
    assert not fits.fit_logistic(*data, C, 1e-4).converged
    assert not fits.fit_cosine(*data, C, 1e-4).converged


def test_warm_start_reaches_the_same_optimum(data):
    features, labels = data
    cold = fits.fit_logistic(features, labels, C, 0.01)
    warm = fits.fit_logistic(features, labels, C, 0.01, start=fits.fit_logistic(features, labels, C, 0.1))
    tolerance = 1e-3 if features.dtype == torch.float64 else 0.05
    torch.testing.assert_close(warm.weight, cold.weight, rtol=0, atol=tolerance)
    torch.testing.assert_close(warm.bias, cold.bias, rtol=0, atol=tolerance)


def test_class_means_match_numpy(data):
    features, labels = data
    means = fits.class_means(features, labels, C + 1)
    expected = [features[labels == c].double().numpy().mean(0) for c in range(C)]
    np.testing.assert_allclose(means[:C], expected, atol=1e-6)
    assert not means[C].any()
    directions = fits.class_means(7 * features, labels, C, normalise_features=True)
    np.testing.assert_allclose(directions, fits.class_means(normalize(features, dim=1), labels, C), atol=1e-6)


def test_tau_normalisation_matches_formula(data):
    fit = fits.fit_logistic(*data, C, 0.01)
    for tau in (0.0, 0.4, 1.0):
        rows = torch.stack([w / np.sqrt(float(w @ w)) ** tau for w in fit.weight])
        normalised = fits.normalise_by_tau(fit, tau)
        torch.testing.assert_close(normalised.weight, rows, rtol=1e-12, atol=1e-12)
        assert not normalised.bias.any()


def test_class_scales_are_optimal(data):
    features, labels = data
    base, weights = fits.fit_logistic(features, labels, C, 0.01), fits.balanced_image_weights(labels, C)
    fit = fits.fit_class_scales(base, features, labels, weights)

    def loss(weight):
        logits = features.double() @ weight.T + base.bias
        return float((weights * cross_entropy(logits, labels, reduction="none")).mean())

    scales = (fit.weight / base.weight).mean(1)
    torch.testing.assert_close(scales[:, None] * base.weight, fit.weight)
    assert fit.converged and loss(fit.weight) < loss(base.weight)
    for _ in range(20):
        assert loss((scales + 0.01 * torch.randn(C))[:, None] * base.weight) > loss(fit.weight)


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_gradient_vanishes_at_fitted_cosine_classifier(data, l2):
    features, labels = data
    weights = fits.balanced_image_weights(labels, C)
    fit = fits.fit_cosine(features, labels, C, l2, weights)
    direction = fit.weight.clone().requires_grad_()
    scale = torch.tensor(fit.scale, dtype=torch.float64).requires_grad_()
    logits = scale * normalize(features.double(), dim=1) @ normalize(direction, dim=1).T
    ((weights * cross_entropy(logits, labels, reduction="none")).mean() + l2 / 2 * scale**2).backward()
    flat = 1e-5 if features.dtype == torch.float64 else 2e-3
    assert fit.converged and direction.grad.abs().max() < flat and scale.grad.abs() < flat


def test_blocks_do_not_change_the_fit(data, monkeypatch):
    whole = fits.fit_logistic(*data, C, 0.01)
    monkeypatch.setattr(fits, "BLOCK", 5)
    torch.testing.assert_close(fits.fit_logistic(*data, C, 0.01).weight, whole.weight, rtol=0, atol=1e-3)


def test_classifiers_compute_the_logits_of_their_fit(data):
    features = data[0].float()
    weight, bias = torch.randn(C, D), torch.randn(C)
    torch.testing.assert_close(linear_classifier(weight, bias)(features), features @ weight.T + bias)
    cosines = normalize(features, dim=1) @ normalize(weight, dim=1).T
    torch.testing.assert_close(CosineClassifier(weight, 3.0, bias)(features), 3 * cosines + bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CosineClassifier(weight, 3.0)(features.bfloat16()).dtype == torch.float32
