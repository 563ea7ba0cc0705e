"""Area places: disks that fill up, folders that turn read-only, little shared memory, long stops, strange times.

Where a run cannot go on it must say so in one line; the same command then goes on, when there is room again, and ends
with the bits of an undisturbed run. For root alone: each case mounts what it needs in a mount namespace of its own.
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
from tools.soak.kills import HEADS, PRETRAINING, differs, flags_of, reference, said
from tools.soak.processes import HANG, Running, begin, error_log, watch_operations

CLONE_NEWNS = 0x00020000  # linux/sched.h
NOBODY = 65534
LOADER = "batch, loader process"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)  # of the package faketime


class Place:
    """One run in a harsh place: stage and name of a row of kills.kinds(), and what it is started with."""

    def __init__(self, rng: random.Random, base: Base, folder: Path, stage: int, name: str, processes: int = 1):
        self.rng, self.folder, self.log, self.processes = rng, folder, folder / "log", processes
        self.module = stage1 if stage == 1 else stage2
        self.what, self.whole = f"stage {stage}, {name}", reference(stage, name, processes, base)
        trained = stage == 1 or "--epochs" in HEADS[name]
        self.flags = [*flags_of(stage, name, base, folder), "--resume", "auto"]
        self.flags += rng.choice(["--save-steps 1", "--save-steps 2", ""]).split() if trained else []
        self.seconds = float((self.whole / "seconds").read_text())
        self.operations = int((self.whole / "operations").read_text())

    def start(self, first: Callable = lambda: None) -> Running:
        return begin(self.module, self.flags, self.log, processes=self.processes, first=first)

    def at_operation(self, act: Callable[[], object]) -> Callable[[], None]:
        """For `start`: do it in the process, just before one of its operations on the run's files."""
        number = 1 + int(self.operations * self.rng.random())
        return lambda: watch_operations(self.folder / "run", lambda n: act() if n == number else None)

    def refusal(self, code: int | None) -> str | None:
        """What is wrong with how a run has ended that could not go on; None: one line, and exit code 1 or 2."""
        lines = [line for line in error_log(self.log).read_text(errors="replace").splitlines() if line.strip()]
        error_log(self.log).write_text("")
        if code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "):
            return None
        ending = "hangs" if code is None else f"exit code {code}"
        return f"{ending}, {len(lines)} lines" + (", a traceback" if "Traceback" in "".join(lines) else "")

    def ends_well(self, code: int | None, mend: Callable[[], object]) -> dict:
        """The outcome: mend is called, and the run sent again, if it could not go on."""
        refused, detail = code != 0, said(self.log)
        if refused and (wrong := self.refusal(code)):
            return {"outcome": f"stopped: {wrong}", "detail": detail, "command": self.flags, "run": self.what}
        mend()
        if refused and (code := self.start().wait()) != 0:
            return {"outcome": f"does not go on: {code}", "detail": said(self.log), "command": self.flags}
        if wrong := differs(self.folder / "run", self.whole / "run", self.processes):
            return {"outcome": f"lost: {wrong}", "detail": detail, "command": self.flags, "run": self.what}
        return {"outcome": "same bits after a refusal" if refused else "same bits"}


def any_run(rng: random.Random, base: Base, folder: Path, processes: int = 1) -> Place:
    """Of any row of kills."""
    trained = [name for name in HEADS if processes == 1 or "--epochs" in HEADS[name]]
    stage, name = rng.choice([*((1, name) for name in PRETRAINING), *((2, name) for name in trained)])
    return Place(rng, base, folder, stage, name, processes)


def stop_and_go(rng: random.Random, base: Base, folder: Path) -> dict:
    """SIGSTOP for some seconds, of all of its processes or of one, as a job that a scheduler suspends."""
    place = any_run(rng, base, folder, rng.choice([1, 1, 2]))
    running = place.start()
    for _ in range(rng.randint(1, 3)):
        time.sleep(rng.random() * place.seconds / 2)
        if running.poll() is not None:
            break
        family = running.family()
        victims = family if rng.random() < 0.5 else [rng.choice(family)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(rng.uniform(0.2, 3) if number == signal.SIGSTOP else 0)
    return place.ends_well(running.wait(), lambda: None)


def strange_times(rng: random.Random, base: Base, folder: Path) -> dict:
    """Killed, and gone on with files from the future and the past, as after a clock that was set."""
    place = any_run(rng, base, folder)
    for _ in range(rng.randint(1, 3)):
        running = place.start(place.at_operation(lambda: os.kill(os.getpid(), signal.SIGKILL)))
        code = running.wait()
        for path in folder.rglob("*"):
            if not path.is_symlink():
                then = time.time() + rng.choice([-1, 1]) * rng.choice([0, 1, 3600, 10 * 365 * 86400])
                os.utime(path, (then, then))
        if code != -signal.SIGKILL:
            return place.ends_well(code, lambda: None)
    return place.ends_well(place.start().wait(), lambda: None)


def clock_set(rng: random.Random, base: Base, folder: Path) -> dict:
    """The clock jumps to and fro while a run starts, trains, is killed and goes on; what measures spans does not."""
    place, clock = any_run(rng, base, folder), folder / "clock"
    os.environ |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    os.environ["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"

    def code_of_one(until: float) -> int | None:
        running = begin(place.module, place.flags, place.log, launcher="python")  # cold: a preload is for a new process
        while running.poll() is None and time.monotonic() < until:
            clock.with_name("next").write_text(f"{rng.choice('+-')}{rng.choice(['1s', '1h', '1d', '10y'])}")
            clock.with_name("next").replace(clock)
            time.sleep(rng.random())
        running.kill()
        return running.poll()

    clock.write_text("+0")
    code_of_one(until=time.monotonic() + rng.uniform(3, 3 + 2 * place.seconds))
    code = code_of_one(until=time.monotonic() + HANG)
    for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
        del os.environ[name]
    return place.ends_well(code, lambda: None)


def full_disk(rng: random.Random, base: Base, folder: Path) -> dict:
    """A disk of any size from nothing to what the run takes; then there is room."""
    place = any_run(rng, base, folder)
    takes = sum(path.stat().st_size for path in (place.whole / "run").rglob("*") if path.is_file())
    disk = folder / "run"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={max(4096, int(takes * rng.uniform(0, 1.3)))}", "none", disk)
    return place.ends_well(place.start().wait(), lambda: mount("-o", "remount,size=100m", disk))


def read_only(rng: random.Random, base: Base, folder: Path) -> dict:
    """The run's folder loses its writing permission at some moment; not as root, who needs none."""
    place, run = any_run(rng, base, folder), folder / "run"
    run.mkdir()
    for path in (folder, run):
        os.chown(path, NOBODY, NOBODY)

    def as_nobody() -> None:
        place.at_operation(lambda: run.chmod(0o555))()
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    def mend() -> None:
        for path in [run, *run.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o666)

    return place.ends_well(place.start(as_nobody).wait(), mend)


def little_memory(rng: random.Random, base: Base, folder: Path) -> dict:
    """/dev/shm of containers, 64 MB, and less: loader processes hand their batches over there."""
    place = Place(rng, base, folder, 1, LOADER)
    mount("-t", "tmpfs", "-o", f"size={rng.choice(['64m', '64m', '1m', '64k', '16k', '4k'])}", "none", Path("/dev/shm"))
    return place.ends_well(place.start().wait(), lambda: mount("-o", "remount,size=64m", Path("/dev/shm")))


KINDS = {
    "stopped and sent on": stop_and_go,
    "files from the future": strange_times,
    "clock that is set": clock_set,
    "full disk": full_disk,
    "folder turns read-only": read_only,
    "little shared memory": little_memory,
}


def mount(*words) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def case(number: int, rng: random.Random, base: Base, folder: Path) -> dict:
    """One harsh place; mounts end with this process."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace; root alone may have one")
    mount("--make-rprivate", "/")
    folder.chmod(0o755)
    name = list(KINDS)[number % len(KINDS)]
    result = {"kind": name, **KINDS[name](rng, base, folder)}
    subprocess.run(["umount", "-q", folder / "run"], check=False, capture_output=True)
    return result
