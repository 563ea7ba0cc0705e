"""A step computed the way the release does it, as a baseline: the same loss, other work.

Written from a description of it, for one process and `--sep_t`. Its loss builds masks over all logits, (N, 1 + Q + C),
and reads them with `nonzero` or by boolean indices: four passes in KCL, six in TSC. Its centroids come from a Python
loop over all classes that asks on the device whether each is in the batch, and its assignment from the (C, C)
similarities, copied to the host and solved from nothing each step. The pointer of its queue lives on the host, and
the key encoder moves weight by weight. Left out, in its favour: the shuffle of the keys, and measures that wait.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from moco.builder import KCL, unit


def forward(model: KCL, im_q: Tensor, im_k: Tensor, labels: Tensor) -> Tensor:
    """The loss of a step, with gradient; queue, centroids and assignment move as in `KCL.forward`.

    Args: as of `KCL.forward`. A targeted model must have sep_t and one copy of each target.
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
    """In place, class by class; `in` waits for the device, once a class."""
    for label in range(len(centroids)):
        if label in labels:
            mean = normalize(q[labels == label].mean(0), dim=0)
            centroids[label] = normalize(0.9 * centroids[label] + 0.1 * mean, dim=0)


def assign(centroids: Tensor, targets: Tensor) -> Tensor:
    """(C,) the row of each class's target, of all similarities on the host."""
    similarity = (centroids @ targets.T).cpu().numpy()  # (C, C)
    return torch.from_numpy(linear_sum_assignment(similarity, maximize=True)[1]).to(centroids.device)


def masked_loss(model: KCL, q: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    """loss_class + loss_target, from masks over all logits."""
    queue = model.queue.clone()  # the backward pass needs it as it was
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
    positives = torch.stack(masks).any(0).nonzero()[:, 0].bincount()  # (N,) of each anchor
    terms = []
    for mask, weight in zip(masks, weights, strict=True):
        anchors = mask.nonzero()[:, 0]  # (P,) whose the positives are
        terms.append(-weight * (log_p[mask] / positives[anchors]).sum() / len(q))
    return sum(terms)


def draw(same: Tensor, number: int) -> Tensor:
    """(N, Q) bool: that many of the True entries of each row, or all where there are fewer."""
    pairs = same.nonzero()  # (P, 2) anchor and column
    pairs = pairs[torch.randperm(len(pairs), device=same.device)]
    pairs = pairs[pairs[:, 0].argsort(stable=True)]  # each anchor's side by side, in random order
    found = pairs[:, 0].bincount(minlength=len(same))  # (N,)
    place = torch.arange(len(pairs), device=same.device) - (found.cumsum(0) - found)[pairs[:, 0]]  # in its anchor's
    rows, columns = pairs[place < number].T
    drawn = torch.zeros_like(same)
    drawn[rows, columns] = True
    return drawn
