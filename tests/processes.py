"""Start the project's programs in processes of their own, without paying for the imports each time.

Importing PyTorch takes seconds. `Program` forks a program from a server (Python's forkserver) that has imported the
project once per test process. The program is otherwise an ordinary process with its own session, signals and exit code.
Tests of the launchers themselves, and of the start of Python, use `subprocess`.
"""

import multiprocessing.process
import multiprocessing.util
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from multiprocessing import forkserver
from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests import ROOT
from utils.distributed import rendezvous
from utils.run import signals

FORKSERVER = mp.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["main_moco_supcon_imba", "main_lincls_imba", "examples.results.page", "examples.results.study"]
)
TIMEOUT = 240.0  # seconds


@cache
def start_server() -> None:
    """Start the server in the project's root, because it looks for the modules to preload in its working directory."""
    before = Path.cwd()
    os.chdir(ROOT)
    forkserver.ensure_running()
    os.chdir(before)


def spawn(work: Callable, args: tuple, nprocs: int) -> None:
    """Run work(rank, *args) in nprocs processes and wait. An exception in one of them is raised here."""
    start_server()
    mp.start_processes(work, args, nprocs, start_method="forkserver")


def join_group(rank: int, port: int, world_size: int = 2, device: str = "cpu") -> AbstractContextManager:
    """Return a context in which this process is a rank of a group on this machine; see `rendezvous.group`."""
    own_device = torch.device("cuda", rank) if device == "cuda" else torch.device(device)
    url = f"tcp://127.0.0.1:{port}"
    return rendezvous.group(own_device, None, rendezvous.by_url(url, world_size, rank, several=False), TIMEOUT)


class Program:
    """A program of this project in a process of its own, with the interface of `subprocess.Popen` that tests need.

    Args:
        words: the command without the interpreter: a script and its flags, or "-m", a module and its flags.
        cwd: the working directory. env: variables to set; a value of None removes the variable.
        stdout, stderr: descriptors of this process to write to. The caller keeps them open until the program runs.
        fork_workers: fork the processes that the program starts by `torch.multiprocessing.spawn`. Not with CUDA.
    """

    def __init__(
        self,
        words: list[str],
        cwd: Path = ROOT,
        env: dict[str, str | None] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        fork_workers: bool = False,
    ):
        start_server()
        self.args, self.returncode = words, None
        folder = Path(tempfile.mkdtemp(prefix="program_"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._files = [folder / name for name in ("stdout", "stderr")]
        for file in self._files:
            file.touch()
        targets = [
            file if descriptor is None else f"/proc/{os.getpid()}/fd/{descriptor}"
            for file, descriptor in zip(self._files, (stdout, stderr), strict=True)
        ]
        self._process = FORKSERVER.Process(
            target=_run, args=(words, str(cwd), dict(os.environ), env or {}, targets, fork_workers)
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        self.returncode = self._process.exitcode
        return self.returncode

    def lines(self, timeout: float = TIMEOUT) -> Iterator[str]:
        """Yield the lines of stdout as they are written, until the process ends."""
        end = time.monotonic() + timeout
        with self._files[0].open() as out:
            while time.monotonic() < end:
                ended = self.poll() is not None
                while line := out.readline():
                    yield line
                if ended:
                    return
                time.sleep(0.01)
        raise TimeoutError(f"{self.args}: no end within {timeout} s")

    def wait_for(self, text: str) -> str:
        """Wait for a line of stdout that contains the text, and return it."""
        for line in self.lines():
            if text in line:
                return line
        raise AssertionError(f"{text!r} is not in the output: {self.communicate()}")

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """Wait for the process to end; return what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"{self.args}: no end within {timeout} s")
        return self.stdout, self.stderr

    def kill(self) -> None:
        """Kill the process and all other processes of its session."""
        os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        self.poll()

    @property
    def stdout(self) -> str:
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        return self._files[1].read_text()


def run(words: list[str], **options) -> Program:
    """Run a program to its end; see `Program`."""
    program = Program(words, **options)
    program.communicate()
    return program


def _run(words: list[str], cwd: str, environment: dict, changes: dict, outputs: list, fork_workers: bool) -> None:
    """Become the program: session, folder, environment, output, signals and arguments as a shell would set them."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment | {name: value for name, value in changes.items() if value is not None})
    for name in (name for name, value in changes.items() if value is None):
        os.environ.pop(name, None)
    for number, output in enumerate(outputs, start=1):
        handle = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.process._parent_process = None  # the program is not a multiprocessing worker
    # multiprocessing drops finalizers registered before a fork, and the server imported this module before the fork.
    multiprocessing.util.Finalize(None, signals._kill_remaining_workers, exitpriority=10)
    if fork_workers:
        mp.spawn = partial(mp.start_processes, start_method="fork")
    module = words[0] == "-m"
    sys.argv = words[1:] if module else list(words)
    sys.path.insert(0, str(ROOT))
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def descendants(pid: int) -> list[int]:
    """Return the process IDs of a process and all its descendants, read from /proc."""
    parent_of = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent_of[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue  # the process has ended
    pids = [pid]
    for member in pids:
        pids += [child for child, parent in parent_of.items() if parent == member]
    return pids


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# For each launcher: the words before the script and the flags after it.
LAUNCHERS = {
    "release": lambda: ([], ["--multiprocessing-distributed", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]),
    "torchrun": lambda: (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], []),
}
