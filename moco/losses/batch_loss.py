"""Losses for in-batch contrast: SupCon, KCL and TSC without a queue, as used on CIFAR.

Symbols: N images, D feature dimension, C targets, r copies of each target, k sampled positives.
"The authors' code" is the code released by the TSC authors. Its batch has R = 2(N + C·r) rows: C·r target rows are
appended to each of the two views.

All copies of a target have the same logits, so these are computed once for U = 2N + C vectors, in blocks of at most
2**18 logits on a CPU and 2**24 on a GPU (at least one anchor). Up to 2**26 logits are stored for the backward pass.
With more, it computes each block again: memory then grows linearly with the batch, and the loss takes about 1.5 times
as long. With D = 128 and float32 on a CPU, the loss and its gradients take 37 MiB in addition to the inputs with
N = 1024 (59 MiB with `unbiased`), and 526 MiB with N = 4096.
"""

import torch
from torch import Tensor

from moco.losses.blocks import InBatchLossOutput, anchor_blocks, distinct_vectors, mean_loss
from moco.losses.positives import RANDOM_INT_BOUND, sample_batch_positives
from utils.randomness import to_device

ANCHORS = ("all", "targets")


def in_batch_loss(
    views: Tensor,
    labels: Tensor,
    num_positive: int = 0,
    temperature: float = 0.07,
    *,
    targets: Tensor | None = None,
    target_class: Tensor | None = None,
    target_repeat: int = 1,
    anchors: str = "all",
    unbiased: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the loss of SupCon (num_positive 0), KCL, or TSC as in the authors' code on CIFAR.

    The loss is the mean over the anchors i of ::

        - 1/|P_i| sum_{p in P_i} log( exp(x_i·x_p / temperature) / sum_j exp(x_i·x_j / temperature) )

    Rows: the images of view 1, r copies of target 0, of target 1 ..., then the same for view 2. j runs over all rows
    except i. P_i: the other view of i, and k other rows with its label, sampled without replacement (all of them if
    there are fewer, or if k = 0).

    Args:
        views: (N, 2, D) unit vectors. labels: (N,) integers. num_positive: k >= 0. temperature: > 0.
        targets: (C, D) unit vectors; target i belongs to class target_class[i], (C,). A class may have no target or
            several. A target whose class has no image in the batch is an anchor with only its copies as positives.
        target_repeat: r. anchors: "all" rows or only "targets". unbiased: j runs over p and rows of other labels.
        generator: random generator, on the CPU or the device. Row i of the R = 2(N + C·r) rows uses row i of
            randint(2**62, (R, k)), see
            `sample_batch_positives`.

    Returns:
        A scalar with the dtype of views; float16 and bfloat16 are computed and returned in float32, also under
        autocast. Without targets, it is 0 for a single image, and for a single label with `unbiased`. views and
        targets get gradients.

    Raises:
        ValueError: If an argument has an invalid shape, type or value.
    """
    _check(views, labels, num_positive, temperature, targets, target_class, target_repeat, anchors)
    if targets is None:
        targets, target_class = views.new_zeros(0, views.shape[2]), labels[:0]
    N, C, r = len(views), len(targets), target_repeat
    sampled = None
    if 0 < num_positive < 2 * (N + C * r) - 2:  # a larger k uses the whole class, for every class
        row_labels = torch.cat([labels, target_class.repeat_interleave(r)])
        sampled = _sample_columns(row_labels, N, r, num_positive, generator)
    distinct = distinct_vectors(views, labels, targets, target_class, copies=2 * r)
    return mean_loss(distinct, anchor_blocks(distinct, sampled, anchors), temperature, unbiased, None).loss


def in_batch_target_loss(
    views: Tensor,
    labels: Tensor,
    targets: Tensor,
    target_class: Tensor,
    target_weight: float,
    num_positive: int = 0,
    temperature: float = 0.07,
    *,
    unbiased: bool = False,
    generator: torch.Generator | None = None,
) -> InBatchLossOutput:
    """Return the in-batch TSC loss in the paper's form (equation 4).

    The loss is the mean over the 2N images i of ::

        - 1/|P_i| sum_{p in P_i} log p(x_p) - target_weight log p(t)

    P_i: the other view of i and k sampled images with its label. t: the target of its class. p: the softmax over all
    images except i and the C targets, each once. Targets are not anchors and are not sampled. A class without a target
    has no second term; a class with several targets uses the mean of their terms. target_weight: lambda >= 0. All
    other arguments are those of `in_batch_loss`.
    """
    _check(views, labels, num_positive, temperature, targets, target_class, 1, "all")
    N, sampled = len(views), None
    if 0 < num_positive < 2 * N - 2:
        sampled = _sample_columns(labels, N, 1, num_positive, generator)
    distinct = distinct_vectors(views, labels, targets, target_class, copies=1)
    return mean_loss(distinct, anchor_blocks(distinct, sampled, "images"), temperature, unbiased, target_weight)


def _sample_columns(labels: Tensor, N: int, r: int, k: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Sample the positives of every row. Return them as columns of the distinct vectors (`moco.losses.blocks`).

    Args:
        labels: (N + C·r,), the labels of the rows of one view.

    Returns:
        (2N, k + 1) for the images, and (C, 2r(k + 1)) for the targets: the positives of all 2r copies of a target are
        in one row. The column 2N + C stands for no positive.
    """
    M = len(labels)
    device = "cpu" if generator is None else generator.device
    random_ints = torch.randint(RANDOM_INT_BOUND, (2 * M, k), generator=generator, device=device)
    positives = sample_batch_positives(labels.repeat(2), to_device(random_ints, labels.device))  # (2M, k + 1) rows
    C = (M - N) // r
    image = torch.arange(N, device=labels.device)
    target = torch.arange(2 * N, 2 * N + C, device=labels.device).repeat_interleave(r)
    none = image.new_full((1,), 2 * N + C)
    column_of_row = torch.cat([image, target, N + image, target, none])  # (2M + 1,); entry -1: no positive
    by_view = column_of_row[positives].view(2, M, k + 1)
    of_targets = by_view[:, N:].reshape(2, C, r * (k + 1)).transpose(0, 1)  # (C, 2, r(k + 1))
    return by_view[:, :N].reshape(2 * N, k + 1), of_targets.flatten(1)


def _check(
    views: Tensor,
    labels: Tensor,
    num_positive: int,
    temperature: float,
    targets: Tensor | None,
    target_class: Tensor | None,
    target_repeat: int,
    anchors: str,
) -> None:
    """Check shapes and numbers only: reading tensor values would make the host wait for the GPU."""
    N, D = (views.shape[0], views.shape[-1]) if views.dim() == 3 else (0, 0)
    C = len(targets) if targets is not None and targets.dim() else 0
    if not (N and views.shape[1] == 2 and views.is_floating_point()):
        raise ValueError(f"views {describe_tensor(views)}, expected (N, 2, D) floats with N >= 1")
    if not (labels.shape == (N,) and are_integers(labels)):
        raise ValueError(f"labels {describe_tensor(labels)}, expected ({N},) integers for views {tuple(views.shape)}")
    if (targets is None) != (target_class is None):
        raise ValueError("targets and target_class: only one was given, expected both or neither")
    if targets is not None and not (C and targets.shape == (C, D) and targets.is_floating_point()):
        raise ValueError(f"targets {describe_tensor(targets)}, expected (C, {D}) floats for views {tuple(views.shape)}")
    if targets is not None and not (target_class.shape == (C,) and are_integers(target_class)):
        raise ValueError(
            f"target_class {describe_tensor(target_class)}, expected ({C},) integers (the class of each target)"
        )
    if anchors not in ANCHORS or (anchors == "targets" and targets is None):
        raise ValueError(f"anchors {anchors!r}, expected one of {ANCHORS}; 'targets' requires the argument targets")
    if num_positive < 0 or target_repeat < 1 or not temperature > 0:
        found = f"num_positive {num_positive}, target_repeat {target_repeat}, temperature {temperature}"
        raise ValueError(f"{found}; expected num_positive >= 0, target_repeat >= 1, temperature > 0")


def are_integers(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def describe_tensor(values: Tensor) -> str:
    return f"{tuple(values.shape)} {str(values.dtype).removeprefix('torch.')}"
