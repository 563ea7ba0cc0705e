"""The equations of the method, written with loops over anchors, columns and classes.

The code is slow on purpose and uses nothing of the project. The tests compare the project's results with it.
"""

import itertools

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def floyd_sample(size: int, draws: list[int]) -> list[int]:
    """Return min(len(draws), size) distinct numbers below size for one anchor, by Floyd's algorithm."""
    taken = min(len(draws), size)
    chosen: list[int] = []
    for slot in range(taken):
        last = size - taken + slot
        pick = draws[slot] % (last + 1)
        chosen.append(last if pick in chosen else pick)
    return chosen


def positives(
    labels: list[int], queue_labels: list[int], draws: list[list[int]] | None, copies: int, always: int
) -> list[tuple[list[int], int]]:
    """Return for each anchor the queue columns that are its positives, and its number of target positives.

    draws: None to use the whole class. copies: number of copies of the target in the pool. always: number of target
    positives outside the pool.
    """
    out = []
    for i, label in enumerate(labels):
        entries = [column for column, other in enumerate(queue_labels) if other == label]
        pool = entries + ["target"] * copies
        chosen = pool if draws is None else [pool[o] for o in floyd_sample(len(pool), draws[i])]
        out.append(([c for c in chosen if c != "target"], chosen.count("target") + always))
    return out


def loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    labels: list[int],
    chosen: list[tuple[list[int], int]],
    temperature: float,
    targets: Tensor | None = None,
    target_row: list[int] | None = None,
    target_weight: float = 1.0,
    form: str = "release",
) -> tuple[Tensor, Tensor]:
    """Return loss_class and loss_target for q, k (N, D), queue (D, Q), targets (C·r, D).

    target_row: for each class, the row of `targets` that contains its target.
    form: "release" divides both terms by the number of all positives. "paper" divides the class term by the number of
    its own positives (own key and sampled keys) and does not divide the target term.
    """
    loss_class = loss_target = torch.zeros((), dtype=q.dtype)
    for i, (columns, num_targets) in enumerate(chosen):
        own = q[i] @ k[i] / temperature
        in_queue = [q[i] @ queue[:, j] / temperature for j in range(queue.shape[1])]
        in_targets = [] if targets is None else [q[i] @ t / temperature for t in targets]
        denominator = sum(torch.exp(logit) for logit in [own, *in_queue, *in_targets])
        by_class, by_target = 1 + len(columns), 1
        if form == "release":
            by_class = by_target = 1 + len(columns) + num_targets
        for logit in [own, *(in_queue[j] for j in columns)]:
            loss_class = loss_class - torch.log(torch.exp(logit) / denominator) / by_class / len(q)
        for _ in range(num_targets):
            logit = in_targets[target_row[labels[i]]]
            loss_target = loss_target - target_weight * torch.log(torch.exp(logit) / denominator) / by_target / len(q)
    return loss_class, loss_target


def centroids(before: Tensor, q: Tensor, labels: list[int]) -> Tensor:
    """Return c_y <- normalise(0.9 c_y + 0.1 normalise(mean of q with label y)) for the classes present."""
    after = before.clone()
    for y in set(labels):
        mean = sum(q[i] for i in range(len(q)) if labels[i] == y) / labels.count(y)
        moved = 0.9 * before[y] + 0.1 * mean / mean.norm()
        after[y] = moved / moved.norm()
    return after


def assignment(similarity: Tensor) -> list[int]:
    """Return sigma, the row of each class's target, which maximises the sum of similarities, by trying all."""
    n = len(similarity)
    return list(max(itertools.permutations(range(n)), key=lambda s: sum(similarity[y, s[y]] for y in range(n))))


def scipy_assignment(centroids: Tensor, targets: Tensor) -> Tensor:
    """Return sigma, (C,), by SciPy's assignment solver, for more classes than can be tried."""
    similarity = centroids.double() @ targets.double().T
    return torch.from_numpy(linear_sum_assignment(similarity, maximize=True)[1])
