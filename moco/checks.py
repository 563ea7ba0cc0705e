"""Checks of the arguments of `KCL` and `InBatchKCL`, and of the batches that they are called with."""

import math
from numbers import Integral

import torch
from torch import Tensor, nn

from moco.losses import LOSS_FORMS
from moco.losses.batch_loss import are_integers
from utils import distributed

AT_LEAST_ONE = ("dim", "K", "tr", "num_classes", "parts")
AT_LEAST_ZERO = ("num_positive", "assignment_interval")


def check_arguments(T: float, tw: float, loss_form: str, m: float = 0.0, **integers: int) -> None:
    """Raise ValueError if an argument of a constructor is outside its range.

    Args:
        T, tw, loss_form, m: arguments of `moco.builder.KCL`.
        integers: the arguments named in AT_LEAST_ONE and AT_LEAST_ZERO.
    """
    if loss_form not in LOSS_FORMS:
        raise ValueError(f"loss_form {loss_form!r}, expected one of {LOSS_FORMS}")
    for name, value, valid, expected in (
        ("T", T, 0 < T < math.inf, "a temperature > 0"),
        ("tw", tw, 0 <= tw < math.inf, "a weight >= 0"),
        ("m", m, 0 <= m <= 1, "a momentum from 0 to 1"),
        *((name, n, _is_integer(n, 1), "an integer >= 1") for name, n in integers.items() if name not in AT_LEAST_ZERO),
        *((name, n, _is_integer(n, 0), "an integer >= 0") for name, n in integers.items() if name in AT_LEAST_ZERO),
    ):
        if not valid:
            raise ValueError(f"{name}={value!r}, expected {expected}")


def _is_integer(value: int, smallest: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= smallest


def check_last_layer(encoder: nn.Module) -> nn.Linear:
    """Return the layer `fc` of an encoder; raise ValueError if `fc` is not a Linear layer."""
    fc = getattr(encoder, "fc", None)
    if not isinstance(fc, nn.Linear):
        found = "has no layer named fc" if fc is None else f"has a {type(fc).__name__} as fc"
        raise ValueError(
            f"mlp=True: {type(encoder).__name__} {found}, expected a Linear. Give its last layer the name fc, or pass "
            "mlp=False and a network that ends in its own projection head"
        )
    return fc


def check_batch(im_q: Tensor, im_k: Tensor, labels: Tensor, num_classes: int | None) -> Tensor:
    """Check the arguments of `forward` before the model changes. Return the labels as (N,) int64.

    On a GPU, the range of the labels is checked by an assertion on the device, so the host does not wait. It ends the
    program at a later call with "device-side assert triggered". On other devices, a wrong label is a ValueError.

    Args:
        im_q, im_k: (N, ...), the two views. labels: (N,) integers. num_classes: C, or None if labels are not used.

    Raises:
        ValueError: A shape or dtype is wrong, or a label is outside 0 ... C - 1.
        RuntimeError: Called in torch.inference_mode. A step changes the model, which must not hold inference tensors.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "forward is a training step and changes the model, so it does not run in torch.inference_mode(); "
            "for features, call model.encoder_q"
        )
    if not len(im_q) or len(im_k) != len(im_q) or labels.shape != (len(im_q),):
        raise ValueError(
            f"im_q, im_k and labels of shapes {tuple(im_q.shape)}, {tuple(im_k.shape)} and {tuple(labels.shape)}; "
            "expected N images, N images and (N,) with N >= 1"
        )
    if not are_integers(labels):
        raise ValueError(f"labels of dtype {labels.dtype}, expected integers")
    labels = labels.long()
    if num_classes is not None:
        smallest, largest = labels.aminmax()
        if labels.is_cuda:
            torch._assert_async((smallest >= 0) & (largest < num_classes))
        elif smallest < 0 or largest >= num_classes:
            raise ValueError(
                f"labels from {int(smallest)} to {int(largest)}, expected 0 to {num_classes - 1} "
                f"(num_classes={num_classes})"
            )
    return labels


def check_queue_length(K: int, batch_size: int) -> None:
    """Raise ValueError if the queue length is not a multiple of the global batch, the batches of all ranks together."""
    batch_size *= distributed.world_size()
    if K % batch_size:
        raise ValueError(f"queue length K={K}, expected a multiple of the global batch ({batch_size})")
