"""The loss in the batch written with loops over rows, without a line of the project's code."""

import torch
from torch import Tensor

from tests import oracle


def rows(views: Tensor, labels: Tensor, targets: Tensor, target_class: Tensor, repeat: int) -> list[tuple[Tensor, int]]:
    """The vectors and labels of all 2(N + C·r) rows: one view's images and target copies, then the other's."""
    copies = [(t, y) for t, y in zip(targets, target_class.tolist(), strict=True) for _ in range(repeat)]
    return [
        row for view in (0, 1) for row in [*zip(views[:, view], labels.tolist(), strict=True), *copies]
    ]  # [(D,), label] for each


def loss(
    views: Tensor,
    labels: Tensor,
    num_positive: int,
    temperature: float,
    targets: Tensor,
    target_class: Tensor,
    repeat: int,
    anchors: str,
    unbiased: bool,
    draws: list[list[int]] | None,
) -> Tensor:
    """draws: k random numbers a row; None: no drawing, the whole class."""
    every = rows(views, labels, targets, target_class, repeat)
    half = len(every) // 2
    of_anchors = []
    for i, (x, label) in enumerate(every):
        if anchors == "targets" and i % half < len(views):
            continue
        other = (i + half) % len(every)
        pool = [j for j, (_, y) in enumerate(every) if y == label and j not in (i, other)]
        if num_positive > 0:
            pool = [pool[o] for o in oracle.draw(len(pool), draws[i])]
        exp = [torch.exp(x @ z / temperature) for z, _ in every]
        terms = []
        for p in [other, *pool]:
            negatives = [j for j, (_, y) in enumerate(every) if j != i and not (unbiased and y == label and j != p)]
            terms.append(-torch.log(exp[p] / sum(exp[j] for j in negatives)))
        of_anchors.append(sum(terms) / len(terms))
    return sum(of_anchors) / len(of_anchors)
