"""What a step does on a GPU, as far as a machine without one can tell: fake tensors."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moco.builder import KCL
from moco.in_batch import InBatch
from moco.targets.assignment import Assignment
from moco.targets.centroids import update_centroids
from tests.tiny import IMAGE, TinyEncoder, unit
from utils import distributed
from utils.distributed import GatherWithGradient

GPU = torch.device("cuda", 0)


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors on a GPU that is not there."""
    try:
        with FakeTensorMode(), GPU:
            TinyEncoder(num_classes=2)
    except RuntimeError:  # 2.4 and 2.9 do
        pytest.skip("this PyTorch asks the driver even for a fake tensor")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


class Watch(TorchDispatchMode):
    """Notes the operations of a block: those that make the host wait for the device, and the products."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __init__(self):
        super().__init__()
        self.waits, self.products = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in self.WAITING or (self._crosses(name, args, out) and not self._goes_on(name, args, kwargs)):
            self.waits.append(name)
        if name in ("mm", "addmm", "bmm"):
            self.products.append({tensor.dtype for tensor in args if isinstance(tensor, torch.Tensor)})
        return out

    @staticmethod
    def _crosses(name: str, args: tuple, out) -> bool:
        """Whether a copy goes from one device to another."""
        source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
        return isinstance(source, torch.Tensor) and source.ndim > 0 and source.device.type != out.device.type

    @staticmethod
    def _goes_on(name: str, args: tuple, kwargs: dict) -> bool:
        return bool(args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking"))


class Solved:
    """In place of `Assignment`, which may wait: the identity."""

    def start(self, centroids):
        self.classes = len(centroids)

    def result(self):
        return torch.arange(self.classes, device=GPU)


def fake_step(monkeypatch, processes: int = 1, **options) -> Watch:
    """What one step does on a GPU, as far as the forward pass: C = 3, D = 4, Q = 12, N = 3 in each process."""
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "gather", lambda tensor: torch.cat([tensor] * processes))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with GPU:
            model = KCL(TinyEncoder, 4, 12, num_positive=2, num_classes=3, **options)
            model.optimal_target, model._solver = torch.randn(3, 4), Solved()
            model.shuffles = True  # as with batch norm
            images, labels = torch.randn(3, *IMAGE), torch.zeros(3, dtype=torch.int64)
        with Watch() as watch:
            model(images, images, labels)
    return watch


def fake_step_in_batch(monkeypatch, processes: int, **options) -> Watch:
    """The same in the batch: N = 3 in each process, TSC where a form is named; no gradient, which needs a GPU."""
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr("moco.in_batch.gather", lambda tensor: torch.cat([tensor] * processes))
    monkeypatch.setattr(GatherWithGradient, "apply", lambda tensor: torch.cat([tensor] * processes))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with GPU:
            model = InBatch(TinyEncoder, 4, num_positive=2, targeted="loss_form" in options, num_classes=3, **options)
            model.optimal_target, model._solver = torch.randn(3 * model.tr, 4), Solved()
            images, labels = torch.randn(3, *IMAGE), torch.zeros(3, dtype=torch.int64)
        with Watch() as watch, torch.no_grad():
            model(images, images, labels)
    return watch


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_host_does_not_wait_within_a_step(targeted, processes, fake_gpu, monkeypatch):
    watch = fake_step(monkeypatch, processes, targeted=targeted, sep_t=True)
    assert watch.products and not watch.waits


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("options", [{}, {"loss_form": "paper"}, {"loss_form": "release", "tr": 3}, {"unbiased": True}])
def test_the_host_does_not_wait_within_a_step_in_the_batch(options, processes, fake_gpu, monkeypatch):
    assert (watch := fake_step_in_batch(monkeypatch, processes, **options)).products and not watch.waits


def test_the_watch_sees_a_copy_that_waits_in_the_batch(fake_gpu, monkeypatch):
    monkeypatch.setattr("moco.losses.in_batch.sent", lambda draws, device: draws.to(device))
    assert fake_step_in_batch(monkeypatch, processes=1).waits == ["_to_copy"]


def test_the_watch_sees_copies_that_wait(fake_gpu, monkeypatch):
    """Of the draws, and of the shuffle's permutation."""
    monkeypatch.setattr("moco.builder.sent", lambda draws, device: draws.to(device))
    assert fake_step(monkeypatch, processes=2).waits == ["_to_copy"] * 2


def test_centroids_are_float64_on_a_gpu_which_tf32_does_not_round(fake_gpu):
    with FakeTensorMode(), GPU, Watch() as watch:
        moved = update_centroids(torch.randn(3, 4), torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))
    assert watch.products == [{torch.float64}] and moved.dtype == torch.float32


def test_the_assignments_thread_waits_on_the_gpu_of_its_rank(monkeypatch):
    chosen, waited = [], []

    class Chosen:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            chosen.append(self.device)

        def __exit__(self, *_):
            chosen.append(None)

    monkeypatch.setattr(torch.cuda, "device", Chosen)
    solver = Assignment(unit(3, 4))
    solver._device = torch.device("cuda", 3)
    solver._incoming.copy_(unit(3, 4))
    solver._solve_when(SimpleNamespace(synchronize=lambda: waited.append(chosen[-1])))
    assert waited == [torch.device("cuda", 3)]
