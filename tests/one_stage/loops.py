"""The losses of BCL, PaCo and --joint-classifier targets as loops, independent of the project's code."""

import torch
from torch import Tensor


def bcl(views: Tensor, labels: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    y = labels.tolist()
    columns = [*views[:, 0], *views[:, 1], *prototypes]
    column_labels = [*y, *y, *range(len(prototypes))]
    anchor_losses = []
    for i in range(2 * len(y)):
        others = [j for j in range(len(columns)) if j != i]
        denominator = 0
        for j in others:
            same_label = sum(1 for o in others if column_labels[o] == column_labels[j])  # never counts the anchor
            denominator = denominator + torch.exp(columns[i] @ columns[j] / temperature) / same_label
        positives = [j for j in others if column_labels[j] == column_labels[i]]
        terms = [columns[i] @ columns[p] / temperature - torch.log(denominator) for p in positives]
        anchor_losses.append(-sum(terms) / len(terms))
    return sum(anchor_losses) / len(anchor_losses)


def paco(
    anchors: Tensor,
    labels: Tensor,
    class_logits: Tensor,
    log_prior: Tensor,
    columns: Tensor,
    column_labels: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    class_scale: float,
    temperature: float,
) -> Tensor:
    anchor_losses = []
    for i, label in enumerate(labels.tolist()):
        by_class = [(class_logits[i, c] + log_prior[c]) / class_scale for c in range(len(log_prior))]
        by_column = {j: anchors[i] @ columns[j] / temperature for j in range(len(columns)) if j != i}
        denominator = sum(torch.exp(u) for u in by_class) + gamma * sum(torch.exp(v) for v in by_column.values())
        total, weight = beta * torch.log(torch.exp(by_class[label]) / denominator), beta
        for j, v in by_column.items():
            if column_labels[j] == label:
                total, weight = total + alpha * torch.log(torch.exp(v) / denominator), weight + alpha
        anchor_losses.append(-total / weight)
    return sum(anchor_losses) / len(anchor_losses)


def targets(q: Tensor, labels: Tensor, class_targets: Tensor, log_prior: Tensor, temperature: float) -> Tensor:
    losses = []
    for i, label in enumerate(labels.tolist()):
        logits = [q[i] @ t / temperature + prior for t, prior in zip(class_targets, log_prior, strict=True)]
        losses.append(torch.log(sum(torch.exp(u) for u in logits)) - logits[label])
    return sum(losses) / len(losses)
