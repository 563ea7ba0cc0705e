"""The in-batch losses as loops over anchors and positives, independent of the project's code."""

import torch
from torch import Tensor

from tests import oracle


def rows(views: Tensor, labels: Tensor, targets: Tensor, target_class: Tensor, repeat: int) -> list[tuple[Tensor, int]]:
    """Return (vector, label) of all 2(N + C·r) rows: images and target copies of view 0, then of view 1."""
    copies = [(t, y) for t, y in zip(targets, target_class.tolist(), strict=True) for _ in range(repeat)]
    return [row for view in (0, 1) for row in [*zip(views[:, view], labels.tolist(), strict=True), *copies]]


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
    """Return the in-batch loss. draws: k random numbers per row, or None to use the whole class."""
    all_rows = rows(views, labels, targets, target_class, repeat)
    vectors, half = torch.stack([vector for vector, _ in all_rows]), len(all_rows) // 2
    anchor_losses = []
    for i, (x, label) in enumerate(all_rows):
        if anchors == "targets" and i % half < len(views):
            continue
        other_view = (i + half) % len(all_rows)
        pool = [j for j, (_, y) in enumerate(all_rows) if y == label and j not in (i, other_view)]
        if num_positive > 0:
            pool = [pool[o] for o in oracle.floyd_sample(len(pool), draws[i])]
        exp = torch.exp(vectors @ x / temperature)
        terms = []
        for p in [other_view, *pool]:
            negatives = [j for j, (_, y) in enumerate(all_rows) if j != i and not (unbiased and y == label and j != p)]
            terms.append(-torch.log(exp[p] / exp[negatives].sum()))
        anchor_losses.append(sum(terms) / len(terms))
    return sum(anchor_losses) / len(anchor_losses)


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
    """Return the image term and the target term of TSC as in the paper. draws: as in `loss`."""
    images = rows(views, labels, targets[:0], target_class[:0], 1)
    all_rows = [*images, *zip(targets, target_class.tolist(), strict=True)]
    vectors, half = torch.stack([vector for vector, _ in all_rows]), len(views)
    class_terms, target_terms = [], []
    for i, (x, label) in enumerate(images):
        other_view = (i + half) % len(images)
        pool = [j for j, (_, y) in enumerate(images) if y == label and j not in (i, other_view)]
        if num_positive > 0:
            pool = [pool[o] for o in oracle.floyd_sample(len(pool), draws[i])]
        logits = vectors @ x / temperature

        def log_p(p: int, i=i, label=label, logits=logits) -> Tensor:
            denominator = [
                j for j, (_, y) in enumerate(all_rows) if j != i and not (unbiased and y == label and j != p)
            ]
            return logits[p] - logits[denominator].logsumexp(0)

        class_terms.append(-sum(log_p(p) for p in [other_view, *pool]) / (1 + len(pool)))
        target_log_p = [log_p(j) for j in range(len(images), len(all_rows)) if all_rows[j][1] == label]
        target_terms.append(-target_weight * sum(target_log_p) / len(target_log_p) if target_log_p else x.new_zeros(()))
    return sum(class_terms) / len(images), sum(target_terms) / len(images)
