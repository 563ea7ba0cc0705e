"""Losses of methods that train a classifier and a contrastive loss together: pure functions of tensors.

Symbols: N images or anchors, D feature dimension, C classes, M columns that an anchor is compared with. Both losses
return a scalar in the dtype of the features, and store one matrix of logits (anchors, columns). Half precision is
computed and returned in float32, also under autocast.
"""

import torch
from torch import Tensor

from moco.losses.batch_loss import are_integers, describe_tensor
from moco.losses.queue_loss import at_least_float32


def log_prior(counts: Tensor) -> Tensor:
    """Return log(n_c / n), (C,), as in Menon et al. 2021. A class without images counts as one with one image."""
    counts = counts.clamp(min=1).double()
    return (counts / counts.sum()).log()


def bcl_loss(views: Tensor, labels: Tensor, prototypes: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the balanced contrastive loss (BCL, CVPR 2022, equation 5, as in its authors' code).

    Anchors z_i are the 2N views. Columns x_j are the 2N views and the C prototypes. The loss is the mean over i of ::

        - 1/|P_i| sum_{p in P_i} ( z_i·x_p / temperature - log sum_{j != i} exp(z_i·x_j / temperature) / m_ij )

    P_i: all columns with the label of i, except i itself. It contains the other view and the prototype. m_ij: number of
    columns with the label of j, not counting i. Each class therefore has the weight of its mean in the denominator, and
    frequent classes do not dominate it.

    Args:
        views: (N, 2, D) unit vectors. labels: (N,) integers from 0 to C - 1. prototypes: (C, D) unit vectors; row c is
            the prototype of class c. A class may be absent from the batch. temperature: > 0.

    Returns:
        A scalar in the dtype of views, at least float32. views and prototypes get gradients.

    Raises:
        ValueError: If an argument has an invalid shape, type or value.
    """
    N, D = (views.shape[0], views.shape[-1]) if views.dim() == 3 else (0, 0)
    C = len(prototypes) if prototypes.dim() else 0
    if not (N and views.shape[1] == 2 and views.is_floating_point()):
        raise ValueError(f"views {describe_tensor(views)}, expected (N, 2, D) floats with N >= 1")
    _check_labels("labels", labels, N)
    if not (C and prototypes.shape == (C, D) and prototypes.is_floating_point()):
        raise ValueError(
            f"prototypes {describe_tensor(prototypes)}, expected (C, {D}) floats for views {tuple(views.shape)}"
        )
    _check_numbers(temperature=temperature)
    with torch.autocast(views.device.type, enabled=False):
        z = at_least_float32(torch.cat([views[:, 0], views[:, 1]]))  # (2N, D)
        columns = torch.cat([z, prototypes.to(z.dtype)])  # (2N + C, D)
        column_labels = torch.cat([labels, labels, torch.arange(C, device=labels.device)])  # (2N + C,)
        logits = (z / temperature) @ columns.T  # (2N, 2N + C)
        same = column_labels[: 2 * N, None] == column_labels  # (2N, 2N + C)
        itself = _itself(logits)
        class_size = torch.ones_like(columns[:C, 0]).index_add_(0, labels, z.new_full((N,), 2))  # (C,)
        m = class_size[column_labels] - same.to(z.dtype)  # (2N, 2N + C)
        log_z = (logits - m.log()).masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)  # (2N, 1)
        return _mean_loss(logits - log_z, (same & ~itself).to(z.dtype))


def paco_loss(
    anchors: Tensor,
    labels: Tensor,
    class_logits: Tensor,
    log_prior: Tensor,
    columns: Tensor,
    column_labels: Tensor,
    *,
    alpha: float,
    beta: float = 1.0,
    gamma: float = 1.0,
    class_scale: float = 1.0,
    temperature: float = 0.2,
) -> Tensor:
    """Return the parametric contrastive loss (PaCo, ICCV 2021; GPaCo, TPAMI 2023), as in its authors' code.

    Anchor i has an entry for each class, u_ic = (class_logits_ic + log_prior_c) / class_scale, and an entry for each
    column except itself, v_ij = anchors_i·columns_j / temperature. Both share one denominator ::

        Z_i = sum_c exp(u_ic) + gamma sum_{j != i} exp(v_ij)
        loss = - mean_i ( beta (u_iy - log Z_i) + alpha sum_{p in P_i} (v_ip - log Z_i) ) / (beta + alpha |P_i|)

    y: the label of anchor i. P_i: the columns with this label, except i itself. An anchor without positives adds 0.

    Args:
        anchors: (N, D) unit vectors. labels: (N,) integers from 0 to C - 1.
        class_logits: (N, C), of a classifier. log_prior: (C,), log of each class's share of the training images.
        columns: (M, D) unit vectors, M >= N. The first N are the anchors themselves. column_labels: (M,) integers;
            -1 belongs to no class.
        alpha: weight of a positive column, >= 0. beta: weight of the class's own entry, >= 0.
        gamma: weight of the columns in the denominator only, >= 0. With alpha = gamma = 0, this is cross-entropy.
        class_scale: > 0, divides the class entries (`supt` in the authors' code). temperature: of the columns, > 0.

    Raises:
        ValueError: If an argument has an invalid shape, type or value.
    """
    _check_paco(anchors, labels, class_logits, log_prior, columns, column_labels)
    _check_numbers(alpha=alpha, beta=beta, gamma=gamma, class_scale=class_scale, temperature=temperature)
    with torch.autocast(anchors.device.type, enabled=False):
        z = at_least_float32(anchors)
        u = (class_logits.to(z.dtype) + log_prior.to(z.dtype)) / class_scale  # (N, C)
        v = (z / temperature) @ columns.to(z.dtype).T  # (N, M)
        itself = _itself(v)
        counted = (v + z.new_tensor(gamma).log()).masked_fill(itself, -torch.inf)  # (N, M), log of their terms in Z
        log_z = torch.cat([u, counted], dim=1).logsumexp(1, keepdim=True)  # (N, 1)
        own_class = labels[:, None] == torch.arange(u.shape[1], device=labels.device)  # (N, C)
        positive = (labels[:, None] == column_labels) & ~itself  # (N, M)
        weight = torch.cat([beta * own_class.to(z.dtype), alpha * positive.to(z.dtype)], dim=1)  # (N, C + M)
        return _mean_loss(torch.cat([u, v], dim=1) - log_z, weight)


def _check_numbers(**numbers: float) -> None:
    """Raise ValueError unless weights are at least 0, and scales (class_scale, temperature) above 0."""
    for name, value in numbers.items():
        is_scale = name in ("class_scale", "temperature")
        if not (value > 0 if is_scale else value >= 0):
            raise ValueError(f"{name} {value}, expected {'more than 0' if is_scale else 'at least 0'}")


def _itself(logits: Tensor) -> Tensor:
    """Return a mask that is True where an anchor meets itself: row i, column i."""
    return torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)


def _mean_loss(log_p: Tensor, weight: Tensor) -> Tensor:
    """Return minus the weighted mean of each row of log_p, averaged over the rows. Rows without weight add 0."""
    total = weight.sum(1)  # (N,)
    return -((weight * log_p).sum(1) / torch.where(total > 0, total, 1)).mean()


def _check_labels(name: str, labels: Tensor, length: int) -> None:
    if not (labels.shape == (length,) and are_integers(labels)):
        raise ValueError(f"{name} {describe_tensor(labels)}, expected ({length},) integers")


def _check_paco(
    anchors: Tensor, labels: Tensor, class_logits: Tensor, log_prior: Tensor, columns: Tensor, column_labels: Tensor
) -> None:
    """Check shapes and types only: reading tensor values would make the host wait for the GPU."""
    N, D = anchors.shape if anchors.dim() == 2 else (0, 0)
    C = class_logits.shape[1] if class_logits.dim() == 2 else 0
    M = len(columns) if columns.dim() else 0
    if not (N and anchors.is_floating_point()):
        raise ValueError(f"anchors {describe_tensor(anchors)}, expected (N, D) floats with N >= 1")
    if not (C and class_logits.shape == (N, C) and log_prior.shape == (C,)):
        found = f"class_logits {describe_tensor(class_logits)}, log_prior {describe_tensor(log_prior)}"
        raise ValueError(f"{found}; expected ({N}, C) and (C,) for anchors {tuple(anchors.shape)}")
    if not (M >= N and columns.shape == (M, D) and columns.is_floating_point()):
        raise ValueError(
            f"columns {describe_tensor(columns)}, expected (M, {D}) floats with M >= {N}, the anchors first"
        )
    _check_labels("labels", labels, N)
    _check_labels("column_labels", column_labels, M)
