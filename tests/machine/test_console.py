"""Console output: closed pipes, consoles without Unicode, out-of-memory errors, Ctrl-C during startup."""

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
from utils import errors, startup
from utils.run import checkpoint

PRINT_SYMBOLS = r"from utils import errors; errors.run(lambda: print('10 \xf7 2 \u2264 6'))"  # imports quickly


def closed_pipe() -> int:
    """Return the write end of a pipe whose read end is closed."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_run_continues_when_stdout_pipe_is_closed(flags, tmp_path):
    words = ["main_moco_supcon_imba.py", *flags, "--epochs", "2", "--run-dir", str(tmp_path / "run")]
    done = run(words, stdout=closed_pipe())
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint.read_checkpoint(tmp_path / "run" / checkpoint.LAST)["epoch"] == 2


def test_closed_stdout_is_not_an_error():
    options = {"preexec_fn": lambda: os.close(1)}
    done = subprocess.run([sys.executable, "-c", PRINT_SYMBOLS], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)
    assert (done.returncode, done.stderr) == (0, "")


def test_program_ends_quietly_when_reader_closes_pipe():
    program = "from utils import errors; errors.run(lambda: print('x' * 10**6, flush=True))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=closed_pipe(), stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_broken_pipe_other_than_stdout_raises(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w") as out, pytest.raises(BrokenPipeError):
        monkeypatch.setattr(sys, "stdout", out)
        errors.run(lambda: os.write(closed_pipe(), b"x"))


def test_unsupported_characters_are_escaped():
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", PRINT_SYMBOLS], cwd=ROOT, env=plain, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "10 \\xf7 2 \\u2264 6\n", "")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**55),
        lambda: torch.empty(2**31, 2**31, 2**31),
        lambda: np.empty(2**55),
    ],
)
def test_out_of_memory_is_reported_in_one_line(allocate, capsys):
    exit_message(lambda: errors.run(allocate), capsys, "-b", code=1)


@pytest.mark.parametrize(
    ("script", "number", "code"),
    [
        (["main_moco_supcon_imba.py"], signal.SIGINT, 130),
        (["main_lincls_imba.py"], signal.SIGUSR1, 0),
        (["target_generation.py", "--check", "missing.npy"], signal.SIGTERM, 143),
    ],
)
def test_signal_during_imports_prints_one_line(script, number, code):
    command = [sys.executable, "-X", "importtime", *script]
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell script's & ignores SIGINT
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    next(line for line in program.stderr if "torch" in line or "numpy" in line)  # the first imports are done
    program.send_signal(number)
    _, error = program.communicate(timeout=100)
    printed = [line for line in error.splitlines() if line and not line.startswith("import time:")]
    assert program.returncode == code and len(printed) == 1 and number.name in printed[0], printed


@pytest.mark.parametrize(("number", "code"), errors.EXIT_CODES.items())
def test_signal_outside_training_prints_one_line(number, code, capsys):
    """As with --compare-heads, and before the first step of a run. The handlers of the caller are restored."""
    if signal.getsignal(number) is signal.SIG_IGN:  # a shell starts its background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        errors.run(lambda: signal.raise_signal(number), "nothing was saved")
    printed = [line for line in capsys.readouterr().err.splitlines() if line]
    assert end.value.code == code and len(printed) == 1
    assert number.name in printed[0] and "nothing was saved" in printed[0]
    assert signal.getsignal(number) is before


EXIT_WITH_LOADER = """
import sys, time
from multiprocessing.util import Finalize
import torch
from torch.utils.data import DataLoader
from utils.run import signals

batches = iter(DataLoader(torch.arange(9.0), num_workers=1, worker_init_fn=signals.ignore_in_worker))
next(batches)
Finalize(None, time.sleep, args=(1,), exitpriority=9)  # after the worker is killed: time to be notified of its end
sys.batches = batches
sys.exit(2)
"""


def test_loader_process_left_after_error_prints_nothing():
    done = subprocess.run(
        [sys.executable, "-c", EXIT_WITH_LOADER], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (2, "")


def test_error_in_a_program_that_imports_the_scripts_is_shown():
    code = "import utils.startup; 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert sys.excepthook is not startup._interrupted  # pytest imports the scripts too


LOG_AFTER_A_KILL = """
import os, signal
from tqdm import tqdm
from utils.distributed import log

log("before")
if not os.fork():  # such as a loader process that is killed while it prints
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
log("after")
"""


def test_process_prints_after_its_child_was_killed_while_printing():
    command = [sys.executable, "-c", LOG_AFTER_A_KILL]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout == "before\nafter\n"
