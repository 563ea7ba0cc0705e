"""The energy and its gradient against autograd in float64; both optimisers go down."""

import numpy as np
import pytest
import torch

from moco.targets import spread
from moco.targets.certificate import measures
from moco.targets.generation import generate, starts
from moco.targets.point_sets import random_points
from tests.tiny import unit


@pytest.mark.parametrize("block", [10**6, 30, 1])
@pytest.mark.parametrize("temperature", [0.005, 0.07, 1.0])
def test_energy_and_gradient_equal_autograd(block, temperature, monkeypatch):
    monkeypatch.setattr(spread, "BLOCK", block)  # all rows at once, 3 of 10, one by one
    points = unit(10, 4).requires_grad_()
    other = ~torch.eye(10, dtype=torch.bool)
    expected = ((points @ points.T)[other] / temperature).logsumexp(dim=0) - np.log(90)
    expected.backward()
    energy, gradient = spread.energy_and_gradient(points.detach(), temperature)
    torch.testing.assert_close(energy, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, points.grad, rtol=1e-10, atol=1e-10)
    assert np.exp(energy.item()) == pytest.approx(measures(points.detach().numpy(), temperature)["energy_ratio"])


def test_energy_by_hand():
    """Cosines 0, 0 and −1, temperature 1: pairs count 1, 1 and 1/e."""
    points = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert spread.energy_and_gradient(points, 1.0)[0].item() == pytest.approx(np.log((2 + np.exp(-1)) / 3))


@pytest.mark.parametrize("search", [spread.lbfgs, spread.adam])
def test_the_best_set_is_on_the_sphere_and_lower_than_the_start(search):
    start, best, seen = random_points(30, 5, torch.Generator().manual_seed(0)), spread.Best(), []
    search(start, 0.07, 60, best, seen.append)
    torch.testing.assert_close(best.points.norm(dim=1), torch.ones(30))
    found = measures(best.points.double().numpy(), 0.07)["energy_ratio"]
    assert found < 0.9 * np.exp(seen[0])
    assert np.exp(seen[0]) == pytest.approx(measures(start.double().numpy(), 0.07)["energy_ratio"], rel=1e-5)


def test_the_best_is_not_replaced_by_a_worse_set():
    best, good, bad = spread.Best(), torch.eye(2), torch.ones(2, 2)
    best.offer(1.0, good)
    best.offer(2.0, bad)
    assert best.energy == 1 and best.points is good


def test_lbfgs_keeps_the_lowest_of_all_it_evaluated():
    best, seen = spread.Best(), []
    spread.lbfgs(random_points(40, 8, torch.Generator().manual_seed(0)), 0.07, 200, best, seen.append)
    assert len(seen) <= 200 and best.energy == min(seen)
    assert spread.energy_and_gradient(best.points, 0.07)[0].item() == pytest.approx(best.energy, abs=1e-6)


def adam_by_hand(start: torch.Tensor, steps: int, lr: float) -> list[tuple[float, torch.Tensor]]:
    """The release's loop with autograd and torch's Adam, on the mean log-sum-exp with j = i in it: the loss and the
    unit rows of each step."""
    raw, seen = torch.nn.Parameter(start.clone()), []
    optimizer = torch.optim.Adam([raw], lr=lr)
    for _ in range(steps):
        points = raw / raw.norm(dim=1, keepdim=True)
        loss = torch.log(torch.exp(points @ points.T / 0.07).sum(dim=1)).mean()
        seen.append((loss.item(), points.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen


def test_adam_takes_the_releases_steps():
    """From the generator's normal vectors, not from unit ones."""
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    expected = min(adam_by_hand(start, 4, lr=1e-3), key=lambda step: step[0])[1]
    found = generate(6, 3, seed=0, optimizer="adam", iters=4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    unit_start = min(adam_by_hand(start / start.norm(dim=1, keepdim=True), 4, lr=1e-3), key=lambda step: step[0])[1]
    assert (unit_start - expected).abs().max() > 1e-4  # what this test tells apart


def test_adam_keeps_the_set_of_least_loss_not_the_last(monkeypatch):
    """At a rate at which the loss rises again."""
    monkeypatch.setattr(spread, "RELEASE_LR", 0.5)
    start, best = unit(6, 3), spread.Best()
    seen = adam_by_hand(start, 8, lr=0.5)
    losses = [loss for loss, _ in seen]
    least = losses.index(min(losses))
    assert least < 7 and (seen[least][1] - seen[-1][1]).abs().max() > 1e-3
    spread.adam(start, 0.07, 8, best, lambda energy: None)
    torch.testing.assert_close(best.points, seen[least][1], atol=1e-6, rtol=0)
    assert best.energy == pytest.approx(min(losses), abs=1e-9)


def test_adam_starts_from_vectors_of_norm_root_d():
    """Its steps are of one length whatever the vector's: from unit vectors it would be another recipe."""
    start = next(starts(200, 128, 1, "adam", torch.Generator().manual_seed(0)))
    assert start.norm(dim=1).mean().item() == pytest.approx(128**0.5, rel=0.01)
