"""Code for GPUs, tested without a GPU by replacing functions of torch."""

import os
from types import SimpleNamespace

import pytest
import torch

import main_moco_supcon_imba as stage1
from tests.refusals import exit_message, line_with, refusal
from utils import devices, distributed
from utils.distributed import launch, rendezvous
from utils.errors import run
from utils.optimizers import sgd
from utils.run.compute import ComputeConfig

GPU = torch.device("cuda", 0)


def test_sgd_is_not_fused():
    """A fused optimiser leaves uninitialised momentum after an overflow in the first float16 step."""
    assert not sgd([torch.nn.Parameter(torch.ones(1))], 0.1, 0.9, 0.0).defaults["fused"]


def test_float16_continues_after_overflow_in_first_step():
    weight = torch.nn.Parameter(torch.ones(4))
    compute, optimizer = ComputeConfig(torch.device("cpu"), amp="fp16"), sgd([weight], 0.1, 0.9, 0.0)
    compute.step((weight * torch.finfo(torch.float32).max).sum(), optimizer)
    for _ in range(3):
        compute.step(weight.sum(), optimizer)
    assert torch.allclose(weight, 1 - 0.1 * torch.tensor(1 + 1.9 + 2.71))


@pytest.fixture
def two_gpus(monkeypatch):
    """Make torch report two GPUs. No tensor can be put on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_device_is_checked_without_allocating_on_it(two_gpus, monkeypatch):
    monkeypatch.setattr(torch, "empty", None)
    devices.check_device("cuda", 2)
    devices.check_device("cuda:1", 1)
    refusal(lambda: devices.check_device("cuda:2", 1), "cuda:2", "2", "0")


@pytest.mark.parametrize(("device", "threads"), [("cpu", 2), ("cuda", 4)])
def test_processes_of_one_machine_share_its_cores(device, threads, monkeypatch):
    """Four processes share 16 cores: on the CPU two threads and two loader workers each, on GPUs four and four."""
    monkeypatch.setattr(launch, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    try:
        workers = launch._share_cores(torch.device(device), None, processes=4)
        assert (torch.get_num_threads(), workers) == (threads, threads)
    finally:
        torch.set_num_threads(before)


def test_launcher_may_show_each_process_only_its_own_gpu(two_gpus, flags, monkeypatch):
    """As with Slurm's --gpus-per-task. This process is the second of two on one machine."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "1")
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    args = stage1.get_args_parser().parse_args([*flags, "--device", "cuda"])
    assert launch.expected_world_size(launch.LaunchConfig.from_args(args)) == 2
    assert launch._device(args, local_rank=1) == torch.device("cuda", 0)


@pytest.mark.parametrize(("others", "shared"), [("b", False), ("a", True)])
def test_processes_that_share_a_gpu_are_refused(others, shared, monkeypatch):
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [mine, others])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    if not shared:
        rendezvous.check_one_gpu_each(GPU)
        return
    refusal(lambda: rendezvous.check_one_gpu_each(GPU), "processes 0, 1", "GPU", "CUDA_VISIBLE_DEVICES")


def arithmetic_settings() -> tuple:
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
def test_arithmetic_follows_flags_and_is_restored_afterwards(tf32, deterministic, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = arithmetic_settings()
    with pytest.raises(KeyError), ComputeConfig(GPU, tf32=tf32, deterministic=deterministic).precision_context():
        assert arithmetic_settings() == expected
        raise KeyError
    assert arithmetic_settings() == before


def test_arithmetic_flags_only_print_a_note_on_cpu(capsys):
    before = arithmetic_settings()
    with ComputeConfig(torch.device("cpu"), tf32=True, deterministic=True).precision_context():
        assert arithmetic_settings() == before
    notes = capsys.readouterr().out
    assert notes.splitlines() == [line_with(notes, flag, "cpu") for flag in ("--tf32", "--deterministic")]


def test_deterministic_sets_cublas_workspace(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    ComputeConfig(torch.device("cpu"))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    ComputeConfig(torch.device("cpu"), deterministic=True)
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_nondeterministic_operation_is_reported_in_one_line(capsys):
    def work() -> None:
        raise RuntimeError("avg_pool3d_backward_cuda does not have a deterministic implementation, but you set ...")

    exit_message(lambda: run(work), capsys, "--deterministic", "avg_pool3d_backward_cuda", "--arch")
