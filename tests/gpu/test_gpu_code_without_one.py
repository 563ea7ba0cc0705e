"""What is written for GPUs, as far as a machine without one can tell: torch's answers replaced."""

import os
from types import SimpleNamespace

import pytest
import torch

import main_moco_supcon_imba as stage1
from tests.refusals import exit_message, line_with, refusal
from utils import devices, distributed, rendezvous
from utils.errors import run
from utils.optimizers import sgd
from utils.run import launch
from utils.run.compute import ComputeConfig

GPU = torch.device("cuda", 0)


def test_the_optimiser_is_not_fused():
    """Fused, an overflow in the first step of float16 leaves momentum that nobody has filled."""
    assert not sgd([torch.nn.Parameter(torch.ones(1))], 0.1, 0.9, 0.0).defaults["fused"]


def test_float16_with_an_overflow_in_its_first_step_goes_on():
    weight = torch.nn.Parameter(torch.ones(4))
    compute, optimizer = ComputeConfig(torch.device("cpu"), amp="fp16"), sgd([weight], 0.1, 0.9, 0.0)
    compute.step((weight * torch.finfo(torch.float32).max).sum(), optimizer)
    for _ in range(3):
        compute.step(weight.sum(), optimizer)
    assert torch.allclose(weight, 1 - 0.1 * torch.tensor(1 + 1.9 + 2.71))


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as torch says; nothing may be put on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_device_is_checked_without_touching_it(two_gpus, monkeypatch):
    monkeypatch.setattr(torch, "empty", None)
    devices.check_device("cuda", 2)
    devices.check_device("cuda:1", 1)
    refusal(lambda: devices.check_device("cuda:2", 1), "cuda:2", "2", "0")


@pytest.mark.parametrize(("device", "threads"), [("cpu", 2), ("cuda", 4)])
def test_processes_of_one_machine_share_its_cores(device, threads, monkeypatch):
    """16 cores, four processes: on the CPU two threads and two loader workers each; a GPU's are four and four."""
    monkeypatch.setattr(launch, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    try:
        workers = launch._share_cores(torch.device(device), None, processes=4)
        assert (torch.get_num_threads(), workers) == (threads, threads)
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
    assert launch.world_size_from(args) == 2
    assert launch._device(args, local_rank=1) == torch.device("cuda", 0)


@pytest.mark.parametrize(("others", "shared"), [("b", False), ("a", True)])
def test_processes_that_share_a_gpu_are_refused_when_they_have_met(others, shared, monkeypatch):
    monkeypatch.setattr(distributed, "from_all_ranks", lambda mine: [mine, others])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    if not shared:
        rendezvous.check_one_gpu_each(GPU)
        return
    refusal(lambda: rendezvous.check_one_gpu_each(GPU), "processes 0, 1", "GPU", "CUDA_VISIBLE_DEVICES")


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
    with pytest.raises(KeyError), ComputeConfig(GPU, tf32=tf32, deterministic=deterministic).arithmetic():
        assert settings() == expected
        raise KeyError
    assert settings() == before


def test_on_the_cpu_nothing_changes_and_a_note_reports_it(capsys):
    before = settings()
    with ComputeConfig(torch.device("cpu"), tf32=True, deterministic=True).arithmetic():
        assert settings() == before
    notes = capsys.readouterr().out
    assert notes.splitlines() == [line_with(notes, flag, "cpu") for flag in ("--tf32", "--deterministic")]


def test_cublas_is_told_before_its_first_product(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    ComputeConfig(torch.device("cpu"))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    ComputeConfig(torch.device("cpu"), deterministic=True)
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_an_operation_without_a_deterministic_form_is_one_line(capsys):
    def work() -> None:
        raise RuntimeError("avg_pool3d_backward_cuda does not have a deterministic implementation, but you set ...")

    exit_message(lambda: run(work), capsys, "--deterministic", "avg_pool3d_backward_cuda", "--arch")
