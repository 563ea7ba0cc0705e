"""A training step that computes the loss like the authors' code (the code released by the TSC authors): a baseline.

It returns the same loss as this project. It was written from a description of the authors' code, for one process and
`--sep_t`. It differs from this project as follows:

- The loss builds masks over all logits, (N, 1 + Q + C), and reads them with `nonzero` or boolean indices: four passes
  in KCL, six in TSC.
- A Python loop over all classes updates the centroids and checks on the device whether each class is in the batch.
- The assignment is solved from scratch at each step, from the (C, C) similarities, which are copied to the host.
- The queue pointer is read on the host, and the key encoder is updated weight by weight.

The shuffle of the keys and metrics that wait for the device are omitted, which favours the baseline.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from moco.builder import KCL, l2_normalise


def forward(model: KCL, im_q: Tensor, im_k: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a step, and update queue, centroids and assignment, as `KCL.forward` does.

    The arguments are those of `KCL.forward`. A targeted model must have sep_t and one copy of each target.
    """
    q = l2_normalise(model.encoder_q(im_q))  # (N, D)
    with torch.no_grad():
        for key_weight, query_weight in zip(model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True):
            key_weight.copy_(model.m * key_weight + (1 - model.m) * query_weight)
        k = l2_normalise(model.encoder_k(im_k))  # (N, D)
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
    sampled = sample_positives(labels[:, None] == model.queue_labels, model.num_positive)  # (N, Q)
    class_mask = [torch.ones_like(sampled[:, :1]), sampled]
    if model.targeted:
        columns.append(q @ model.optimal_target.T)  # (N, C)
        class_mask.append(torch.zeros_like(columns[-1], dtype=torch.bool))
    log_p = (torch.cat(columns, dim=1) / model.T).log_softmax(1)  # (N, 1 + Q + C)
    masks, weights = [torch.cat(class_mask, dim=1)], [1.0]
    if model.targeted:
        target_mask = torch.zeros_like(masks[0])
        target_mask[torch.arange(len(q)), 1 + model.K + model.assignment[labels]] = True
        masks.append(target_mask)
        weights.append(model.tw)
    positives = torch.stack(masks).any(0).nonzero()[:, 0].bincount()  # (N,) number of positives of each anchor
    terms = []
    for mask, weight in zip(masks, weights, strict=True):
        anchors = mask.nonzero()[:, 0]  # (P,) the anchor of each positive
        terms.append(-weight * (log_p[mask] / positives[anchors]).sum() / len(q))
    return sum(terms)


def sample_positives(same_class: Tensor, k: int) -> Tensor:
    """Return an (N, Q) mask of at most k random True entries of each row of `same_class`."""
    pairs = same_class.nonzero()  # (P, 2): anchor, column
    pairs = pairs[torch.randperm(len(pairs), device=same_class.device)]
    pairs = pairs[pairs[:, 0].argsort(stable=True)]  # group by anchor, in random order
    counts = pairs[:, 0].bincount(minlength=len(same_class))  # (N,)
    starts = counts.cumsum(0) - counts  # (N,) index of the first pair of each anchor
    rank = torch.arange(len(pairs), device=same_class.device) - starts[pairs[:, 0]]  # (P,) within the anchor's pairs
    rows, columns = pairs[rank < k].T
    sampled = torch.zeros_like(same_class)
    sampled[rows, columns] = True
    return sampled
