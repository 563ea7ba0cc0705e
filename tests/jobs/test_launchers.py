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
from utils.errors import InputError
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
    with pytest.raises(InputError, match=f"LOCAL_RANK is set and {missing} not, expected all that torchrun sets"):
        stage1.main([*flags, "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_more_processes_than_gpus_are_refused(device, torchrun, flags, monkeypatch):
    """On a machine with one GPU, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = stage1.get_args_parser().parse_args([*flags, "--device", device])
    with pytest.raises(InputError, match="2 processes on a machine with 1 GPUs: start 1, or --device cpu"):
        launch.world_size_from(args)
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
    assert capsys.readouterr().out == "note: --world-size, --rank, --dist-url without effect under torchrun\n"
    launch.check(args)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LOCAL_RANK", "x", "LOCAL_RANK=x: expected a whole number, 0 to 1, as LOCAL_WORLD_SIZE is 2"),
        ("LOCAL_RANK", "2", "LOCAL_RANK=2: expected a whole number, 0 to 1, as LOCAL_WORLD_SIZE is 2"),
        ("LOCAL_RANK", "", "LOCAL_RANK=: expected a whole number, 0 to 1, as LOCAL_WORLD_SIZE is 2"),
        ("RANK", "5", "RANK=5: expected a whole number, 0 to 1, as WORLD_SIZE is 2"),
        ("RANK", "-1", "RANK=-1: expected a whole number, 0 to 1, as WORLD_SIZE is 2"),
        ("WORLD_SIZE", "x", "WORLD_SIZE=x: expected a whole number, 1 or more"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0: expected a whole number, 1 or more"),
        ("LOCAL_WORLD_SIZE", "0", "LOCAL_WORLD_SIZE=0: expected a whole number, 1 to 2, as WORLD_SIZE is 2"),
        ("LOCAL_WORLD_SIZE", "3", "LOCAL_WORLD_SIZE=3: expected a whole number, 1 to 2, as WORLD_SIZE is 2"),
        ("MASTER_PORT", "x", "MASTER_PORT=x: expected a whole number, 1 to 65535"),
        ("MASTER_PORT", "0", "MASTER_PORT=0: expected a whole number, 1 to 65535"),
    ],
)
def test_what_a_launcher_sets_wrongly_is_named(name, value, expected, torchrun, flags, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{expected}(;|,) start with torchrun, or unset LOCAL_RANK$"):
        stage1.main([*flags, "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("main", [stage1.main, stage2.main, cross_entropy.main])
def test_an_address_is_of_no_use_to_one_process(main, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--dataset", "digits", "--dist-url", "tcp://elsewhere:1"])
    assert end.value.code == 2
    expected = "error: --dist-url: of no use without --multiprocessing-distributed, leave it out"
    assert capsys.readouterr().err.startswith(expected)


def test_a_backend_is_idle_for_one_process(flags, capsys):
    parse(stage1.get_args_parser(), [*flags, "--dist-backend", "gloo"])
    assert capsys.readouterr().out == "note: --dist-backend without effect for one process\n"
    parse(stage1.get_args_parser(), [*flags, "--dist-backend", "gloo", "--multiprocessing-distributed"])
    assert capsys.readouterr().out == ""


def test_a_port_that_is_taken_is_said_before_any_process_starts(flags, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        words = [*flags, "--multiprocessing-distributed", "--dist-url", f"tcp://localhost:{port}"]
        with pytest.raises(
            InputError, match=f"--dist-url tcp://localhost:{port}: port {port} of this machine: .* give"
        ):
            stage1.main([*words, "--run-dir", str(tmp_path / "run")])
        second = stage1.get_args_parser().parse_args([*words, "--world-size", "2", "--rank", "1"])
        launch.check(second)  # the port is the first machine's
    assert not (tmp_path / "run").exists()


def test_fewer_validation_images_than_processes_are_refused(torchrun, flags, digits_root, tmp_path):
    val, every = tmp_path / "val.txt", digits.prepare(digits_root, 50.0)[1] / "digits_LT_val.txt"
    val.write_text(every.read_text().splitlines(keepends=True)[0])
    words = [*flags, "--val-txt", str(val), "--monitor-freq", "1", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(
        InputError, match="--monitor-freq: 1 validation images for 2 processes, expected one each or more; start fewer"
    ):
        stage1.main(words)


def test_out_of_memory_is_one_line_with_what_to_do():
    program = (
        "import torch; from utils import errors\ndef main(): raise torch.OutOfMemoryError('CUDA out of memory. x')"
    )
    command = [sys.executable, "-c", f"{program}\nerrors.run(main)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: CUDA out of memory. x. Training needs less with a smaller -b or --amp bf16\n"


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
    assert done.stderr == "error: a log file, or shared memory (/dev/shm): No space left on device\n"
