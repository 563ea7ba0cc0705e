"""The energy and its gradient match autograd in float64, and both optimisers lower the energy."""

import numpy as np
import pytest
import torch

from moco.targets import optimize
from moco.targets.bounds import target_measures
from moco.targets.generation import generate, starting_points
from moco.targets.point_sets import random_points
from tests.tiny import unit_vectors


@pytest.mark.parametrize("block", [10**6, 30, 1])
@pytest.mark.parametrize("temperature", [0.005, 0.07, 1.0])
def test_energy_and_gradient_match_autograd(block, temperature, monkeypatch):
    monkeypatch.setattr(optimize, "BLOCK", block)  # all rows at once, 3 of 10, one by one
    points = unit_vectors(10, 4).requires_grad_()
    other = ~torch.eye(10, dtype=torch.bool)
    expected = ((points @ points.T)[other] / temperature).logsumexp(dim=0) - np.log(90)
    expected.backward()
    energy, gradient = optimize.log_energy_and_gradient(points.detach(), temperature)
    torch.testing.assert_close(energy, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, points.grad, rtol=1e-10, atol=1e-10)
    assert np.exp(energy.item()) == pytest.approx(target_measures(points.detach().numpy(), temperature)["energy_ratio"])


def test_energy_by_hand():
    """With cosines 0, 0 and −1 and temperature 1, the terms of the pairs are 1, 1 and 1/e."""
    points = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert optimize.log_energy_and_gradient(points, 1.0)[0].item() == pytest.approx(np.log((2 + np.exp(-1)) / 3))


@pytest.mark.parametrize("search", [optimize.lbfgs, optimize.adam])
def test_search_lowers_energy_on_the_sphere(search):
    start, best, seen = random_points(30, 5, torch.Generator().manual_seed(0)), optimize.BestPoints(), []
    search(start, 0.07, 60, best, seen.append)
    torch.testing.assert_close(best.points.norm(dim=1), torch.ones(30))
    found = target_measures(best.points.double().numpy(), 0.07)["energy_ratio"]
    assert found < 0.9 * np.exp(seen[0])
    assert np.exp(seen[0]) == pytest.approx(target_measures(start.double().numpy(), 0.07)["energy_ratio"], rel=1e-5)


def test_best_points_keep_the_lowest_energy():
    best, good, bad = optimize.BestPoints(), torch.eye(2), torch.ones(2, 2)
    best.update(1.0, good)
    best.update(2.0, bad)
    assert best.objective == 1 and best.points is good


def test_lbfgs_keeps_lowest_evaluated_energy():
    best, seen = optimize.BestPoints(), []
    optimize.lbfgs(random_points(40, 8, torch.Generator().manual_seed(0)), 0.07, 200, best, seen.append)
    assert len(seen) <= 200 and best.objective == min(seen)
    assert optimize.log_energy_and_gradient(best.points, 0.07)[0].item() == pytest.approx(best.objective, abs=1e-6)


def release_adam(start: torch.Tensor, steps: int, lr: float) -> list[tuple[float, torch.Tensor]]:
    """Run the authors' loop with autograd and torch's Adam: mean log-sum-exp including j = i.

    Return the loss and the unit rows of each step.
    """
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


def test_adam_matches_release_steps():
    """Adam starts from the generator's normal vectors, not from unit vectors."""
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    expected = min(release_adam(start, 4, lr=1e-3), key=lambda step: step[0])[1]
    found = generate(6, 3, seed=0, optimizer="adam", iters=4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    unit_start = min(release_adam(start / start.norm(dim=1, keepdim=True), 4, lr=1e-3), key=lambda step: step[0])[1]
    assert (unit_start - expected).abs().max() > 1e-4  # the test can distinguish the two starts


def test_adam_keeps_set_with_lowest_loss(monkeypatch):
    """The learning rate is so large that the loss rises again."""
    monkeypatch.setattr(optimize, "RELEASE_LR", 0.5)
    start, best = unit_vectors(6, 3), optimize.BestPoints()
    seen = release_adam(start, 8, lr=0.5)
    losses = [loss for loss, _ in seen]
    lowest = losses.index(min(losses))
    assert lowest < 7 and (seen[lowest][1] - seen[-1][1]).abs().max() > 1e-3
    optimize.adam(start, 0.07, 8, best, lambda energy: None)
    torch.testing.assert_close(best.points, seen[lowest][1], atol=1e-6, rtol=0)
    assert best.objective == pytest.approx(min(losses), abs=1e-9)


def test_adam_starts_from_unnormalised_vectors():
    """The length of Adam's steps does not depend on the vectors, so unit vectors would give other results."""
    start = next(starting_points(200, 128, 1, "adam", torch.Generator().manual_seed(0)))
    assert start.norm(dim=1).mean().item() == pytest.approx(128**0.5, rel=0.01)
