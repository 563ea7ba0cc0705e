"""What a launcher gives and what it does not, before any process has met another."""

import socket
import subprocess
import sys

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy
from imagenet_inat.sets import digits
from tests import ROOT
from tests.refusals import exit_message, line_with, refusal
from utils import errors
from utils.parser import parse
from utils.run import launch

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of the first of torchrun's two processes."""
    for name, value in ({"LOCAL_RANK": "0"} | TORCHRUN).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_a_launcher_that_sets_half_is_named(missing, torchrun, flags, tmp_path, monkeypatch):
    """Also with a flag that is idle, and said to be, before that."""
    monkeypatch.delenv(missing)
    flags = [*flags, "--dist-url", "tcp://elsewhere:1"]
    refusal(lambda: stage1.main([*flags, "--run-dir", str(tmp_path / "run")]), "LOCAL_RANK", missing, "torchrun")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_more_processes_than_gpus_are_refused(device, torchrun, flags, monkeypatch):
    """On a machine with one GPU, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = stage1.get_args_parser().parse_args([*flags, "--device", device])
    refusal(lambda: launch.world_size_from(args), "2 processes", "1 GPU", "--device cpu")
    args.device = "cpu"
    assert launch.world_size_from(args) == 2


def test_the_arguments_stay_as_given_and_the_place_is_handed_over(flags, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args, places = stage1.get_args_parser().parse_args([*flags, "-j", "3"]), []
    before = dict(vars(args))
    launch.launch(lambda _, place: places.append(place), args)
    assert places == [launch.Place(torch.device("cpu"), 3)] and vars(args) == before


def test_the_releases_launch_flags_are_idle_under_torchrun(torchrun, flags, capsys):
    words = [*flags, "--world-size", "2", "--rank", "3", "--dist-url", "tcp://elsewhere:1"]
    args = parse(stage1.get_args_parser(), words)
    note = capsys.readouterr().out
    assert note == line_with(note, "--world-size", "--rank", "--dist-url", "torchrun") + "\n"
    launch.check(args)


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
def test_what_a_launcher_sets_wrongly_is_named(name, value, expected, torchrun, flags, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    message = refusal(lambda: stage1.main([*flags, "--run-dir", str(tmp_path / "run")]), value, *expected, "torchrun")
    assert message.startswith(name) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("main", [stage1.main, stage2.main, cross_entropy.main])
def test_an_address_is_of_no_use_to_one_process(main, capsys):
    words = ["--dataset", "digits", "--dist-url", "tcp://elsewhere:1"]
    exit_message(lambda: main(words), capsys, "--dist-url", "--multiprocessing-distributed")


def test_a_backend_is_idle_for_one_process(flags, capsys):
    parse(stage1.get_args_parser(), [*flags, "--dist-backend", "gloo"])
    note = capsys.readouterr().out
    assert note == line_with(note, "--dist-backend", "one process") + "\n"
    parse(stage1.get_args_parser(), [*flags, "--dist-backend", "gloo", "--multiprocessing-distributed"])
    assert capsys.readouterr().out == ""


def test_a_port_that_is_taken_is_said_before_any_process_starts(flags, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        words = [*flags, "--multiprocessing-distributed", "--dist-url", f"tcp://localhost:{port}"]
        taken_port = [f"--dist-url tcp://localhost:{port}", f"port {port}"]
        refusal(lambda: stage1.main([*words, "--run-dir", str(tmp_path / "run")]), *taken_port)
        second = stage1.get_args_parser().parse_args([*words, "--world-size", "2", "--rank", "1"])
        launch.check(second)  # the port is the first machine's
    assert not (tmp_path / "run").exists()


def test_fewer_validation_images_than_processes_are_refused(torchrun, flags, digits_root, tmp_path):
    val, every = tmp_path / "val.txt", digits.prepare(digits_root, 50.0)[1] / "digits_LT_val.txt"
    val.write_text(every.read_text().splitlines(keepends=True)[0])
    words = [*flags, "--val-txt", str(val), "--monitor-freq", "1", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--monitor-freq", "1 validation image", "2 processes")
    assert not (tmp_path / "run").exists()


def test_out_of_memory_is_one_line_with_what_to_do(capsys):
    def main() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. x")

    exit_message(lambda: errors.run(main), capsys, "CUDA out of memory. x", "-b", "--amp bf16", code=1)


def test_what_found_no_room_says_nothing_behind_the_line():
    """As PyTorch's loader does, whose destructor misses what its constructor had no room for."""
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
