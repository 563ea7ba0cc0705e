"""What is printed and to whom: nobody who reads on, a console without ÷; memory that runs out; Ctrl-C at the start."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests import ROOT
from tests.processes import run
from tests.refusals import exit_message
from utils import errors
from utils.run import checkpoint

SAY = r"from utils import errors; errors.run(lambda: print('10 \xf7 2 \u2264 6'))"  # loads in no time


def nobody() -> int:
    """The end of a pipe at whose other end nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_a_run_goes_on_where_nobody_reads_what_it_prints(flags, tmp_path):
    words = ["main_moco_supcon_imba.py", *flags, "--epochs", "2", "--run-dir", str(tmp_path / "run")]
    done = run(words, stdout=nobody())
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint.load(tmp_path / "run" / checkpoint.LAST)["epoch"] == 2


def test_a_console_that_is_closed_is_no_error():
    closed = {"preexec_fn": lambda: os.close(1)}
    done = subprocess.run([sys.executable, "-c", SAY], cwd=ROOT, stderr=subprocess.PIPE, text=True, **closed)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_report_ends_quietly_where_nobody_reads_on():
    program = "from utils import errors; errors.run(lambda: print('x' * 10**6, flush=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=nobody(), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_broken_pipe_that_is_not_the_readers_is_no_quiet_end(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w") as out, pytest.raises(BrokenPipeError):
        monkeypatch.setattr(sys, "stdout", out)
        errors.run(lambda: os.write(nobody(), b"x"))


def test_a_console_that_has_not_the_characters_shows_their_numbers():
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", SAY], cwd=ROOT, env=plain, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "10 \\xf7 2 \\u2264 6\n", "")


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(2**55),
        lambda: torch.empty(2**31, 2**31, 2**31),
        lambda: np.empty(2**55),
    ],
)
def test_memory_that_is_not_there_is_one_line(ask, capsys):
    exit_message(lambda: errors.run(ask), capsys, "-b", code=1)


@pytest.mark.parametrize("script", [["main_moco_supcon_imba.py"], ["-m", "imagenet_inat.splits"]])
def test_ctrl_c_while_the_modules_load_ends_in_one_line(script):
    command = [sys.executable, "-X", "importtime", *script]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # also where a script's & ignores it
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard)
    next(line for line in program.stderr if "torch" in line or "numpy" in line)  # its first parts are there
    program.send_signal(signal.SIGINT)
    _, error = program.communicate(timeout=100)
    printed = [line for line in error.splitlines() if line and not line.startswith("import time:")]
    assert program.returncode == 130 and len(printed) == 1, printed


LEAVE = """
import sys, time
from multiprocessing.util import Finalize
import torch
from torch.utils.data import DataLoader
from utils.run import signals

batches = iter(DataLoader(torch.arange(9.0), num_workers=1, worker_init_fn=signals.ignore_in_worker))
next(batches)
Finalize(None, time.sleep, args=(1,), exitpriority=9)  # after the worker is killed: long enough to hear of it
sys.batches = batches
sys.exit(2)
"""


def test_a_loader_process_that_an_error_leaves_behind_ends_without_a_word():
    done = subprocess.run([sys.executable, "-c", LEAVE], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (2, "")
