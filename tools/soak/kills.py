"""Area kills: SIGKILL at random moments of both stages. Each run must end like an undisturbed one."""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from tools.soak.base import Base
from tools.soak.processes import HANG_SECONDS, RunningProcesses, error_log, start_run, watch_operations
from utils.run import checkpoint, evaluation
from utils.run.folder import resumable_checkpoints

QUEUE = "-b 16 --epochs 4 --lr 0.1 --moco-dim 16 --moco-k 32"
BATCH = "-b 16 --epochs 4 --lr 0.1 --moco-dim 16 --contrast batch"
LOADER = "batch, KCL, -j 2"  # the row with loader processes
PRETRAINING = {
    "queue, KCL": f"{QUEUE} --K 3 --mlp --cos",
    "queue, TSC": f"{QUEUE} --targeted --sep_t --tw 0.2 -s 2",
    "queue, TSC, --loss-form paper": (
        f"{QUEUE} --targeted --loss-form paper --centroid-init queue --assignment-interval 2"
    ),
    "queue, MoCo": f"{QUEUE} --loss MoCo --optimizer adamw --lr 0.001",
    "queue, TSC, --monitor-freq, --online-probe": f"{QUEUE} --targeted --monitor-freq 2 --online-probe adjusted",
    "queue, KCL, --sampling class-balanced, --accum-steps": (
        f"{QUEUE} --sampling class-balanced --accum-steps 2 --clip-grad 1"
    ),
    "queue, KCL, --device-aug off": f"{QUEUE} --device-aug off",
    "batch, KCL": f"{BATCH} --K 3 --cos --warmup-epochs 1",
    "batch, TSC": f"{BATCH} --targeted --tw 0.5",
    "batch, TSC, --loss-form release": f"{BATCH} --targeted --loss-form release --tr 25",
    LOADER: f"{BATCH} --cache off -j 2",
}
TRAINED = "-b 16 --epochs 3 --lr 1"
HEADS = {
    "linear": TRAINED,
    "linear, --logit-adjustment train": f"{TRAINED} --sampling instance --logit-adjustment train --bn-mode eval",
    "linear, --finetune": "-b 16 --epochs 3 --lr 0.01 --finetune",
    "ldam": f"{TRAINED} --head ldam",
    "ldam, --finetune": "-b 16 --epochs 3 --lr 0.01 --head ldam --finetune --eval-freq 2",
    **{name: f"--head {name}" for name in ("logistic", "cosine", "ncm", "tau", "lws", "target", "own")},
}
NEW_PYTHON_LAUNCHERS = ("python", "torchrun", "--multiprocessing-distributed")  # the last two start two processes


def launcher_of(number: int, stage: int, name: str) -> tuple[str, int]:
    """Return launcher and number of processes of a case. One in 25 starts a new Python, which is ten times slower."""
    alone = stage == 2 and "--epochs" not in HEADS[name]  # heads are fitted in one process
    launcher = NEW_PYTHON_LAUNCHERS[0 if alone else number // 25 % 3] if number % 25 == 24 else "forked"
    is_pair = launcher in NEW_PYTHON_LAUNCHERS[1:] or (launcher == "forked" and number % 5 == 3 and not alone)
    return launcher, 2 if is_pair else 1


SAVES = ("--save-steps 1", "--save-steps 2", "")


def run_kinds() -> list[tuple[int, str]]:
    """Return the kinds of runs that are killed, as (stage, key of PRETRAINING or HEADS)."""
    return [(1, name) for name in PRETRAINING] + [(2, name) for name in HEADS]


def run_flags(stage: int, name: str, base: Base, folder: Path) -> list[str]:
    """Return the flags of a run without --save-steps."""
    if stage == 1:
        more = PRETRAINING[name].split()
        return [*base.flags, *more, "--targets", str(base.targets), "--run-dir", str(folder / "run"), "-p", "1"]
    more, pretrained = HEADS[name].split(), folder / ("probe.pth.tar" if name == "own" else "last.pth.tar")
    shutil.copy(base.probe / checkpoint.LAST if name == "own" else base.run / checkpoint.LAST, pretrained)
    return [*base.flags, *more, "--pretrained", str(pretrained), "--run-dir", str(folder / "run")]


def reference_run(stage: int, name: str, processes: int, base: Base) -> Path:
    """Return the folder of the same run undisturbed, with files `operations` (their number) and `seconds`."""
    target = base.folder / "whole" / f"{stage} {name} {processes}".replace(",", "").replace(" ", "_")
    if (target / "seconds").exists():
        return target
    draft = target.with_name(f"{target.name} {os.getpid()}")
    draft.mkdir(parents=True)

    def count_operations() -> None:
        if os.environ.get("RANK", "0") == "0":
            watch_operations(draft / "run", lambda n: (draft / "operations").write_text(str(n)))

    started = time.monotonic()
    module = stage1 if stage == 1 else stage2
    run = start_run(
        module, run_flags(stage, name, base, draft), draft / "log", processes=processes, setup=count_operations
    )
    if run.wait() != 0:
        raise RuntimeError(f"the undisturbed run of {name} failed: {log_tail(draft / 'log')}")
    (draft / "seconds").write_text(str(time.monotonic() - started))
    with contextlib.suppress(OSError):  # another case was first
        draft.rename(target)
    return target


def case(number: int, rng: random.Random, base: Base, folder: Path) -> dict:
    """Kill one run up to twelve times, let it finish, and compare it with the undisturbed run."""
    stage, name = run_kinds()[number % len(run_kinds())]
    launcher, processes = launcher_of(number, stage, name)
    fitted = stage == 2 and "--epochs" not in HEADS[name]
    reference = reference_run(stage, name, processes, base)
    flags = run_flags(stage, name, base, folder) + ["--resume", "auto"] + ([] if fitted else rng.choice(SAVES).split())
    log, kills, num_kills = folder / "log", 0, rng.randint(1, 2 if launcher in NEW_PYTHON_LAUNCHERS else 12)
    result = {"kind": f"stage {stage}, {name}", "launcher": launcher, "processes": processes}
    while True:
        moment = KillMoment(rng, reference, folder / "run", log, new_python=launcher in NEW_PYTHON_LAUNCHERS)
        setup = moment.install if kills < num_kills else lambda: None
        run = start_run(stage1 if stage == 1 else stage2, flags, log, launcher, processes, setup)
        if kills < num_kills and moment.wait_and_kill(run):
            kills += 1
            continue
        code = run.wait()
        if code == -signal.SIGKILL and kills < num_kills:
            kills += 1
            continue
        break
    result["kills"] = kills
    if code != 0:
        ending = "hangs" if code is None else f"exit code {code}"
        return result | {"outcome": f"failed after a kill: {ending}", "detail": log_tail(log), "command": flags}
    difference = find_difference(folder / "run", reference / "run", processes)
    return result | ({"outcome": f"lost: {difference}", "command": flags} if difference else {"outcome": "same bits"})


class KillMoment:
    """When a run is killed (at a time, at a file operation, or during a write), and which of its processes."""

    def __init__(self, rng: random.Random, reference: Path, run_dir: Path, log: Path, new_python: bool):
        seconds = float((reference / "seconds").read_text())
        operations = int((reference / "operations").read_text())
        self.kind = rng.choice(["time", "write", "log"] if new_python else ["time", "write", "operation", "operation"])
        self.seconds = rng.random() ** 2 * (seconds + (15 if new_python else 0))
        self.number = 1 + int(operations * rng.random() ** 2)
        self.rank = str(rng.randrange(2))
        self.alone, self.pause = rng.random() < 0.3, rng.choice([0, 0.05, 0.3])
        self.run_dir, self.log, self.seen = run_dir, log, log.stat().st_size if log.exists() else 0
        self.writes = rng.randrange(8)

    def install(self) -> None:
        """In a forked process: send SIGKILL to itself at the chosen operation."""
        if self.kind == "operation" and os.environ.get("RANK", "0") == "0":
            watch_operations(self.run_dir, self._kill_self)

    def _kill_self(self, count: int) -> None:
        if count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def wait_and_kill(self, run: RunningProcesses) -> bool:
        """Wait for the moment and kill the run. Return False if the run ended before."""
        started, drafts, previous = time.monotonic(), 0, set()
        while (code := run.poll()) is None:
            if -signal.SIGKILL in run.codes.values():  # one of two processes killed itself
                time.sleep(self.pause)
                run.kill()
                return True
            if time.monotonic() - started > HANG_SECONDS:
                run.kill()
                raise TimeoutError(f"the run hung before it was killed: {log_tail(self.log)}")
            if self.kind == "time" and time.monotonic() - started > self.seconds:
                break
            if self.kind == "log" and self.log.exists() and self.log.stat().st_size > self.seen:
                time.sleep(self.seconds / 8)
                break
            if self.kind == "write":
                current = set(self.run_dir.glob(checkpoint.DRAFTS))
                drafts, previous = drafts + len(current - previous), current
                if current and drafts > self.writes:
                    break
            time.sleep(0.0005 if self.kind == "write" else 0.005)
        if code is not None:
            return code == -signal.SIGKILL
        victims = run.process_tree()
        run.kill(only=victims[min(int(self.rank), len(victims) - 1)] if self.alone else None, pause=self.pause)
        return True


def log_tail(log: Path) -> str:
    """Return the end of the output of a run."""
    return "\n".join(file.read_text(errors="replace")[-1500:] for file in (log, error_log(log)) if file.exists())


def find_difference(run: Path, reference: Path, processes: int = 1) -> str | None:
    """Return how a killed run differs from the undisturbed run, or None.

    processes: with two, sums in the log are added in another order after a start, so they may differ by 1e-6.
    """
    if left := list(run.glob(checkpoint.DRAFTS)):
        return f"left {left[0].name}"
    if {path.name for path in resumable_checkpoints(run)} != {path.name for path in resumable_checkpoints(reference)}:
        return f"has {[path.name for path in resumable_checkpoints(run)]}"
    kept = [path.name for path in resumable_checkpoints(reference) if path.name != checkpoint.PREVIOUS]
    best = [evaluation.BEST] if (reference / evaluation.BEST).exists() else []
    for name in kept + best:
        a, b = (checkpoint.read_checkpoint(folder / name)["state_dict"] for folder in (run, reference))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return f"other weights in {name}"
    for name, read in (("log.jsonl", read_records), ("results.json", read_results)):
        if (reference / name).exists() and not (
            (run / name).exists() and values_match(read(run / name), read(reference / name), processes)
        ):
            return f"other numbers in {name}"
    return None


def values_match(a, b, processes: int) -> bool:
    """Return whether two JSON values are equal. With several processes, floats may differ by a relative 1e-6."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(values_match(a[key], b[key], processes) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(values_match(*pair, processes) for pair in zip(a, b, strict=True))
    return a == b or (processes > 1 and isinstance(a, float) and math.isclose(a, b, rel_tol=1e-6))


def read_records(path: Path) -> list[dict]:
    """Return the records of a log without times and speeds."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s", "data_share")} for line in lines]


def read_results(path: Path) -> dict:
    return {k: v for k, v in json.loads(path.read_text()).items() if k != "pretrained"}
