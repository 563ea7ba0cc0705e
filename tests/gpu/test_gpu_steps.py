"""A step on a CUDA device: `make test-gpu`. Everything here is skipped without one."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from moco.builder import KCL
from moco.encoders import get_encoder
from moco.targets.assignment import Assignment
from tests import oracle
from tests.cuda import NEEDS_CUDA
from tests.tiny import tiny_batch, tiny_model, unit
from utils.optimizers import sgd
from utils.run.compute import ComputeConfig

pytestmark = NEEDS_CUDA
CUDA = torch.device("cuda")
METHOD_OPTIONS = {
    "KCL": {},
    "TSC": {"targeted": True, "sep_t": True, "tw": 0.2},
    "TSC, one pool": {"targeted": True, "sep_t": False, "tr": 2},
}
TOLERANCES = {torch.float64: {"rtol": 1e-9, "atol": 1e-10}, torch.float32: {"rtol": 1e-3, "atol": 1e-5}}


RECIPE = (0.1, 0.9, 1e-4)  # learning rate, momentum, weight decay


def resnet(**options) -> KCL:
    """A float32 model on resnet20 at 8 px: D=16, Q=1024, C=10, its queue full."""
    model = KCL(get_encoder("resnet20", 8), 16, 1024, mlp=True, num_classes=10, targets=unit(10, 16).float(), **options)
    model.queue_labels.random_(10)
    return model


def images(size: int = 64, device: torch.device = CUDA) -> tuple[torch.Tensor, ...]:
    """Two views at 8 px and labels out of 10 classes."""
    return (*torch.randn(2, size, 3, 8, 8, device=device), torch.randint(10, (size,), device=device))


def some_steps(model: KCL, batches: list, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """Losses, gradients, state and assignment of a step on each batch, as float64 on the CPU."""
    model = copy.deepcopy(model).to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record = []
    for im_q, im_k, labels in batches:
        out = model(im_q.to(device, dtype), im_k.to(device, dtype), labels.to(device))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        values = {"loss": out.loss, "class": out.loss_class, "target": out.loss_target, **model.state_dict()}
        values |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        values |= {} if model.assignment is None else {"assignment": model.assignment}
        record.append({n: value.detach().to("cpu", torch.float64, copy=True) for n, value in values.items()})
    return record


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_a_step_is_the_cpus(method, dtype):
    """Three steps beside the CPU's in float64: loss, gradients, queue, centroids, assignment, weights."""
    model, batches = tiny_model(**METHOD_OPTIONS[method]), [tiny_batch() for _ in range(3)]
    reference = some_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(some_steps(model, batches, CUDA, dtype), reference, **TOLERANCES[dtype])


@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_a_step_with_convolutions_and_batch_norm_is_the_cpus(method):
    model, batches = resnet(**METHOD_OPTIONS[method]), [images(device=torch.device("cpu")) for _ in range(2)]
    reference = some_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(some_steps(model, batches, CUDA, torch.float64), reference, rtol=1e-6, atol=1e-8)


def test_a_first_step_that_overflows_leaves_nothing_behind():
    """--amp fp16: the step is skipped, and so are the momentum buffers, which it has not filled."""
    model = resnet().to(CUDA)
    compute, optimizer = ComputeConfig(CUDA, amp="fp16"), sgd(model.parameters(), *RECIPE)
    before = [weight.clone() for weight in model.encoder_q.parameters()]

    def step(factor: float) -> None:
        with compute.autocast():
            out = model(*images())
        compute.step(factor * out.loss, optimizer)

    with compute.arithmetic():
        step(1e30)
        assert all(map(torch.equal, before, model.encoder_q.parameters()))
        for _ in range(10):  # the scale may have to come down a little more
            step(1.0)
    assert not any(map(torch.equal, before, model.encoder_q.parameters()))
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(momentum) == len(before) and all(buffer.isfinite().all() for buffer in momentum)


@contextmanager
def synchronisation(mode: str | int) -> Iterator[None]:
    """What a host that waits for the device gets in this block: default, warn, error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def may_wait(method: Callable) -> Callable:
    def call(*args):
        with synchronisation("default"):
            return method(*args)

    return call


def test_a_host_that_waits_is_an_error():
    """That the next test can fail."""
    with synchronisation("error"), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones((), device=CUDA).item()


def check_that_the_host_does_not_wait(model, monkeypatch) -> None:
    """Forward, backward and optimiser; the assignment is solved on the host and may wait."""
    for name in ("start", "result"):
        monkeypatch.setattr(Assignment, name, may_wait(getattr(Assignment, name)))
    model, batch = model.to(CUDA), images()
    compute, optimizer = ComputeConfig(CUDA), sgd(model.parameters(), *RECIPE)
    with compute.arithmetic():
        for mode in ("default", "default", "error", "error"):
            with synchronisation(mode):
                compute.step(model(*batch).loss, optimizer)
    torch.cuda.synchronize()


@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_the_host_does_not_wait_for_the_device_in_a_step(method, monkeypatch):
    check_that_the_host_does_not_wait(resnet(**METHOD_OPTIONS[method]), monkeypatch)


def test_tf32_does_not_reach_the_centroids():
    """64 classes of 128 dimensions, products large enough for tensor cores, beside the oracle in float64."""
    options = {"dim": 128, "K": 512, "num_classes": 64, "targets": unit(64, 128), "targeted": True, "sep_t": True}
    model = tiny_model(**options).float().to(CUDA)
    im_q, im_k, labels = (tensor.to(CUDA) for tensor in tiny_batch(256, 64))
    before = model.class_centroid.clone()
    with ComputeConfig(CUDA, tf32=True).arithmetic():
        q = model(im_q.float(), im_k.float(), labels).q.detach()
    expected = oracle.centroids(before.cpu().double(), q.cpu().double(), labels.tolist())
    torch.testing.assert_close(model.class_centroid.cpu().double(), expected, rtol=0, atol=1e-6)
