"""The operations of a step on a GPU, tested without a GPU by fake tensors."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moco.bcl import BCL
from moco.builder import KCL
from moco.classifier import add_classifier
from moco.in_batch import InBatchKCL
from moco.paco import PaCo
from moco.targeted import TargetModel
from moco.targets.assignment import Assignment
from moco.targets.centroids import update_centroids
from tests.tiny import IMAGE, TinyEncoder, unit_vectors
from utils import distributed
from utils.distributed.collectives import GatherWithGradient

GPU = torch.device("cuda", 0)


@pytest.fixture
def fake_gpu(monkeypatch):
    """Allow fake tensors on a GPU that does not exist."""
    try:
        with FakeTensorMode(), GPU:
            TinyEncoder(num_classes=2)
    except RuntimeError:  # in PyTorch 2.4 and 2.9
        pytest.skip("this PyTorch asks the driver even for a fake tensor")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


class OperationRecorder(TorchDispatchMode):
    """Record the operations of a block that make the host wait for the device, and its matrix products."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __init__(self):
        super().__init__()
        self.waits, self.products = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in self.WAITING or (
            self._changes_device(name, args, out) and not self._is_non_blocking(name, args, kwargs)
        ):
            self.waits.append(name)
        if name in ("mm", "addmm", "bmm"):
            self.products.append({tensor.dtype for tensor in args if isinstance(tensor, torch.Tensor)})
        return out

    @staticmethod
    def _changes_device(name: str, args: tuple, out) -> bool:
        """Return whether a copy goes from one device to another."""
        source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
        return isinstance(source, torch.Tensor) and source.ndim > 0 and source.device.type != out.device.type

    @staticmethod
    def _is_non_blocking(name: str, args: tuple, kwargs: dict) -> bool:
        return bool(args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking"))


class IdentityAssignment:
    """The identity, in place of `Assignment`, which may wait."""

    def start(self, centroids):
        self.classes = len(centroids)

    def result(self):
        return torch.arange(self.classes, device=GPU)


def record_step(monkeypatch, build: Callable[[], nn.Module], processes: int = 1, views: int = 2) -> OperationRecorder:
    """Record the forward pass of a step on a GPU, N = 3 in each process. The backward pass would need a real GPU."""
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    for name in ("utils.distributed.collectives", "moco.in_batch", "moco.paco", "moco.bcl"):
        monkeypatch.setattr(f"{name}.gather", lambda tensor: torch.cat([tensor] * processes))
    monkeypatch.setattr(GatherWithGradient, "apply", lambda tensor: torch.cat([tensor] * processes))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with GPU:
            model = build()
            images, labels = torch.randn(3, *IMAGE), torch.zeros(3, dtype=torch.int64)
        with OperationRecorder() as recorder:
            model(*[images] * views, labels)
    return recorder


def with_targets(model: TargetModel) -> TargetModel:
    """Return the model with targets of three classes, which are assigned without waiting."""
    model.optimal_target, model._solver = torch.randn(3 * model.tr, 4), IdentityAssignment()
    return model


def queue_model(**options) -> KCL:
    """Return a model with C = 3, D = 4, Q = 12."""
    model = with_targets(KCL(TinyEncoder, 4, 12, num_positive=2, num_classes=3, **options))
    model.uses_shuffle_bn = True  # as with batch norm
    return model


def in_batch_model(**options) -> InBatchKCL:
    """Return a model with C = 3, D = 4: TSC if a form is given."""
    targeted = "loss_form" in options
    return with_targets(InBatchKCL(TinyEncoder, 4, num_positive=2, targeted=targeted, num_classes=3, **options))


def joint_model(kind: str) -> KCL:
    model = queue_model(targeted=True)
    add_classifier(model, torch.ones(3), 1.0, kind)
    return model


def paco_model(momentum_keys: bool) -> PaCo:
    return PaCo(TinyEncoder, torch.ones(3), dim=4, K=12, num_classes=3, momentum_keys=momentum_keys)


EACH_NUMBER_OF_PROCESSES = pytest.mark.parametrize("processes", [1, 2])


@EACH_NUMBER_OF_PROCESSES
@pytest.mark.parametrize("options", [{}, {"targeted": True, "sep_t": True}], ids=["KCL", "TSC"])
def test_step_does_not_synchronize_with_gpu(options, processes, fake_gpu, monkeypatch):
    recorder = record_step(monkeypatch, lambda: queue_model(**options), processes)
    assert recorder.products and not recorder.waits


@EACH_NUMBER_OF_PROCESSES
@pytest.mark.parametrize("options", [{}, {"loss_form": "paper"}, {"loss_form": "release", "tr": 3}, {"unbiased": True}])
def test_in_batch_step_does_not_synchronize_with_gpu(options, processes, fake_gpu, monkeypatch):
    recorder = record_step(monkeypatch, lambda: in_batch_model(**options), processes)
    assert recorder.products and not recorder.waits


ONE_STAGE = {
    "KCL and a linear classifier": partial(joint_model, "linear"),
    "TSC and a classifier of targets": partial(joint_model, "targets"),
    "PaCo": partial(paco_model, momentum_keys=True),
    "GPaCo": partial(paco_model, momentum_keys=False),
    "BCL": lambda: BCL(TinyEncoder, 4, 0.1, torch.ones(3)),
}


@EACH_NUMBER_OF_PROCESSES
@pytest.mark.parametrize("method", ONE_STAGE)
def test_one_stage_step_does_not_synchronize_with_gpu(method, processes, fake_gpu, monkeypatch):
    views = 3 if method == "BCL" else 2
    recorder = record_step(monkeypatch, ONE_STAGE[method], processes, views)
    assert recorder.products and not recorder.waits


def test_recorder_sees_blocking_copy_in_batch_loss(fake_gpu, monkeypatch):
    monkeypatch.setattr("moco.losses.batch_loss.to_device", lambda draws, device: draws.to(device))
    assert record_step(monkeypatch, in_batch_model).waits == ["_to_copy"]


def test_recorder_sees_blocking_copies(fake_gpu, monkeypatch):
    """The copies are those of the draws and of the shuffle's permutation."""
    monkeypatch.setattr("moco.builder.to_device", lambda draws, device: draws.to(device))
    assert record_step(monkeypatch, queue_model, processes=2).waits == ["_to_copy"] * 2


def test_centroids_use_float64_on_gpu_which_tf32_does_not_round(fake_gpu):
    with FakeTensorMode(), GPU, OperationRecorder() as recorder:
        updated = update_centroids(torch.randn(3, 4), torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))
    assert recorder.products == [{torch.float64}] and updated.dtype == torch.float32


def test_assignment_thread_waits_on_gpu_of_its_rank(monkeypatch):
    entered, waited = [], []

    class DeviceContext:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    monkeypatch.setattr(torch.cuda, "device", DeviceContext)
    solver = Assignment(unit_vectors(3, 4))
    solver._device = torch.device("cuda", 3)
    solver._incoming.copy_(unit_vectors(3, 4))
    solver._solve_when(SimpleNamespace(synchronize=lambda: waited.append(entered[-1])))
    assert waited == [torch.device("cuda", 3)]
