"""Area places: full disks, read-only folders, little shared memory, long pauses, clock and file-date changes.

A run that cannot continue must stop with one error line. After the cause is fixed, the same command must continue and
end bit-identical to an undisturbed run. This area needs root: each case mounts file systems in its own mount namespace.
"""

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from tools.soak.base import Base
from tools.soak.kills import HEADS, LOADER, PRETRAINING, find_difference, log_tail, reference_run, run_flags
from tools.soak.processes import HANG_SECONDS, RunningProcesses, error_log, start_run, watch_operations

CLONE_NEWNS = 0x00020000  # linux/sched.h
NOBODY = 65534
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)  # from Debian's faketime package


class HostileRun:
    """One run in a hostile environment. stage, name: one of kills.run_kinds()."""

    def __init__(self, rng: random.Random, base: Base, folder: Path, stage: int, name: str, processes: int = 1):
        self.rng, self.folder, self.log, self.processes = rng, folder, folder / "log", processes
        self.module = stage1 if stage == 1 else stage2
        self.description, self.reference = f"stage {stage}, {name}", reference_run(stage, name, processes, base)
        trained = stage == 1 or "--epochs" in HEADS[name]
        self.flags = [*run_flags(stage, name, base, folder), "--resume", "auto"]
        self.flags += rng.choice(["--save-steps 1", "--save-steps 2", ""]).split() if trained else []
        self.seconds = float((self.reference / "seconds").read_text())
        self.operations = int((self.reference / "operations").read_text())

    def start(self, setup: Callable = lambda: None) -> RunningProcesses:
        return start_run(self.module, self.flags, self.log, processes=self.processes, setup=setup)

    def at_operation(self, action: Callable[[], object]) -> Callable[[], None]:
        """Return a setup function for `start` that calls `action` just before a random file operation."""
        number = 1 + int(self.operations * self.rng.random())
        return lambda: watch_operations(self.folder / "run", lambda n: action() if n == number else None)

    def check_refusal(self, code: int | None) -> str | None:
        """Return None if a failed run printed one error line and exited with 1 or 2, otherwise the problem."""
        lines = [line for line in error_log(self.log).read_text(errors="replace").splitlines() if line.strip()]
        error_log(self.log).write_text("")
        if code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "):
            return None
        ending = "hangs" if code is None else f"exit code {code}"
        return f"{ending}, {len(lines)} lines" + (", a traceback" if "Traceback" in "".join(lines) else "")

    def outcome_after(self, code: int | None, repair: Callable[[], object]) -> dict:
        """Return the outcome of the case. After a refusal, call `repair` and start the run again."""
        failed, detail = code != 0, log_tail(self.log)
        if failed and (problem := self.check_refusal(code)):
            return {"outcome": f"stopped: {problem}", "detail": detail, "command": self.flags, "run": self.description}
        repair()
        if failed and (code := self.start().wait()) != 0:
            return {
                "outcome": f"does not resume: exit code {code}",
                "detail": log_tail(self.log),
                "command": self.flags,
            }
        if problem := find_difference(self.folder / "run", self.reference / "run", self.processes):
            return {"outcome": f"lost: {problem}", "detail": detail, "command": self.flags, "run": self.description}
        return {"outcome": "same bits after a refusal" if failed else "same bits"}


def random_run(rng: random.Random, base: Base, folder: Path, processes: int = 1) -> HostileRun:
    """Return a hostile run of a random kind."""
    trained = [name for name in HEADS if processes == 1 or "--epochs" in HEADS[name]]
    stage, name = rng.choice([*((1, name) for name in PRETRAINING), *((2, name) for name in trained)])
    return HostileRun(rng, base, folder, stage, name, processes)


def suspend(rng: random.Random, base: Base, folder: Path) -> dict:
    """Suspend all processes or one process for some seconds with SIGSTOP, as a scheduler does."""
    hostile_run = random_run(rng, base, folder, rng.choice([1, 1, 2]))
    running = hostile_run.start()
    for _ in range(rng.randint(1, 3)):
        time.sleep(rng.random() * hostile_run.seconds / 2)
        if running.poll() is not None:
            break
        process_tree = running.process_tree()
        victims = process_tree if rng.random() < 0.5 else [rng.choice(process_tree)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(rng.uniform(0.2, 3) if number == signal.SIGSTOP else 0)
    return hostile_run.outcome_after(running.wait(), lambda: None)


def change_file_times(rng: random.Random, base: Base, folder: Path) -> dict:
    """Kill the run and resume it after the dates of its files were moved to the future or the past."""
    hostile_run = random_run(rng, base, folder)
    for _ in range(rng.randint(1, 3)):
        running = hostile_run.start(hostile_run.at_operation(lambda: os.kill(os.getpid(), signal.SIGKILL)))
        code = running.wait()
        for path in folder.rglob("*"):
            if not path.is_symlink():
                then = time.time() + rng.choice([-1, 1]) * rng.choice([0, 1, 3600, 10 * 365 * 86400])
                os.utime(path, (then, then))
        if code != -signal.SIGKILL:
            return hostile_run.outcome_after(code, lambda: None)
    return hostile_run.outcome_after(hostile_run.start().wait(), lambda: None)


def jump_clock(rng: random.Random, base: Base, folder: Path) -> dict:
    """Make the system clock jump while the run starts, trains, is killed and resumes. The monotonic clock stays."""
    hostile_run, clock = random_run(rng, base, folder), folder / "clock"
    os.environ |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    os.environ["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"

    def run_until(deadline: float) -> int | None:
        # LD_PRELOAD needs a new process.
        running = start_run(hostile_run.module, hostile_run.flags, hostile_run.log, launcher="python")
        while running.poll() is None and time.monotonic() < deadline:
            clock.with_name("next").write_text(f"{rng.choice('+-')}{rng.choice(['1s', '1h', '1d', '10y'])}")
            clock.with_name("next").replace(clock)
            time.sleep(rng.random())
        running.kill()
        return running.poll()

    clock.write_text("+0")
    run_until(deadline=time.monotonic() + rng.uniform(3, 3 + 2 * hostile_run.seconds))
    code = run_until(deadline=time.monotonic() + HANG_SECONDS)
    for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
        del os.environ[name]
    return hostile_run.outcome_after(code, lambda: None)


def fill_disk(rng: random.Random, base: Base, folder: Path) -> dict:
    """Give the run a disk of random size, up to 1.3 times what it needs, and enlarge it after a refusal."""
    hostile_run = random_run(rng, base, folder)
    needed = sum(path.stat().st_size for path in (hostile_run.reference / "run").rglob("*") if path.is_file())
    disk = folder / "run"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={max(4096, int(needed * rng.uniform(0, 1.3)))}", "none", disk)
    return hostile_run.outcome_after(hostile_run.start().wait(), lambda: mount("-o", "remount,size=100m", disk))


def make_read_only(rng: random.Random, base: Base, folder: Path) -> dict:
    """Remove the write permission of the run folder at a random moment. The run does not have root's rights."""
    hostile_run, run = random_run(rng, base, folder), folder / "run"
    run.mkdir()
    for path in (folder, run):
        os.chown(path, NOBODY, NOBODY)

    def as_nobody() -> None:
        hostile_run.at_operation(lambda: run.chmod(0o555))()
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    def repair() -> None:
        for path in [run, *run.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o666)

    return hostile_run.outcome_after(hostile_run.start(as_nobody).wait(), repair)


def limit_shared_memory(rng: random.Random, base: Base, folder: Path) -> dict:
    """Limit /dev/shm, which loader processes use for their batches, to 64 MB (as in containers) or less."""
    hostile_run = HostileRun(rng, base, folder, 1, LOADER)
    mount("-t", "tmpfs", "-o", f"size={rng.choice(['64m', '64m', '1m', '64k', '16k', '4k'])}", "none", Path("/dev/shm"))
    return hostile_run.outcome_after(
        hostile_run.start().wait(), lambda: mount("-o", "remount,size=64m", Path("/dev/shm"))
    )


KINDS = {
    "suspended and resumed": suspend,
    "changed file dates": change_file_times,
    "clock jumps": jump_clock,
    "full disk": fill_disk,
    "folder becomes read-only": make_read_only,
    "little shared memory": limit_shared_memory,
}


def mount(*words) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def case(number: int, rng: random.Random, base: Base, folder: Path) -> dict:
    """Run one case in a hostile environment. Its mounts end with this process."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "cannot create a mount namespace; run as root")
    mount("--make-rprivate", "/")
    folder.chmod(0o755)
    name = list(KINDS)[number % len(KINDS)]
    result = {"kind": name, **KINDS[name](rng, base, folder)}
    subprocess.run(["umount", "-q", folder / "run"], check=False, capture_output=True)
    return result
