"""Spread points over the sphere: the energy of a target set, its gradient, and two ways down."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 2**24  # similarities held at a time: 64 MB of float32
HISTORY = 20  # steps that L-BFGS remembers; 10 and 50 take as long to the same energy
RELEASE_STEPS, RELEASE_LR = 10_000, 1e-3  # the release's Adam

OnEvaluation = Callable[[float], None]  # is told the logarithm of the energy ratio


@dataclass
class Best:
    """The set to keep if the search ended now, (C, D) unit rows, and the energy, or loss, that it minimises."""

    energy: float = float("inf")
    points: Tensor | None = None

    def offer(self, energy: float, points: Tensor) -> None:
        if energy < self.energy:
            self.energy, self.points = energy, points


def energy_and_gradient(points: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log of the mean over i ≠ j of exp(t_i·t_j / τ): the logarithm of the energy ratio, and its gradient.

    What the paper's L_u (equation 3) comes to. L_u is the mean over i of log(exp(1/τ) + Z_i), where
    Z_i = Σ_{j≠i} exp(t_i·t_j / τ) and the first term, j = i, is constant on the sphere. It dwarfs Z_i, so L_u is
    linear in Z_i and least where Σ Z_i is; a float32 sum with it in hides the rest behind it. The mean of
    log Z_i, without it, is another matter: in few dimensions it is least where some points coincide.

    Args:
        points: (C, D) unit rows, C ≥ 2. Rows are taken in blocks: all pairs are never held at once.

    Returns:
        The energy (), and its gradient (C, D) as if the points were free.
    """
    count = len(points)
    scaled = points / temperature
    pull = torch.empty_like(points)  # Σ_j exp(t_i·t_j / τ − top) t_j
    total, top = points.new_zeros(()), points.new_full((), -torch.inf)
    rows = max(1, BLOCK // count)
    for start in range(0, count, rows):
        similar = scaled[start : start + rows] @ points.T  # (B, C)
        similar.diagonal(start).fill_(-torch.inf)
        higher = torch.maximum(top, similar.amax())
        shrink = (top - higher).exp()  # of what was summed under a lower top
        pull[:start] *= shrink
        top = higher
        similar.sub_(top).exp_()
        total = total * shrink + similar.sum()
        pull[start : start + rows] = similar @ points
    return top + (total / (count * (count - 1))).log(), pull * (2 / (temperature * total))


def lbfgs(start: Tensor, temperature: float, evaluations: int, best: Best, on_evaluation: OnEvaluation) -> None:
    """Minimise the energy from `start` (C, D) until it settles or `evaluations` are spent; `best` gets the result."""
    raw = start.clone().requires_grad_()  # rows of any length stand for points: no constraint to keep
    optimizer = torch.optim.LBFGS(
        [raw],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,  # the resolution of float32 ends it
    )

    def evaluate() -> float:
        length = raw.detach().norm(dim=1, keepdim=True)
        points = raw.detach() / length
        energy, gradient = energy_and_gradient(points, temperature)
        along = gradient - (gradient * points).sum(dim=1, keepdim=True) * points  # the sphere
        raw.grad = along / length
        best.offer(float(energy), points)
        on_evaluation(float(energy))
        return float(energy)

    optimizer.step(evaluate)


def adam(start: Tensor, temperature: float, steps: int, best: Best, on_evaluation: OnEvaluation) -> None:
    """The release's recipe, to compare with: Adam on L_u with its self term; `best` gets the set of least loss.

    start: (C, D) rows of any length, the optimiser's variables; see `starts`.
    """
    raw = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=RELEASE_LR)
    for step in range(steps):
        points = normalize(raw, dim=1)
        loss = (points @ points.T / temperature).logsumexp(dim=1).mean()
        best.offer(loss.item(), points.detach())
        optimizer.zero_grad()
        loss.backward()
        if step % 50 == 0:
            on_evaluation(float(energy_and_gradient(points.detach(), temperature)[0]))
        optimizer.step()
