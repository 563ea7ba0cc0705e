"""A baseline step that works like the code released by the TSC authors: the same loss with a different computation.

It was written from a description of the authors' code, for one process and `--sep_t`. The loss builds masks over all
logits, (N, 1 + Q + C), and reads them with `nonzero` or boolean indices: four passes in KCL, six in TSC. A Python loop
over all classes updates the centroids and checks on the device whether each class is in the batch. The assignment is
solved from scratch at each step, from the (C, C) similarities, which are copied to the host. The queue pointer is read
on the host, and the key encoder is updated weight by weight. The shuffle of the keys and metrics that wait for the
device are omitted, which favours the baseline.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from moco.builder import KCL, unit


def forward(model: KCL, im_q: Tensor, im_k: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a step, with gradient, and update queue, centroids and assignment as `KCL.forward` does.

    The arguments are those of `KCL.forward`. A targeted model must have sep_t and one copy of each target.
    """
    q = unit(model.encoder_q(im_q))  # (N, D)
    with torch.no_grad():
        for slow, fast in zip(model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True):
            slow.copy_(model.m * slow + (1 - model.m) * fast)
        k = unit(model.encoder_k(im_k))  # (N, D)
        if model.targeted:
            move_centroids(model.class_centroid, q, labels)
            model.assignment = assign(model.class_centroid, model.optimal_target)
    loss = masked_loss(model, q, k, labels)
    with torch.no_grad():
        start = int(model.queue_ptr)  # waits for the device
        model.queue[:, start : start + len(k)] = k.T
        model.queue_labels[0, start : start + len(k)] = labels
        model.queue_ptr[0] = (start + len(k)) % model.K
    return loss


def move_centroids(centroids: Tensor, q: Tensor, labels: Tensor) -> None:
    """Update the centroids in place, class by class. `in` waits for the device once per class."""
    for label in range(len(centroids)):
        if label in labels:
            mean = normalize(q[labels == label].mean(0), dim=0)
            centroids[label] = normalize(0.9 * centroids[label] + 0.1 * mean, dim=0)


def assign(centroids: Tensor, targets: Tensor) -> Tensor:
    """Return the target row of each class, (C,), solved on the host from all similarities."""
    similarity = (centroids @ targets.T).cpu().numpy()  # (C, C)
    return torch.from_numpy(linear_sum_assignment(similarity, maximize=True)[1]).to(centroids.device)


def masked_loss(model: KCL, q: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    """Return loss_class + loss_target, computed with masks over all logits."""
    queue = model.queue.clone()  # the backward pass needs the queue before its update
    columns = [(q * k).sum(1, keepdim=True), q @ queue]  # (N, 1), (N, Q)
    drawn = draw(labels[:, None] == model.queue_labels, model.num_positive)  # (N, Q)
    by_class = [torch.ones_like(drawn[:, :1]), drawn]
    if model.targeted:
        columns.append(q @ model.optimal_target.T)  # (N, C)
        by_class.append(torch.zeros_like(columns[-1], dtype=torch.bool))
    log_p = (torch.cat(columns, dim=1) / model.T).log_softmax(1)  # (N, 1 + Q + C)
    masks, weights = [torch.cat(by_class, dim=1)], [1.0]
    if model.targeted:
        by_target = torch.zeros_like(masks[0])
        by_target[torch.arange(len(q)), 1 + model.K + model.assignment[labels]] = True
        masks.append(by_target)
        weights.append(model.tw)
    positives = torch.stack(masks).any(0).nonzero()[:, 0].bincount()  # (N,) positives of each anchor
    terms = []
    for mask, weight in zip(masks, weights, strict=True):
        anchors = mask.nonzero()[:, 0]  # (P,) the anchor of each positive
        terms.append(-weight * (log_p[mask] / positives[anchors]).sum() / len(q))
    return sum(terms)


def draw(same: Tensor, number: int) -> Tensor:
    """Return a mask, (N, Q) bool, of at most `number` random True entries of each row of `same`."""
    pairs = same.nonzero()  # (P, 2): anchor, column
    pairs = pairs[torch.randperm(len(pairs), device=same.device)]
    pairs = pairs[pairs[:, 0].argsort(stable=True)]  # group by anchor, in random order
    found = pairs[:, 0].bincount(minlength=len(same))  # (N,)
    place = torch.arange(len(pairs), device=same.device) - (found.cumsum(0) - found)[pairs[:, 0]]  # rank per anchor
    rows, columns = pairs[place < number].T
    drawn = torch.zeros_like(same)
    drawn[rows, columns] = True
    return drawn
