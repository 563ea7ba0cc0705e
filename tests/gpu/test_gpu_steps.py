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
from tests.tiny import tiny_batch, tiny_model, unit_vectors
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
    """Return a float32 model on resnet20 at 8 px with D=16, Q=1024, C=10 and a full queue."""
    model = KCL(
        get_encoder("resnet20", 8), 16, 1024, mlp=True, num_classes=10, targets=unit_vectors(10, 16).float(), **options
    )
    model.queue_labels.random_(10)
    return model


def images(size: int = 64, device: torch.device = CUDA) -> tuple[torch.Tensor, ...]:
    """Return two views at 8 px and labels of 10 classes."""
    return (*torch.randn(2, size, 3, 8, 8, device=device), torch.randint(10, (size,), device=device))


def record_steps(model: torch.nn.Module, batches: list, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """Take a step on each batch; return losses, gradients, states and assignments in float64 on the CPU."""
    model = copy.deepcopy(model).to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record = []
    for *views, labels in batches:
        out = model(*(view.to(device, dtype) for view in views), labels.to(device))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        values = {name: value for name, value in out._asdict().items() if name.startswith("loss")}
        values |= model.state_dict()
        values |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        assignment = getattr(model, "assignment", None)
        values |= {} if assignment is None else {"assignment": assignment}
        record.append({n: value.detach().to("cpu", torch.float64, copy=True) for n, value in values.items()})
    return record


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_gpu_step_matches_cpu(method, dtype):
    """Compares three steps with the CPU's in float64: loss, gradients, queue, centroids, assignment and weights."""
    model, batches = tiny_model(**METHOD_OPTIONS[method]), [tiny_batch() for _ in range(3)]
    reference = record_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(record_steps(model, batches, CUDA, dtype), reference, **TOLERANCES[dtype])


@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_gpu_step_with_convolutions_and_batch_norm_matches_cpu(method):
    model, batches = resnet(**METHOD_OPTIONS[method]), [images(device=torch.device("cpu")) for _ in range(2)]
    reference = record_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(record_steps(model, batches, CUDA, torch.float64), reference, rtol=1e-6, atol=1e-8)


def test_overflow_in_first_step_leaves_valid_state():
    """With --amp fp16, the step is skipped and the momentum buffers stay valid."""
    model = resnet().to(CUDA)
    compute, optimizer = ComputeConfig(CUDA, amp="fp16"), sgd(model.parameters(), *RECIPE)
    before = [weight.clone() for weight in model.encoder_q.parameters()]

    def step(factor: float) -> None:
        with compute.autocast():
            out = model(*images())
        compute.step(factor * out.loss, optimizer)

    with compute.precision_context():
        step(1e30)
        assert all(map(torch.equal, before, model.encoder_q.parameters()))
        for _ in range(10):  # the loss scale may have to decrease further
            step(1.0)
    assert not any(map(torch.equal, before, model.encoder_q.parameters()))
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(momentum) == len(before) and all(buffer.isfinite().all() for buffer in momentum)


@contextmanager
def sync_debug_mode(mode: str | int) -> Iterator[None]:
    """Set what happens in this block if the host waits for the device: default, warn or error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def allow_waiting(method: Callable) -> Callable:
    def call(*args):
        with sync_debug_mode("default"):
            return method(*args)

    return call


def test_sync_debug_mode_raises_when_host_waits():
    """Checks that the next test can fail."""
    with sync_debug_mode("error"), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones((), device=CUDA).item()


def assert_step_does_not_synchronize(model, monkeypatch) -> None:
    """Check forward, backward and optimiser. The assignment is solved on the host and may wait."""
    for name in ("start", "result"):
        monkeypatch.setattr(Assignment, name, allow_waiting(getattr(Assignment, name)))
    model, batch = model.to(CUDA), images()
    compute, optimizer = ComputeConfig(CUDA), sgd(model.parameters(), *RECIPE)
    with compute.precision_context():
        for mode in ("default", "default", "error", "error"):
            with sync_debug_mode(mode):
                compute.step(model(*batch).loss, optimizer)
    torch.cuda.synchronize()


@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_step_does_not_synchronize_with_gpu(method, monkeypatch):
    assert_step_does_not_synchronize(resnet(**METHOD_OPTIONS[method]), monkeypatch)


def test_tf32_does_not_affect_centroids():
    """Compares 64 classes of 128 dimensions, large enough for tensor cores, with the oracle in float64."""
    options = {
        "dim": 128,
        "K": 512,
        "num_classes": 64,
        "targets": unit_vectors(64, 128),
        "targeted": True,
        "sep_t": True,
    }
    model = tiny_model(**options).float().to(CUDA)
    im_q, im_k, labels = (tensor.to(CUDA) for tensor in tiny_batch(256, 64))
    before = model.class_centroid.clone()
    with ComputeConfig(CUDA, tf32=True).precision_context():
        q = model(im_q.float(), im_k.float(), labels).q.detach()
    expected = oracle.centroids(before.cpu().double(), q.cpu().double(), labels.tolist())
    torch.testing.assert_close(model.class_centroid.cpu().double(), expected, rtol=0, atol=1e-6)
