"""Which candidate of a head is selected, and how fits that did not converge are reported."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from moco.heads import HEADS, Head, fits, selection
from moco.heads.classifiers import ABSENT_CLASS_LOGIT, Fit, fitted_classifier
from moco.heads.data import HeadData
from moco.heads.head_flags import compared_settings
from moco.heads.selection import head_title, select_head
from tests.refusals import assert_names, line_with, refusal
from utils.measure.feature_cache import Features
from utils.run.compute import ComputeConfig

C, D = 4, 6
COUNTS = [60, 20, 6, 3]
CPU = torch.device("cpu")


def clouds(counts: list[int], seed: int) -> Features:
    """Return overlapping clouds with the same class centres for any seed."""
    centres = 1.2 * torch.randn(len(counts), D, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed))
    return Features(centres[labels] + noise, labels)


def head_data(counts=tuple(COUNTS), **options) -> HeadData:
    train = clouds(list(counts), 1)
    train = Features(train.features.double(), train.labels)
    val, test = (clouds([20] * len(counts), seed) for seed in (2, 3))
    return HeadData(train, val, test, np.array(counts), ComputeConfig(CPU), "val", **options)


@pytest.fixture(scope="module")
def complete_data() -> HeadData:
    """Return data with everything that a head can need."""
    targets = nn.Linear(D, 3), normalize(torch.randn(C, 3), dim=1)
    return head_data(parts={"targets": targets, "classifier": (torch.randn(C, D), torch.randn(C), None, None)})


FITTED = [(name, *balancing) for name, head in HEADS.items() if head.is_fitted for balancing in compared_settings(head)]


@pytest.mark.parametrize(("name", "sampling", "adjustment"), FITTED)
def test_entry_of_head_matches_its_classifier(name, sampling, adjustment, complete_data):
    """Recomputes the entry's test accuracy from its classifier. The classifier is restored from its state dict."""
    chosen = select_head(name, sampling, adjustment, complete_data)
    z, y = complete_data.test
    logits = chosen.classifier(z)
    hits = [float((logits.argmax(1) == y)[y == c].float().mean() * 100) for c in range(C)]
    assert chosen.entry["per_class"] == pytest.approx(hits)
    assert chosen.entry["balanced"] == pytest.approx(np.mean(hits)) == chosen.entry["acc1"]
    assert chosen.entry["worst"] == pytest.approx(min(hits))
    assert all(value in chosen.tried[what] for what, value in chosen.entry["values"].items())
    assert (chosen.entry["ece"] is None) == (chosen.entry["loss"] is None) == (name in ("ncm", "target"))
    assert ("t" in chosen.tried) == (adjustment == "post")
    weights = {f"fc.{key}": value for key, value in chosen.classifier.state_dict().items()}
    again = fitted_classifier(weights, "x")
    again.load_state_dict(chosen.classifier.state_dict())
    assert torch.equal(again(z), logits)


def toy_head(*logits_of_val, converged=True):
    """Return a head whose candidates have these constant logits, whatever the features."""

    def candidates(data, sampling, adjustment):
        for number, bias in enumerate(logits_of_val):
            yield [Fit(torch.zeros(C, D), torch.tensor(bias), {"l2": number}, converged)]

    return Head("", candidates=candidates)


BETTER, WORSE = [1.0, 0, 0, 0], [0.0, 0, 0, 0]  # one class of four is right; ties count as wrong


def select_toy_head(monkeypatch, *biases, **options):
    monkeypatch.setitem(HEADS, "toy", toy_head(*biases, **options))
    return select_head("toy", "instance", "off", head_data())


CONFIDENT = [3.0, 0, 0, 0]  # as accurate as BETTER, but with a larger loss on the classes that it gets wrong


def test_ties_are_broken_by_loss_and_then_by_order(monkeypatch):
    assert select_toy_head(monkeypatch, WORSE, CONFIDENT, BETTER, BETTER).entry["values"] == {"l2": 2}
    assert select_toy_head(monkeypatch, WORSE, BETTER, CONFIDENT).entry["values"] == {"l2": 1}


def test_loss_does_not_break_ties_of_uncalibrated_heads(monkeypatch):
    monkeypatch.setitem(HEADS, "ncm", toy_head(CONFIDENT, BETTER))
    assert select_head("ncm", "instance", "off", head_data()).entry["values"] == {"l2": 0}


def test_two_penalties_without_gain_end_the_path(monkeypatch):
    assert select_toy_head(monkeypatch, BETTER, WORSE, WORSE, WORSE).tried == {"l2": [0, 1, 2]}
    assert select_toy_head(monkeypatch, WORSE, WORSE, BETTER, WORSE, WORSE).tried == {"l2": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize(("large", "tried"), [(80, [0, 1, 2]), (79, [0, 1])])
def test_large_validation_split_ends_the_path_after_one_penalty(large, tried, monkeypatch):
    """The split has 80 images."""
    monkeypatch.setattr(selection, "LARGE_VAL_SPLIT", large)
    assert select_toy_head(monkeypatch, BETTER, WORSE, WORSE, WORSE).tried == {"l2": tried}


def test_search_continues_until_a_fit_converges(monkeypatch):
    """The first three penalties fail, and so does the first fit of the fourth."""
    failed = Fit(torch.zeros(C, D), torch.tensor(BETTER), {"l2": 1.0}, converged=False)
    good = Fit(torch.zeros(C, D), torch.tensor(WORSE), {"l2": 0.1})
    path = [[failed], [failed], [failed], [failed, good]]
    monkeypatch.setitem(HEADS, "toy", Head("", candidates=lambda *_: iter(path)))
    assert select_head("toy", "instance", "off", head_data()).entry["values"] == {"l2": 0.1}


def test_search_ends_when_fits_no_longer_converge(monkeypatch, capsys):
    fitted = [Fit(torch.zeros(C, D), torch.tensor(bias), {"l2": 0.1**n}) for n, bias in enumerate((WORSE, BETTER))]
    path = [[fitted[0]], [fitted[1]._replace(converged=False)], [fitted[1]]]
    monkeypatch.setitem(HEADS, "toy", Head("", candidates=lambda *_: iter(path)))
    chosen = select_head("toy", "instance", "off", head_data())
    assert chosen.entry["values"] == {"l2": 1.0} and chosen.tried == {"l2": [1.0, 0.1]}
    assert_names(line_with(capsys.readouterr().out, "did not converge"), "l2 0.1", "the search ended")


def test_search_continues_if_one_of_several_fits_converges(monkeypatch):
    worse, better = (Fit(torch.zeros(C, D), torch.tensor(bias)) for bias in (WORSE, BETTER))
    path = [[worse], [worse._replace(converged=False), worse], [better._replace(hyperparameters={"l2": 0.1})]]
    monkeypatch.setitem(HEADS, "toy", Head("", candidates=lambda *_: iter(path)))
    assert select_head("toy", "instance", "off", head_data()).entry["values"] == {"l2": 0.1}


@pytest.mark.parametrize("name", ["t", "tau"])
def test_unconverged_fit_is_reported_and_not_selected(name, monkeypatch, capsys):
    better = Fit(torch.zeros(C, D), torch.tensor(BETTER))
    unconverged = [better._replace(hyperparameters={"l2": 1.0, name: x}, converged=False) for x in (0.0, 1.0)]
    worse = Fit(torch.zeros(C, D), torch.tensor(WORSE), {"l2": 0.1, name: 0.0})
    monkeypatch.setitem(HEADS, "toy", Head("", candidates=lambda *_: iter([unconverged, [worse]])))
    assert select_head("toy", "instance", "off", head_data()).entry["values"] == {"l2": 0.1, name: 0.0}
    line_with(capsys.readouterr().out, "toy", "l2 1")
    refusal(lambda: select_toy_head(monkeypatch, BETTER, converged=False), "toy")


def test_selection_is_by_class_balanced_accuracy(monkeypatch):
    """Of 100 validation images 90 are of class 0. Always answering 0 has 90 % accuracy, but 50 % balanced accuracy."""
    features = torch.cat([torch.full((90, 1), 1.0), torch.full((10, 1), -1.0)])
    features[:30] *= -1  # a third of class 0 looks like class 1
    labels = torch.tensor([0] * 90 + [1] * 10)
    always = Fit(torch.zeros(2, 1), torch.tensor([1.0, 0]), {"x": 0})
    by_sign = Fit(torch.tensor([[1.0], [-1.0]]), torch.zeros(2), {"x": 1})
    monkeypatch.setitem(HEADS, "toy", Head("", candidates=lambda *_: iter([[always, by_sign]])))
    split = Features(features, labels)
    data = HeadData(split, split, split, np.array([90, 10]), ComputeConfig(CPU), "val")
    chosen = select_head("toy", "instance", "off", data)
    assert chosen.entry["values"] == {"x": 1} and chosen.entry["val_balanced"] == pytest.approx((200 / 3 + 100) / 2)
    assert chosen.entry["val_acc1"] == pytest.approx(70)


@pytest.mark.parametrize(
    ("name", "sampling", "adjustment"), [balancing for balancing in FITTED if balancing[0] not in ("target", "own")]
)
def test_classes_with_no_and_with_one_training_image_are_fitted(name, sampling, adjustment):
    """The class without images is never predicted."""
    chosen = select_head(name, sampling, adjustment, head_data((40, 10, 1, 0)))
    assert chosen.classifier.bias[3] == ABSENT_CLASS_LOGIT and chosen.entry["per_class"][3] == 0
    assert chosen.entry["harmonic"] == 0 == chosen.entry["worst"]


def test_prior_is_subtracted_t_times():
    fit, log_prior = Fit(torch.zeros(C, D), torch.arange(C).double()), torch.tensor([0.5, 0.3, 0.1, 0.1]).double().log()
    for adjusted in selection.subtract_prior([fit], log_prior):
        torch.testing.assert_close(adjusted.bias, fit.bias - adjusted.hyperparameters["t"] * log_prior)


def test_post_adjustment_subtracts_t_times_log_prior():
    """Compares the selected t with the same regression by plain functions."""
    data = head_data()
    chosen = select_head("logistic", "instance", "post", data)
    values = chosen.entry["values"]
    path = {fit.hyperparameters["l2"]: fit for fit in data.logistic_path("instance", "off")}
    prior = torch.tensor([math.log(n / sum(COUNTS)) for n in COUNTS])
    torch.testing.assert_close(chosen.classifier.bias, (path[values["l2"]].bias - values["t"] * prior).float())
    torch.testing.assert_close(chosen.classifier.weight, path[values["l2"]].weight.float())


def test_tau_head_uses_regression_without_bias():
    data = head_data()
    chosen = select_head("tau", "instance", "off", data)
    l2, tau = (chosen.entry["values"][name] for name in ("l2", "tau"))
    plain = fits.fit_logistic(*data.train, C, l2, feature_scale=data.feature_scale, intercept=False).weight
    for row, normalised in zip(plain, chosen.classifier.weight, strict=True):
        torch.testing.assert_close(normalised.double(), row / row.norm() ** tau, rtol=1e-3, atol=1e-3)
    assert sorted(set(chosen.tried["tau"])) == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


def test_heads_that_share_a_regression_fit_it_once(monkeypatch):
    data, fitted = head_data(), []
    logistic = fits.fit_logistic
    monkeypatch.setattr(fits, "fit_logistic", lambda *a, **k: fitted.append(a[3]) or logistic(*a, **k))
    chosen = select_head("logistic", "instance", "post", data)
    best = chosen.entry["values"]["l2"]
    assert fitted[-1] == pytest.approx(max(best / 100, 1e-5))  # the path ends two penalties after the best
    plain = next(data.logistic_path("instance", "off")).bias.clone()
    select_head("logistic", "instance", "train", data)
    select_head("lws", "instance", "off", data)
    assert len(set(fitted)) == len(fitted)  # each penalty is fitted at most once
    assert torch.equal(next(data.logistic_path("instance", "off")).bias, plain)


def test_slow_search_reports_its_minutes(capsys):
    for seconds in (1, 120):
        selection.log_if_slow(f"fit of {seconds} s", time.monotonic() - seconds)
    assert line_with(capsys.readouterr().out, "fit of", "2.0 min")


def test_head_titles():
    assert head_title("logistic", "instance", "post") == "logistic, post"
    assert head_title("cosine", "class-balanced", "off") == "cosine, class-balanced"
    assert head_title("ncm", "instance", "off") == "ncm"
