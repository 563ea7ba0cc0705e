"""Area kills: SIGKILL at random moments of both stages; each run must end as one that nothing disturbed."""

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
from tools.soak.processes import HANG, Running, begin, error_log, watch_operations
from utils.run import checkpoint, evaluation
from utils.run.folder import resumable_checkpoints

QUEUE = "-b 16 --epochs 4 --lr 0.1 --moco-dim 16 --moco-k 32"
BATCH = "-b 16 --epochs 4 --lr 0.1 --moco-dim 16 --contrast batch"
PRETRAINING = {
    "queue, KCL": f"{QUEUE} --K 3 --mlp --cos",
    "queue, TSC": f"{QUEUE} --targeted --sep_t --tw 0.2 -s 2",
    "queue, TSC as in the paper": f"{QUEUE} --targeted --loss-form paper --centroid-init queue --assignment-interval 2",
    "queue, MoCo": f"{QUEUE} --loss MoCo --optimizer adamw --lr 0.001",
    "queue, measured": f"{QUEUE} --targeted --monitor-freq 2 --online-probe adjusted",
    "queue, balanced, accumulated": f"{QUEUE} --sampling class-balanced --accum-steps 2 --clip-grad 1",
    "queue, views on the device": f"{QUEUE} --device-aug",
    "batch, KCL": f"{BATCH} --K 3 --cos --warmup-epochs 1",
    "batch, TSC": f"{BATCH} --targeted --tw 0.5",
    "batch, TSC as in the release": f"{BATCH} --targeted --loss-form release --tr 25",
    "batch, loader process": f"{BATCH} --cache off -j 2",
}
TRAINED = "-b 16 --epochs 3 --lr 1"
HEADS = {
    "linear": TRAINED,
    "linear, adjusted": f"{TRAINED} --sampling instance --logit-adjustment train --bn-mode eval",
    "linear, finetune": "-b 16 --epochs 3 --lr 0.01 --finetune",
    "ldam": f"{TRAINED} --head ldam",
    "ldam, finetune": "-b 16 --epochs 3 --lr 0.01 --head ldam --finetune --eval-freq 2",
    **{name: f"--head {name}" for name in ("logistic", "cosine", "ncm", "tau", "lws", "target", "own")},
}
COLD = ("python", "torchrun", "--multiprocessing-distributed")  # the last two of two processes


def launcher_of(number: int, stage: int, name: str) -> tuple[str, int]:
    """How a case starts its runs, and of how many processes; one in 25 is cold, and takes ten times as long."""
    alone = stage == 2 and "--epochs" not in HEADS[name]  # heads are fitted by one process
    cold = COLD[0 if alone else number // 25 % 3] if number % 25 == 24 else "forked"
    two = cold in COLD[1:] or (cold == "forked" and number % 5 == 3 and not alone)
    return cold, 2 if two else 1


SAVES = ("--save-steps 1", "--save-steps 2", "")


def kinds() -> list[tuple[int, str]]:
    """What is killed: (stage, a row of PRETRAINING or HEADS); stage 1 twice, as there is more to lose."""
    return [(1, name) for name in PRETRAINING] + [(2, name) for name in HEADS]


def flags_of(stage: int, name: str, base: Base, folder: Path) -> list[str]:
    """The command line but for how often it saves."""
    if stage == 1:
        more = PRETRAINING[name].split()
        return [*base.flags, *more, "--targets", str(base.targets), "--run-dir", str(folder / "run"), "-p", "1"]
    more, pretrained = HEADS[name].split(), folder / ("probe.pth.tar" if name == "own" else "last.pth.tar")
    shutil.copy(base.probe / checkpoint.LAST if name == "own" else base.run / checkpoint.LAST, pretrained)
    return [*base.flags, *more, "--pretrained", str(pretrained), "--run-dir", str(folder / "run")]


def reference(stage: int, name: str, processes: int, base: Base) -> Path:
    """The folder of the same run undisturbed; operations: how many there are on its files; seconds: of all."""
    place = base.folder / "whole" / f"{stage} {name} {processes}".replace(",", "").replace(" ", "_")
    if (place / "seconds").exists():
        return place
    draft = place.with_name(f"{place.name} {os.getpid()}")
    draft.mkdir(parents=True)

    def count() -> None:
        if os.environ.get("RANK", "0") == "0":
            watch_operations(draft / "run", lambda n: (draft / "operations").write_text(str(n)))

    begun = time.monotonic()
    module = stage1 if stage == 1 else stage2
    run = begin(module, flags_of(stage, name, base, draft), draft / "log", processes=processes, first=count)
    if run.wait() != 0:
        raise RuntimeError(f"undisturbed, {name} fails: {said(draft / 'log')}")
    (draft / "seconds").write_text(str(time.monotonic() - begun))
    with contextlib.suppress(OSError):  # another case was faster
        draft.rename(place)
    return place


def case(number: int, rng: random.Random, base: Base, folder: Path) -> dict:
    """Kill one run up to twelve times, let it end, compare."""
    stage, name = kinds()[number % len(kinds())]
    launcher, processes = launcher_of(number, stage, name)
    fitted = stage == 2 and "--epochs" not in HEADS[name]
    whole = reference(stage, name, processes, base)
    flags = flags_of(stage, name, base, folder) + ["--resume", "auto"] + ([] if fitted else rng.choice(SAVES).split())
    log, kills, wanted = folder / "log", 0, rng.randint(1, 2 if launcher in COLD else 12)
    result = {"kind": f"stage {stage}, {name}", "launcher": launcher, "processes": processes}
    while True:
        moment = Moment(rng, whole, folder / "run", log, cold=launcher in COLD)
        first = moment.watch if kills < wanted else lambda: None
        run = begin(stage1 if stage == 1 else stage2, flags, log, launcher, processes, first)
        if kills < wanted and moment.strikes(run):
            kills += 1
            continue
        code = run.wait()
        if code == -signal.SIGKILL and kills < wanted:
            kills += 1
            continue
        break
    result["kills"] = kills
    if code != 0:
        ending = "hangs" if code is None else f"ends with {code}"
        return result | {"outcome": f"lost: {ending} after a kill", "detail": said(log), "command": flags}
    wrong = differs(folder / "run", whole / "run", processes)
    return result | ({"outcome": f"lost: {wrong}", "command": flags} if wrong else {"outcome": "same bits"})


class Moment:
    """When a start is killed: at a time, at an operation on a file, or while a file is written; and who of it."""

    def __init__(self, rng: random.Random, whole: Path, run_dir: Path, log: Path, cold: bool):
        seconds = float((whole / "seconds").read_text())
        operations = int((whole / "operations").read_text())
        self.kind = rng.choice(["time", "write", "log"] if cold else ["time", "write", "operation", "operation"])
        self.seconds = rng.random() ** 2 * (seconds + (15 if cold else 0))
        self.number = 1 + int(operations * rng.random() ** 2)
        self.rank = str(rng.randrange(2))
        self.alone, self.pause = rng.random() < 0.3, rng.choice([0, 0.05, 0.3])
        self.run_dir, self.log, self.seen = run_dir, log, log.stat().st_size if log.exists() else 0
        self.writes = rng.randrange(8)

    def watch(self) -> None:
        """In a forked process: SIGKILL for itself at the operation."""
        if self.kind == "operation" and os.environ.get("RANK", "0") == "0":
            watch_operations(self.run_dir, self._end)

    def _end(self, count: int) -> None:
        if count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def strikes(self, run: Running) -> bool:
        """Wait for the moment, and kill; False if the run has ended before."""
        begun, drafts, last = time.monotonic(), 0, set()
        while (code := run.poll()) is None:
            if -signal.SIGKILL in run.codes.values():  # one of two, at its operation
                time.sleep(self.pause)
                run.kill()
                return True
            if time.monotonic() - begun > HANG:
                run.kill()
                raise TimeoutError(f"hangs, before it was killed: {said(self.log)}")
            if self.kind == "time" and time.monotonic() - begun > self.seconds:
                break
            if self.kind == "log" and self.log.exists() and self.log.stat().st_size > self.seen:
                time.sleep(self.seconds / 8)
                break
            if self.kind == "write":
                now = set(self.run_dir.glob(checkpoint.DRAFTS))
                drafts, last = drafts + len(now - last), now
                if now and drafts > self.writes:
                    break
            time.sleep(0.0005 if self.kind == "write" else 0.005)
        if code is not None:
            return code == -signal.SIGKILL
        victims = run.family()
        run.kill(only=victims[min(int(self.rank), len(victims) - 1)] if self.alone else None, pause=self.pause)
        return True


def said(log: Path) -> str:
    """The end of what a run printed."""
    return "\n".join(file.read_text(errors="replace")[-1500:] for file in (log, error_log(log)) if file.exists())


def differs(run: Path, whole: Path, processes: int = 1) -> str | None:
    """What a run that was killed has not as the undisturbed one; None: nothing.

    processes: of two, the log's sums are added up in another order after a start: equal to 1e-6 of them.
    """
    if left := list(run.glob(checkpoint.DRAFTS)):
        return f"left {left[0].name}"
    if {path.name for path in resumable_checkpoints(run)} != {path.name for path in resumable_checkpoints(whole)}:
        return f"has {[path.name for path in resumable_checkpoints(run)]}"
    kept = [path.name for path in resumable_checkpoints(whole) if path.name != checkpoint.PREVIOUS]
    best = [evaluation.BEST] if (whole / evaluation.BEST).exists() else []
    for name in kept + best:
        a, b = (checkpoint.load(folder / name)["state_dict"] for folder in (run, whole))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return f"other weights in {name}"
    for name, read in (("log.jsonl", records), ("results.json", results)):
        if (whole / name).exists() and not (
            (run / name).exists() and same(read(run / name), read(whole / name), processes)
        ):
            return f"other numbers in {name}"
    return None


def same(a, b, processes: int) -> bool:
    """Whether two JSON values are equal; of two processes numbers to 1e-6 of them."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], processes) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(*pair, processes) for pair in zip(a, b, strict=True))
    return a == b or (processes > 1 and isinstance(a, float) and math.isclose(a, b, rel_tol=1e-6))


def records(path: Path) -> list[dict]:
    """The lines of a log without the times in them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s", "data_share")} for line in lines]


def results(path: Path) -> dict:
    return {k: v for k, v in json.loads(path.read_text()).items() if k != "pretrained"}
