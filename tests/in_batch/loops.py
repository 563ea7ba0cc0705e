"""The loss in the batch written with loops over anchors and positives, without a line of the project's code."""

import torch
from torch import Tensor

from tests import oracle


def rows(views: Tensor, labels: Tensor, targets: Tensor, target_class: Tensor, repeat: int) -> list[tuple[Tensor, int]]:
    """The vectors and labels of all 2(N + C·r) rows: one view's images and target copies, then the other view's."""
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
    vectors, half = torch.stack([vector for vector, _ in every]), len(every) // 2
    of_anchors = []
    for i, (x, label) in enumerate(every):
        if anchors == "targets" and i % half < len(views):
            continue
        other = (i + half) % len(every)
        pool = [j for j, (_, y) in enumerate(every) if y == label and j not in (i, other)]
        if num_positive > 0:
            pool = [pool[o] for o in oracle.draw(len(pool), draws[i])]
        exp = torch.exp(vectors @ x / temperature)
        terms = []
        for p in [other, *pool]:
            negatives = [j for j, (_, y) in enumerate(every) if j != i and not (unbiased and y == label and j != p)]
            terms.append(-torch.log(exp[p] / exp[negatives].sum()))
        of_anchors.append(sum(terms) / len(terms))
    return sum(of_anchors) / len(of_anchors)


def target_loss(
    views: Tensor,
    labels: Tensor,
    targets: Tensor,
    target_class: Tensor,
    target_weight: float,
    num_positive: int,
    temperature: float,
    unbiased: bool,
    draws: list[list[int]] | None,
) -> tuple[Tensor, Tensor]:
    """Return the paper's TSC: the part of the images and the part of the targets. draws: as in `loss`."""
    images = rows(views, labels, targets[:0], target_class[:0], 1)
    every = [*images, *zip(targets, target_class.tolist(), strict=True)]
    vectors, half = torch.stack([vector for vector, _ in every]), len(views)
    by_class, by_target = [], []
    for i, (x, label) in enumerate(images):
        other = (i + half) % len(images)
        pool = [j for j, (_, y) in enumerate(images) if y == label and j not in (i, other)]
        if num_positive > 0:
            pool = [pool[o] for o in oracle.draw(len(pool), draws[i])]
        logits = vectors @ x / temperature

        def log_p(p: int, i=i, label=label, logits=logits) -> Tensor:
            below = [j for j, (_, y) in enumerate(every) if j != i and not (unbiased and y == label and j != p)]
            return logits[p] - logits[below].logsumexp(0)

        by_class.append(-sum(log_p(p) for p in [other, *pool]) / (1 + len(pool)))
        own = [log_p(j) for j in range(len(images), len(every)) if every[j][1] == label]
        by_target.append(-target_weight * sum(own) / len(own) if own else x.new_zeros(()))
    return sum(by_class) / len(images), sum(by_target) / len(images)
