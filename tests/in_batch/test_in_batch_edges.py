"""`in_batch_loss` at its edges: one image, one label, half precision, memory, bad input."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moco.losses import blocks, in_batch_loss
from moco.losses.positives import LARGEST_DRAW
from tests.in_batch import BOTH, C, D, N, close, gradients, loops, seeded, with_targets
from tests.refusals import assert_names
from tests.tiny import unit

pytestmark = pytest.mark.usefixtures("block")


@BOTH
def test_one_image_alone_has_no_loss_and_no_gradient(unbiased):
    views = unit(1, 2, D, dim=2).requires_grad_()
    for num_positive in (0, 6):
        loss = in_batch_loss(views, torch.tensor([4]), num_positive, unbiased=unbiased)
        (gradient,) = torch.autograd.grad(loss, views)
        close((loss, gradient), (torch.zeros_like(loss), torch.zeros_like(views)))


def test_unbiased_with_one_label_has_no_loss_and_no_gradient(batch):
    for num_positive in (0, 2):
        loss = in_batch_loss(batch["views"], torch.zeros_like(batch["labels"]), num_positive, unbiased=True)
        close((loss, *gradients(loss, batch)), (torch.zeros_like(loss), torch.zeros_like(batch["views"])))


@BOTH
@pytest.mark.parametrize("target_class", [[5, 6, 7], [0, 0, 9], [1, 1, 1]], ids=str)
def test_a_class_may_have_no_target_and_a_target_no_image_and_a_class_several(batch, target_class, unbiased):
    given = with_targets() | {"target_class": torch.tensor(target_class)}
    for anchors in ("all", "targets"):
        draws = torch.randint(LARGEST_DRAW, (2 * (N + 3 * C), 4), generator=seeded())
        ours = in_batch_loss(**batch, num_positive=4, **given, anchors=anchors, unbiased=unbiased, generator=seeded())
        close(ours, loops.loss(*batch.values(), 4, 0.07, *given.values(), anchors, unbiased, draws.tolist()))


@BOTH
@pytest.mark.parametrize("temperature", [0.001, 10.0])
def test_nothing_overflows_at_any_temperature(batch, temperature, unbiased):
    for dtype in (torch.float32, torch.float64):
        views = batch["views"].detach().to(dtype).requires_grad_()
        loss = in_batch_loss(views, batch["labels"], 2, temperature, **with_targets(), unbiased=unbiased)
        (gradient,) = torch.autograd.grad(loss, views)
        assert loss.dtype == gradient.dtype == dtype and loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_autocast_changes_nothing(batch, dtype):
    half = batch["views"].detach().to(dtype).requires_grad_()
    given = with_targets() | {"generator": None}
    expected = in_batch_loss(half.detach().float(), batch["labels"], **given)
    exact = in_batch_loss(half.detach().double(), batch["labels"], **given)
    torch.testing.assert_close(expected.double(), exact, rtol=1e-6, atol=1e-6)
    loss = in_batch_loss(half, batch["labels"], **given)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.autograd.grad(loss, half)[0].dtype == dtype
    full = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = in_batch_loss(full, batch["labels"], **given)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    plain = torch.autograd.grad(in_batch_loss(full, batch["labels"], **given), full)
    assert torch.equal(torch.autograd.grad(loss, full)[0], *plain)


def test_a_second_derivative_is_refused(batch):
    with pytest.raises(RuntimeError, match="in_batch_loss"):
        torch.autograd.grad(in_batch_loss(**batch), batch["views"], create_graph=True)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        return out


@BOTH
@pytest.mark.parametrize("num_positive", [0, 2])
def test_no_tensor_grows_with_the_square_of_the_batch(monkeypatch, num_positive, unbiased):
    monkeypatch.setitem(blocks.LOGITS, "cpu", 2000)
    views, labels = unit(80, 2, D, dim=2).requires_grad_(), torch.randint(0, C, (80,))
    with Largest() as largest:
        in_batch_loss(views, labels, num_positive, **with_targets(25), unbiased=unbiased).backward()
    rows = 2 * (80 + 25 * C)
    assert largest.elements <= max(2000 + 163, 3 * rows, 163 * D) < 160**2 / 10


V, Y = unit(N, 2, D, dim=2), torch.zeros(N, dtype=torch.long)
T = {"targets": unit(C, D), "target_class": torch.arange(C)}


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
        ((V, Y), {name: given[:0] for name, given in T.items()}, ["targets", "(0, 4)"]),
        ((V, Y), T | {"target_class": T["target_class"][1:]}, ["target_class", "(2,)", "int64", "(3,)"]),
        ((V, Y), T | {"target_class": T["target_class"].double()}, ["target_class", "float64"]),
        ((V, Y), T | {"target_repeat": 0}, ["target_repeat", "0"]),
        ((V, Y), T | {"anchors": "target"}, ["anchors", "'target'", "'targets'", "'all'"]),
        ((V, Y), {"anchors": "targets"}, ["anchors", "'targets'"]),
    ],
)
def test_bad_input_is_one_line_that_names_what_was_found(arguments, options, facts):
    with pytest.raises(ValueError) as error:
        in_batch_loss(*arguments, **options)
    assert "\n" not in str(error.value)
    assert_names(str(error.value), *facts)
