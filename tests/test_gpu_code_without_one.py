"""What is written for GPUs, as far as a machine without one can tell: fake tensors, and torch's answers replaced."""

import os
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import main_moco_supcon_imba as stage1
from moco.assignment import Assignment
from moco.builder import KCL
from moco.targets import update_centroids
from tests.tiny import IMAGE, TinyEncoder, unit
from utils import distributed, resolve
from utils.errors import InputError, run
from utils.speed import Speed, arithmetic, sgd

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
            images, labels = torch.randn(3, *IMAGE), torch.zeros(3, dtype=torch.int64)
        with Watch() as watch:
            model(images, images, labels)
    return watch


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_host_does_not_wait_within_a_step(targeted, processes, fake_gpu, monkeypatch):
    watch = fake_step(monkeypatch, processes, targeted=targeted, sep_t=True)
    assert watch.products and not watch.waits


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


def optimiser_arguments(amp: str) -> Namespace:
    return Namespace(device=GPU, amp=amp, lr=0.1, momentum=0.9, weight_decay=0.0)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_the_optimiser_is_not_fused(amp):
    """Fused, an overflow in the first step of float16 leaves momentum that nobody has filled."""
    assert not sgd([torch.nn.Parameter(torch.ones(1))], optimiser_arguments(amp)).defaults["fused"]


def test_float16_with_an_overflow_in_its_first_step_goes_on():
    weight = torch.nn.Parameter(torch.ones(4))
    cpu = Namespace(device=torch.device("cpu"), amp="fp16", channels_last=False, compile=False, deterministic=False)
    speed, optimizer = Speed(cpu), sgd([weight], optimiser_arguments("fp16"))
    speed.step((weight * torch.finfo(torch.float32).max).sum(), optimizer)
    for _ in range(3):
        speed.step(weight.sum(), optimizer)
    assert torch.allclose(weight, 1 - 0.1 * torch.tensor(1 + 1.9 + 2.71))


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as torch says; nothing may be put on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_device_is_checked_without_touching_it(two_gpus, monkeypatch):
    monkeypatch.setattr(torch, "empty", None)
    resolve.check_device("cuda", 2)
    resolve.check_device("cuda:1", 1)
    with pytest.raises(InputError, match="device cuda:2: there are 2, counted from 0"):
        resolve.check_device("cuda:2", 1)


@pytest.mark.parametrize(("device", "threads"), [("cpu", 2), ("cuda", 4)])
def test_processes_of_one_machine_share_its_cores(device, threads, monkeypatch):
    """16 cores, four processes: on the CPU two threads and two loader workers each; a GPU's are four and four."""
    monkeypatch.setattr(distributed, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS")
    before, args = torch.get_num_threads(), Namespace(device=torch.device(device), workers=None)
    try:
        distributed._share_cores(args, processes=4)
        assert (torch.get_num_threads(), args.workers) == (threads, threads)
    finally:
        torch.set_num_threads(before)


def test_a_launcher_that_shows_each_process_its_own_gpu(two_gpus, flags, monkeypatch):
    """As Slurm's --gpus-per-task; two processes on one machine, the second of which is asked."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "1")
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    args = stage1.get_args_parser().parse_args([*flags, "--device", "cuda"])
    assert distributed.world_size_from(args) == 2
    assert distributed._device(args, local_rank=1) == torch.device("cuda", 0)


@pytest.mark.parametrize(("others", "shared"), [("b", False), ("a", True)])
def test_processes_that_share_a_gpu_are_refused_when_they_have_met(others, shared, monkeypatch):
    def gather(everyone: list, mine: str) -> None:
        everyone[:] = [mine, others]

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    if not shared:
        distributed._check_one_gpu_each(GPU)
        return
    with pytest.raises(InputError, match="processes 0, 1 have the same GPU, a: start one process for each GPU"):
        distributed._check_one_gpu_each(GPU)


def settings() -> tuple:
    cudnn = torch.backends.cudnn
    strict = torch.are_deterministic_algorithms_enabled()
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, strict


@pytest.mark.parametrize(
    ("tf32", "deterministic", "expected"),
    [
        (False, False, ("highest", False, True, False)),
        (True, False, ("high", True, True, False)),
        (False, True, ("highest", False, False, True)),
    ],
)
def test_arithmetic_is_that_of_the_flags_and_ends_with_the_run(tf32, deterministic, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = settings()
    with pytest.raises(KeyError), arithmetic(Namespace(device=GPU, tf32=tf32, deterministic=deterministic)):
        assert settings() == expected
        raise KeyError
    assert settings() == before


def test_on_the_cpu_nothing_changes_and_that_is_said(capsys):
    before = settings()
    with arithmetic(Namespace(device=torch.device("cpu"), tf32=True, deterministic=True)):
        assert settings() == before
    notes = [f"note: --{flag} without effect on cpu, it is for GPUs" for flag in ("tf32", "deterministic")]
    assert capsys.readouterr().out.splitlines() == notes


def test_cublas_is_told_before_its_first_product(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    plain = {"device": torch.device("cpu"), "amp": "off", "channels_last": False, "compile": False}
    Speed(Namespace(deterministic=False, **plain))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    Speed(Namespace(deterministic=True, **plain))
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_an_operation_without_a_deterministic_form_is_one_line(capsys):
    def work() -> None:
        raise RuntimeError("avg_pool3d_backward_cuda does not have a deterministic implementation, but you set ...")

    with pytest.raises(SystemExit) as end:
        run(work)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: --deterministic: avg_pool3d_backward_cuda has no deterministic form on a GPU; "
        "leave --deterministic out, or choose another --arch\n"
    )
