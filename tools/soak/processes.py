"""Processes to be broken: forked from a parent that has imported everything, or started cold, each in a session.

To import torch takes seconds, a run of the soak one: what is forked here has the imports behind it and is else a
process like any other, with its own files, memory and signals. It may be killed, stopped, and waited for.
"""

import contextlib
import multiprocessing.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests import ROOT
from tests.processes import descendants, free_port
from utils import errors
from utils.run import signals as stop_signals

HANG = 900.0  # seconds; at the lowest priority on a machine that others use, a run of two seconds takes minutes
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.chmod", "os.link")


def fork(work: Callable[[], object], log: Path, environment: dict[str, str] | None = None) -> int:
    """Run work() in a new process and session; its output goes to log and log.err. Returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        os.environ.update(environment or {})
        for number, name in ((1, log), (2, error_log(log))):
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        # What the parent has registered for its end is not for that of a fork; this is, as in every run.
        multiprocessing.util.Finalize(None, stop_signals._kill_workers_left, exitpriority=10)
        code = _exit_code(work)
        multiprocessing.util._exit_function()  # as at the end of every Python process: takes loader workers along
    finally:
        with contextlib.suppress(OSError):  # a full disk
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def error_log(log: Path) -> Path:
    return log.with_name(log.name + ".err")


def _exit_code(work: Callable[[], object]) -> int:
    try:
        errors.run(work)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class Running:
    """One run, of one process or of two that meet; pids: of those that were started."""

    def __init__(self, pids: list[int]):
        self.pids, self.codes = pids, {}

    def poll(self) -> int | None:
        """None while one lives; else 0, or the exit code of one that failed, below 0 if by a signal."""
        for pid in self.pids:
            if pid not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        if len(self.codes) < len(self.pids):
            return None
        return next((code for code in self.codes.values() if code), 0)

    def wait(self, seconds: float = HANG) -> int | None:
        """As `poll`, after its end; None: it hangs, and was killed."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                return None
            time.sleep(0.005)
        return code

    def family(self) -> list[int]:
        """The processes that live, and all that they have started."""
        return [member for pid in self.pids if pid not in self.codes for member in descendants(pid)]

    def kill(self, only: int | None = None, pause: float = 0.0) -> None:
        """SIGKILL for one of them, and after a pause for all of them and what they started."""
        family = self.family()
        for victims in ([only] if only else [], family):
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(pause if victims is not family else 0)
        while self.poll() is None:
            time.sleep(0.001)


def watch_operations(folder: Path, report: Callable[[int], None]) -> None:
    """From now on call report(n) in this process just before its n-th operation on a file of the folder."""
    inside, count = str(folder), 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in OPERATIONS and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(inside):
            count += 1
            report(count)

    sys.addaudithook(hook)


def begin(
    stage, flags: list[str], log: Path, launcher: str = "forked", processes: int = 1, first: Callable = lambda: None
) -> Running:
    """Start a run of a stage, a script's module; first: called in each forked process before.

    launcher: forked, python, torchrun, or the release's --multiprocessing-distributed; the last two are of two
    processes. Forked, two processes meet as under torchrun, whose variables they have.
    """
    script = Path(stage.__file__).name
    if launcher == "forked":

        def work() -> None:
            first()
            sys.argv = [script, *flags]
            stage.main(flags)

        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        together |= {"LOCAL_WORLD_SIZE": str(processes)}
        ranks = [together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return Running([fork(work, log, rank if processes > 1 else None) for rank in ranks])
    command = [sys.executable]
    if launcher == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    elif launcher == "--multiprocessing-distributed":
        flags = [*flags, launcher, "--dist-url", f"tcp://127.0.0.1:{free_port()}"]

    def replace() -> None:
        os.chdir(ROOT)
        os.execv(sys.executable, [*command, script, *flags])

    return Running([fork(replace, log, {"OMP_NUM_THREADS": "1"})])
