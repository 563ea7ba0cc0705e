"""Edge cases of `in_batch_loss`: one image, one label, half precision, memory, bad input."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moco.losses import blocks, in_batch_loss
from moco.losses.positives import RANDOM_INT_BOUND
from tests.in_batch import (
    BOTH_DENOMINATORS,
    C,
    D,
    N,
    assert_close,
    gradients,
    loops,
    make_target_args,
    seeded_generator,
)
from tests.refusals import assert_names
from tests.tiny import unit_vectors

pytestmark = pytest.mark.usefixtures("block")


@BOTH_DENOMINATORS
def test_single_image_has_zero_loss_and_gradient(unbiased):
    views = unit_vectors(1, 2, D, dim=2).requires_grad_()
    for num_positive in (0, 6):
        loss = in_batch_loss(views, torch.tensor([4]), num_positive, unbiased=unbiased)
        (gradient,) = torch.autograd.grad(loss, views)
        assert_close((loss, gradient), (torch.zeros_like(loss), torch.zeros_like(views)))


def test_unbiased_loss_of_single_label_is_zero(batch):
    for num_positive in (0, 2):
        loss = in_batch_loss(batch["views"], torch.zeros_like(batch["labels"]), num_positive, unbiased=True)
        assert_close((loss, *gradients(loss, batch)), (torch.zeros_like(loss), torch.zeros_like(batch["views"])))


@BOTH_DENOMINATORS
@pytest.mark.parametrize("target_class", [[5, 6, 7], [0, 0, 9], [1, 1, 1]], ids=str)
def test_target_classes_need_not_match_image_classes(batch, target_class, unbiased):
    target_args = make_target_args() | {"target_class": torch.tensor(target_class)}
    for anchors in ("all", "targets"):
        draws = torch.randint(RANDOM_INT_BOUND, (2 * (N + 3 * C), 4), generator=seeded_generator())
        ours = in_batch_loss(
            **batch, num_positive=4, **target_args, anchors=anchors, unbiased=unbiased, generator=seeded_generator()
        )
        assert_close(
            ours, loops.loss(*batch.values(), 4, 0.07, *target_args.values(), anchors, unbiased, draws.tolist())
        )


@BOTH_DENOMINATORS
@pytest.mark.parametrize("temperature", [0.001, 10.0])
def test_loss_and_gradient_are_finite_at_extreme_temperatures(batch, temperature, unbiased):
    for dtype in (torch.float32, torch.float64):
        views = batch["views"].detach().to(dtype).requires_grad_()
        loss = in_batch_loss(views, batch["labels"], 2, temperature, **make_target_args(), unbiased=unbiased)
        (gradient,) = torch.autograd.grad(loss, views)
        assert loss.dtype == gradient.dtype == dtype and loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(batch, dtype):
    half = batch["views"].detach().to(dtype).requires_grad_()
    target_args = make_target_args() | {"generator": None}
    expected = in_batch_loss(half.detach().float(), batch["labels"], **target_args)
    exact = in_batch_loss(half.detach().double(), batch["labels"], **target_args)
    torch.testing.assert_close(expected.double(), exact, rtol=1e-6, atol=1e-6)
    loss = in_batch_loss(half, batch["labels"], **target_args)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.autograd.grad(loss, half)[0].dtype == dtype
    full = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = in_batch_loss(full, batch["labels"], **target_args)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    plain = torch.autograd.grad(in_batch_loss(full, batch["labels"], **target_args), full)
    assert torch.equal(torch.autograd.grad(loss, full)[0], *plain)


@pytest.mark.parametrize("batch", [0], indirect=True)
def test_second_derivative_matches_finite_differences(batch):
    views, labels = batch["views"].detach()[:3].requires_grad_(), batch["labels"][:3]
    assert torch.autograd.gradgradcheck(lambda views: in_batch_loss(views, labels, 2, 0.3), views)


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for output in out if isinstance(out, tuple | list) else [out]:
            if isinstance(output, torch.Tensor):
                self.elements = max(self.elements, output.untyped_storage().nbytes() // output.element_size())
        return out


@BOTH_DENOMINATORS
@pytest.mark.parametrize("num_positive", [0, 2])
def test_largest_tensor_is_not_quadratic_in_batch_size(monkeypatch, num_positive, unbiased):
    monkeypatch.setitem(blocks.MAX_LOGITS_PER_BLOCK, "cpu", 2000)
    views, labels = unit_vectors(80, 2, D, dim=2).requires_grad_(), torch.randint(0, C, (80,))
    with LargestTensor() as largest:
        in_batch_loss(views, labels, num_positive, **make_target_args(25), unbiased=unbiased).backward()
    rows = 2 * (80 + 25 * C)
    assert largest.elements <= max(2000 + 163, 3 * rows, 163 * D) < 160**2 / 10


@BOTH_DENOMINATORS
def test_backward_of_many_logits_stores_none_of_them(monkeypatch, unbiased):
    views, labels = unit_vectors(80, 2, D, dim=2).requires_grad_(), torch.randint(0, C, (80,))

    def stored_elements(max_logits: int) -> int:
        monkeypatch.setattr(blocks, "MAX_STORED_LOGITS", max_logits)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            in_batch_loss(views, labels, 2, unbiased=unbiased)
        return sum(sizes)

    assert stored_elements(160**2) > 160**2 > 10 * stored_elements(160**2 - 1)


V, Y = unit_vectors(N, 2, D, dim=2), torch.zeros(N, dtype=torch.long)
T = {"targets": unit_vectors(C, D), "target_class": torch.arange(C)}


@pytest.mark.parametrize(
    ("arguments", "options", "facts"),
    [
        ((V[:, 0], Y), {}, ["views", "(7, 4)", "float64", "(N, 2, D)"]),
        ((V[:, :1], Y), {}, ["views", "(7, 1, 4)"]),
        ((V[:0], Y[:0]), {}, ["views", "(0, 2, 4)"]),
        ((V.long(), Y), {}, ["views", "int64"]),
        ((V, Y[1:]), {}, ["labels", "(6,)", "int64", "(7,)"]),
        ((V, Y[:, None]), {}, ["labels", "(7, 1)"]),
        ((V, Y.double()), {}, ["labels", "(7,)", "float64"]),
        ((V, Y, -1), {}, ["num_positive", "-1"]),
        ((V, Y, 0, 0.0), {}, ["temperature", "0.0"]),
        ((V, Y, 0, float("nan")), {}, ["temperature", "nan"]),
        ((V, Y), {"targets": T["targets"]}, ["targets", "target_class"]),
        ((V, Y), {"target_class": T["target_class"]}, ["targets", "target_class"]),
        ((V, Y), T | {"targets": T["targets"][:, 1:]}, ["targets", "(3, 3)", "float64", "(C, 4)"]),
        ((V, Y), T | {"targets": T["targets"][0]}, ["targets", "(4,)"]),
        ((V, Y), {name: target_args[:0] for name, target_args in T.items()}, ["targets", "(0, 4)"]),
        ((V, Y), T | {"target_class": T["target_class"][1:]}, ["target_class", "(2,)", "int64", "(3,)"]),
        ((V, Y), T | {"target_class": T["target_class"].double()}, ["target_class", "float64"]),
        ((V, Y), T | {"target_repeat": 0}, ["target_repeat", "0"]),
        ((V, Y), T | {"anchors": "target"}, ["anchors", "'target'", "'targets'", "'all'"]),
        ((V, Y), {"anchors": "targets"}, ["anchors", "'targets'"]),
    ],
)
def test_bad_input_raises_one_line_naming_the_value(arguments, options, facts):
    with pytest.raises(ValueError) as error:
        in_batch_loss(*arguments, **options)
    assert "\n" not in str(error.value)
    assert_names(str(error.value), *facts)
