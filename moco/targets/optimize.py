"""Spread points over the sphere: the energy of a target set, its gradient, and two optimizers.

"The authors' code" is the code released by the TSC authors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 2**24  # similarities stored at a time: 64 MB of float32
HISTORY = 20  # steps stored by L-BFGS; 10 and 50 take the same time to reach the same energy
RELEASE_LR = 1e-3  # Adam of the authors' code
ADAM_REPORT_STEPS = 50  # steps of Adam between calls of on_evaluation

OnEvaluation = Callable[[float], None]  # receives the logarithm of the energy ratio


@dataclass
class BestPoints:
    """The best set found so far, (C, D) unit rows and its objective: log energy ratio, or L_u (equation 3) for Adam."""

    objective: float = float("inf")
    points: Tensor | None = None

    def update(self, objective: float, points: Tensor) -> None:
        """Keep the points if their objective is lower than the best one."""
        if objective < self.objective:
            self.objective, self.points = objective, points


def log_energy_and_gradient(points: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the energy ratio, log of the mean over i ≠ j of exp(t_i·t_j / τ), and its gradient.

    To first order, minimising it is the same as minimising L_u of the paper (equation 3). L_u is the mean over i of
    log(exp(1/τ) + Z_i), with Z_i = Σ_{j≠i} exp(t_i·t_j / τ). The first term, j = i, is constant on the sphere and much
    larger than Z_i. L_u is therefore nearly linear in Z_i, and minimal where Σ Z_i is minimal. A float32 sum that
    includes the constant would lose the precision of Z_i. The mean of log Z_i without the constant is not equivalent:
    in few dimensions it is minimal where some points coincide.

    Args:
        points: (C, D) unit rows, C ≥ 2. Rows are processed in blocks, so that all pairs are never stored at once.

    Returns:
        The log energy ratio, a scalar, and its gradient (C, D) without the constraint to the sphere.
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
        shrink = (top - higher).exp()  # rescales what was summed with a lower maximum
        pull[:start] *= shrink
        top = higher
        similar.sub_(top).exp_()
        total = total * shrink + similar.sum()
        pull[start : start + rows] = similar @ points
    return top + (total / (count * (count - 1))).log(), pull * (2 / (temperature * total))


def lbfgs(start: Tensor, temperature: float, evaluations: int, best: BestPoints, on_evaluation: OnEvaluation) -> None:
    """Minimise the log energy from `start` (C, D) until convergence or `evaluations`. Stores the result in `best`."""
    raw = start.clone().requires_grad_()  # rows of any length represent points, so there is no constraint
    optimizer = torch.optim.LBFGS(
        [raw],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,  # stops at the resolution of float32
    )

    def evaluate() -> float:
        length = raw.detach().norm(dim=1, keepdim=True)
        points = raw.detach() / length
        log_energy, gradient = log_energy_and_gradient(points, temperature)
        tangent = gradient - (gradient * points).sum(dim=1, keepdim=True) * points  # to the sphere
        raw.grad = tangent / length
        best.update(float(log_energy), points)
        on_evaluation(float(log_energy))
        return float(log_energy)

    optimizer.step(evaluate)


def adam(start: Tensor, temperature: float, steps: int, best: BestPoints, on_evaluation: OnEvaluation) -> None:
    """Minimise L_u, including its self term, with Adam: the recipe of the authors' code, for comparison.

    Stores the set with the least loss in `best`. start: (C, D) rows of any length, the optimised variables; see
    `moco.targets.generation.starting_points`.
    """
    raw = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=RELEASE_LR)
    for step in range(steps):
        points = normalize(raw, dim=1)
        loss = (points @ points.T / temperature).logsumexp(dim=1).mean()
        best.update(loss.item(), points.detach())
        optimizer.zero_grad()
        loss.backward()
        if step % ADAM_REPORT_STEPS == 0:
            on_evaluation(float(log_energy_and_gradient(points.detach(), temperature)[0]))
        optimizer.step()
