"""Start processes that can be killed or suspended: forked, or as a new Python, each in its own session.

Importing torch takes longer than a run of the soak test. A forked process already has the imports, and is otherwise a
process like any other, with its own files, memory and signals.
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

HANG_SECONDS = 900.0  # long enough for a two-second run at the lowest priority on a busy machine
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.chmod", "os.link")


def fork(work: Callable[[], object], log: Path, environment: dict[str, str] | None = None) -> int:
    """Run work() in a new process and session with output in log and log.err. Return its process ID."""
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
        # A fork does not run the exit functions of its parent. Register the one that every run registers.
        multiprocessing.util.Finalize(None, stop_signals._kill_remaining_workers, exitpriority=10)
        code = _exit_code(work)
        multiprocessing.util._exit_function()  # as at the end of every Python process: ends loader workers
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
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class RunningProcesses:
    """One run of one or two processes. pids: the processes that were started."""

    def __init__(self, pids: list[int]):
        self.pids, self.codes = pids, {}

    def poll(self) -> int | None:
        """Return None while a process is alive, then 0 or the exit code of a failed process (negative: signal)."""
        for pid in self.pids:
            if pid not in self.codes:
                waited, status = os.waitpid(pid, os.WNOHANG)
                if waited:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        if len(self.codes) < len(self.pids):
            return None
        return next((code for code in self.codes.values() if code), 0)

    def wait(self, seconds: float = HANG_SECONDS) -> int | None:
        """Wait for the end and return what `poll` returns, or kill the processes after `seconds` and return None."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                return None
            time.sleep(0.005)
        return code

    def process_tree(self) -> list[int]:
        """Return the living processes and all their descendants."""
        return [member for pid in self.pids if pid not in self.codes for member in descendants(pid)]

    def kill(self, only: int | None = None, pause: float = 0.0) -> None:
        """Send SIGKILL to one process (if `only` is given), and after a pause to the whole process tree."""
        process_tree = self.process_tree()
        for victims in ([only] if only else [], process_tree):
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(pause if victims is not process_tree else 0)
        while self.poll() is None:
            time.sleep(0.001)


def watch_operations(folder: Path, report: Callable[[int], None]) -> None:
    """From now on, call report(n) just before the n-th operation of this process on a file in the folder."""
    prefix, count = str(folder), 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in OPERATIONS and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(prefix):
            count += 1
            report(count)

    sys.addaudithook(hook)


def start_run(
    stage, flags: list[str], log: Path, launcher: str = "forked", processes: int = 1, setup: Callable = lambda: None
) -> RunningProcesses:
    """Start a run of a stage (the module of a script).

    Args:
        launcher: forked, python, torchrun or --multiprocessing-distributed; the last two start two processes. Two
            forked processes have the variables of torchrun.
        setup: called first in each forked process.
    """
    script = Path(stage.__file__).name
    if launcher == "forked":

        def work() -> None:
            setup()
            sys.argv = [script, *flags]
            stage.main(flags)

        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        common |= {"LOCAL_WORLD_SIZE": str(processes)}
        ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return RunningProcesses([fork(work, log, rank if processes > 1 else None) for rank in ranks])
    command = [sys.executable]
    if launcher == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    elif launcher == "--multiprocessing-distributed":
        flags = [*flags, launcher, "--dist-url", f"tcp://127.0.0.1:{free_port()}"]

    def exec_command() -> None:
        os.chdir(ROOT)
        os.execv(sys.executable, [*command, script, *flags])

    return RunningProcesses([fork(exec_command, log, {"OMP_NUM_THREADS": "1"})])
