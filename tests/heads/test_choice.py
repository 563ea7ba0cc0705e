"""Which candidate of a head is taken, by the one rule, and what is said of those that are none."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from moco.heads import HEADS, Head, fits
from moco.heads.choice import Split, Task, choose, titled
from moco.heads.classifiers import NEVER, fitted_classifier, linear_classifier
from moco.heads.fitted import TAUS, Candidate, Problem, Way
from moco.heads.flags import ways
from tests.refusals import line_with, refusal
from utils.measure.kept_features import Features
from utils.run.compute import ComputeConfig

C, D = 4, 6
COUNTS = [60, 20, 6, 3]
CPU = torch.device("cpu")


def clouds(counts: list[int], seed: int) -> Features:
    """Overlapping ones, the same classes for any seed."""
    centres = 1.2 * torch.randn(len(counts), D, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed))
    return Features(centres[labels] + noise, labels)


def task(counts=tuple(COUNTS), **of_problem) -> Task:
    train = clouds(list(counts), 1)
    problem = Problem(train.features.double(), train.labels, torch.tensor(counts), **of_problem)
    splits = {split: Split(clouds([20] * len(counts), seed), CPU) for split, seed in (("val", 2), ("test", 3))}
    return Task(problem, splits, ComputeConfig(CPU), "val")


@pytest.fixture(scope="module")
def whole() -> Task:
    """With all that a head can need."""
    projection = nn.Linear(D, 3)
    of_tsc = projection, normalize(torch.randn(C, 3), dim=1)
    return task(of_tsc=of_tsc, own=(torch.randn(C, D), torch.randn(C)))


FITTED = [(name, *way) for name, head in HEADS.items() if head.fit for way in ways(head)]


@pytest.mark.parametrize(("name", "sampling", "adjustment"), FITTED)
def test_what_is_said_of_a_head_is_what_its_classifier_does(name, sampling, adjustment, whole):
    """The test accuracy of the entry by hand, from the classifier that comes with it; and it is written and read."""
    chosen = choose(name, sampling, adjustment, whole)
    z, y = whole.splits["test"].found
    logits = chosen.classifier(z)
    hits = [float((logits.argmax(1) == y)[y == c].float().mean() * 100) for c in range(C)]
    assert chosen.entry["per_class"] == pytest.approx(hits)
    assert chosen.entry["balanced"] == pytest.approx(np.mean(hits)) == chosen.entry["acc1"]
    assert chosen.entry["worst"] == pytest.approx(min(hits))
    assert all(value in chosen.tried[what] for what, value in chosen.entry["values"].items())
    assert (chosen.entry["ece"] is None) == (name in ("ncm", "target"))
    weights = {f"fc.{key}": value for key, value in chosen.classifier.state_dict().items()}
    again = fitted_classifier(weights, "x")
    again.load_state_dict(chosen.classifier.state_dict())
    assert torch.equal(again(z), logits)


def of_values(*logits_of_val, converged=True):
    """A head whose candidates answer the class of each list of biases; on any features."""

    def fit(problem, way):
        for number, bias in enumerate(logits_of_val):
            yield [Candidate({"l2": number}, linear_classifier(torch.zeros(C, D), torch.tensor(bias)), converged)]

    return Head("", fit=fit, samplings=("instance",))


BETTER, WORSE = [1.0, 0, 0, 0], [0.0, 0, 0, 0]  # one class of four right; ties are no hits


def chosen_of(monkeypatch, *biases, **options):
    monkeypatch.setitem(HEADS, "toy", of_values(*biases, **options))
    return choose("toy", "instance", "off", task())


SURE = [3.0, 0, 0, 0]  # as right as BETTER, and with a larger loss on classes that it gets wrong


def test_of_those_that_tie_the_least_loss_is_taken_and_then_the_first(monkeypatch):
    assert chosen_of(monkeypatch, WORSE, SURE, BETTER, BETTER).entry["values"] == {"l2": 2}
    assert chosen_of(monkeypatch, WORSE, BETTER, SURE).entry["values"] == {"l2": 1}


def test_two_penalties_without_gain_end_the_path(monkeypatch):
    assert chosen_of(monkeypatch, BETTER, WORSE, WORSE, WORSE).tried == {"l2": [0, 1, 2]}
    assert chosen_of(monkeypatch, WORSE, WORSE, BETTER, WORSE, WORSE).tried == {"l2": [0, 1, 2, 3, 4]}


def test_a_fit_that_did_not_converge_is_reported_and_not_chosen(monkeypatch, capsys):
    better, worse = (linear_classifier(torch.zeros(C, D), torch.tensor(bias)) for bias in (BETTER, WORSE))
    not_there = [Candidate({"l2": 1.0, "t": t}, better, False) for t in (0.0, 1.0)]
    half = Head("", fit=lambda problem, way: iter([not_there, [Candidate({"l2": 0.1, "t": 0.0}, worse)]]))
    monkeypatch.setitem(HEADS, "toy", half)
    assert choose("toy", "instance", "off", task()).entry["values"] == {"l2": 0.1, "t": 0.0}
    line_with(capsys.readouterr().out, "toy", "l2 1")
    refusal(lambda: chosen_of(monkeypatch, BETTER, converged=False), "toy")


def test_the_choice_is_over_classes_not_images(monkeypatch):
    """Validation has 90 images of class 0 and 10 of class 1: always answering 0 is 90 % of images, 50 of classes."""
    features = torch.cat([torch.full((90, 1), 1.0), torch.full((10, 1), -1.0)])
    features[:30] *= -1  # a third of class 0 looks like class 1
    labels = torch.tensor([0] * 90 + [1] * 10)
    always = linear_classifier(torch.zeros(2, 1), torch.tensor([1.0, 0]))
    by_sign = linear_classifier(torch.tensor([[1.0], [-1.0]]), torch.zeros(2))
    fit = lambda problem, way: iter([[Candidate({"x": 0}, always), Candidate({"x": 1}, by_sign)]])  # noqa: E731
    monkeypatch.setitem(HEADS, "toy", Head("", fit=fit))
    splits = dict.fromkeys(("val", "test"), Split(Features(features, labels), CPU))
    problem = Problem(features, labels, torch.tensor([90, 10]))
    chosen = choose("toy", "instance", "off", Task(problem, splits, ComputeConfig(CPU), "val"))
    assert chosen.entry["values"] == {"x": 1} and chosen.entry["val_balanced"] == pytest.approx((200 / 3 + 100) / 2)


@pytest.mark.parametrize(("name", "sampling", "adjustment"), [way for way in FITTED if way[0] not in ("target", "own")])
def test_a_class_without_an_image_and_one_with_a_single_one(name, sampling, adjustment):
    """The former is never answered; with the latter all goes on."""
    chosen = choose(name, sampling, adjustment, task((40, 10, 1, 0)))
    assert chosen.classifier.bias[3] == NEVER and chosen.entry["per_class"][3] == 0
    assert chosen.entry["harmonic"] == 0 == chosen.entry["worst"]


def test_adjustment_after_training_is_t_times_the_prior_off():
    """For the t that was chosen, against the same regression of plain functions."""
    of = task()
    chosen = choose("logistic", "instance", "post", of)
    values = chosen.entry["values"]
    path = dict(of.problem.logistic_path(Way()))
    prior = torch.tensor([math.log(n / sum(COUNTS)) for n in COUNTS])
    torch.testing.assert_close(chosen.classifier.bias, (path[values["l2"]].bias - values["t"] * prior).float())
    torch.testing.assert_close(chosen.classifier.weight, path[values["l2"]].weight.float())


def test_tau_is_of_a_regression_without_b():
    of = task()
    chosen = choose("tau", "instance", "off", of)
    l2, tau = (chosen.entry["values"][name] for name in ("l2", "tau"))
    plain = fits.logistic(of.problem.features, of.problem.labels, C, l2, unit=of.problem.unit, intercept=False).weight
    for row, normalised in zip(plain, chosen.classifier.weight, strict=True):
        torch.testing.assert_close(normalised.double(), row / row.norm() ** tau, rtol=1e-3, atol=1e-3)
    assert set(chosen.tried["tau"]) == set(TAUS)


def test_heads_that_share_a_regression_fit_it_once(monkeypatch):
    of, fitted = task(), []
    logistic = fits.logistic
    monkeypatch.setattr(fits, "logistic", lambda *a, **k: fitted.append(a[3]) or logistic(*a, **k))
    chosen = choose("logistic", "instance", "post", of)
    best = chosen.entry["values"]["l2"]
    assert fitted[-1] == pytest.approx(max(best / 100, 1e-5))  # two after the best are tried, and no more is fitted
    choose("lws", "instance", "off", of)
    assert len(set(fitted)) == len(fitted)  # each once, and further along the path, if that


def test_titles():
    assert titled("logistic", "instance", "post") == "logistic, post"
    assert titled("cosine", "class-balanced", "off") == "cosine, class-balanced"
    assert titled("ncm", "instance", "off") == "ncm"
