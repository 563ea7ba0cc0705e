"""Checks of the launcher's variables and flags, before the processes connect."""

import socket
import subprocess
import sys

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy
from imagenet_inat.loaders import DeviceBatches
from imagenet_inat.sets import digits
from moco.loader import Normalise
from tests import ROOT
from tests.refusals import exit_message, line_with, refusal
from utils import errors
from utils.cli.parser import parse
from utils.distributed import launch

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def check(args) -> int:
    return launch.check(launch.LaunchConfig.from_args(args), args.batch_size)


@pytest.fixture
def torchrun(monkeypatch):
    """Set the environment of the first of two torchrun processes."""
    for name, value in ({"LOCAL_RANK": "0"} | TORCHRUN).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_missing_torchrun_variable_is_named(missing, torchrun, flags, tmp_path, monkeypatch):
    """The error comes even after the note about the ignored --dist-url."""
    monkeypatch.delenv(missing)
    flags = [*flags, "--dist-url", "tcp://elsewhere:1"]
    refusal(lambda: stage1.main([*flags, "--run-dir", str(tmp_path / "run")]), "LOCAL_RANK", missing, "torchrun")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_more_processes_than_gpus_are_refused(device, torchrun, flags, monkeypatch):
    """torch is patched to report one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = stage1.get_args_parser().parse_args([*flags, "--device", device])
    refusal(
        lambda: launch.expected_world_size(launch.LaunchConfig.from_args(args)), "2 processes", "1 GPU", "--device cpu"
    )
    args.device = "cpu"
    assert launch.expected_world_size(launch.LaunchConfig.from_args(args)) == 2


def test_only_training_needs_a_batch_that_divides_over_the_processes(torchrun, probe_flags, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    args = stage2.get_args_parser().parse_args([*probe_flags, "-b", "256"])
    refusal(lambda: check(args), "--batch-size 256", "3 processes")
    assert launch.check(launch.LaunchConfig.from_args(args), batch_size=0) == 3


def test_unknown_device_is_refused_under_torchrun(torchrun, flags):
    refusal(lambda: stage1.main([*flags, "--device", "gpu"]), "device gpu")


def test_launch_passes_process_info_and_keeps_arguments(flags, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args, processes = stage1.get_args_parser().parse_args([*flags, "-j", "3"]), []
    original = dict(vars(args))
    launch.launch(lambda _, process: processes.append(process), None, launch.LaunchConfig.from_args(args), {})
    assert processes == [launch.ProcessInfo(torch.device("cpu"), 3)] and vars(args) == original


def test_release_launch_flags_are_ignored_under_torchrun(torchrun, flags, capsys):
    words = [*flags, "--targeted", "--world-size", "2", "--rank", "3", "--dist-url", "tcp://elsewhere:1"]
    args = parse(stage1.get_args_parser(), words)
    note = capsys.readouterr().out
    assert note == line_with(note, "--world-size", "--rank", "--dist-url", "torchrun") + "\n"
    check(args)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LOCAL_RANK", "x", ["0", "1", "LOCAL_WORLD_SIZE"]),
        ("LOCAL_RANK", "2", ["0", "1", "LOCAL_WORLD_SIZE"]),
        ("LOCAL_RANK", "", ["0", "1", "LOCAL_WORLD_SIZE"]),
        ("RANK", "5", ["0", "1", "WORLD_SIZE"]),
        ("RANK", "-1", ["0", "1", "WORLD_SIZE"]),
        ("WORLD_SIZE", "x", ["1"]),
        ("WORLD_SIZE", "0", ["1"]),
        ("LOCAL_WORLD_SIZE", "0", ["1", "2", "WORLD_SIZE"]),
        ("LOCAL_WORLD_SIZE", "3", ["1", "2", "WORLD_SIZE"]),
        ("MASTER_PORT", "x", ["1", "65535"]),
        ("MASTER_PORT", "0", ["1", "65535"]),
    ],
)
def test_invalid_torchrun_variable_is_named(name, value, expected, torchrun, flags, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    message = refusal(lambda: stage1.main([*flags, "--run-dir", str(tmp_path / "run")]), value, *expected, "torchrun")
    assert message.startswith(name) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("main", [stage1.main, stage2.main, cross_entropy.main])
def test_address_is_refused_for_one_process(main, capsys):
    words = ["--dataset", "digits", "--dist-url", "tcp://elsewhere:1"]
    exit_message(lambda: main(words), capsys, "--dist-url", "--multiprocessing-distributed")


def test_backend_is_ignored_for_one_process(flags, capsys):
    parse(stage1.get_args_parser(), [*flags, "--targeted", "--dist-backend", "gloo"])
    note = capsys.readouterr().out
    assert note == line_with(note, "--dist-backend", "one process") + "\n"
    parse(stage1.get_args_parser(), [*flags, "--targeted", "--dist-backend", "gloo", "--multiprocessing-distributed"])
    assert capsys.readouterr().out == ""


def test_port_in_use_is_reported_before_processes_start(flags, tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        words = [*flags, "--multiprocessing-distributed", "--dist-url", f"tcp://localhost:{port}"]
        expected = [f"--dist-url tcp://localhost:{port}", f"port {port}"]
        refusal(lambda: stage1.main([*words, "--run-dir", str(tmp_path / "run")]), *expected)
        second_machine = stage1.get_args_parser().parse_args([*words, "--world-size", "2", "--rank", "1"])
        check(second_machine)  # only the first machine opens the port
    assert not (tmp_path / "run").exists()


def test_fewer_validation_images_than_processes_are_refused(torchrun, flags, digits_root, tmp_path):
    val, whole_list = tmp_path / "val.txt", digits.prepare(digits_root, 50.0)[1] / "digits_LT_val.txt"
    val.write_text(whole_list.read_text().splitlines(keepends=True)[0])
    words = [*flags, "--val-txt", str(val), "--monitor-freq", "1", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--monitor-freq", "1 validation image", "2 processes")
    assert not (tmp_path / "run").exists()


def test_out_of_memory_error_suggests_flags(capsys):
    def main() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. x")

    exit_message(lambda: errors.run(main), capsys, "CUDA out of memory. x", "-b", "--amp bf16", code=1)


def test_destructor_after_full_disk_prints_nothing():
    """As in PyTorch's DataLoader, whose destructor fails after its constructor ran out of shared memory."""
    program = """
import errno
from utils import errors
class Loader:
    def __init__(self):
        raise OSError(errno.ENOSPC, "No space left on device")
    def __del__(self):
        self.workers
def main():
    Loader()
errors.run(main)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == line_with(done.stderr, "error: ", "/dev/shm", "No space left on device") + "\n"


def test_more_workers_than_cores_is_one_note(monkeypatch, capsys, recwarn):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(launch, "usable_cores", lambda: 2)
    assert launch._share_cores(torch.device("cpu"), 3, 1) == 3
    line_with(capsys.readouterr().out, "-j 3", 2)
    DeviceBatches(range(4), Normalise([0] * 3, [1] * 3, torch.device("cpu")), 10_000)
    assert not recwarn.list
