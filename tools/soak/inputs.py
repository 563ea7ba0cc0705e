"""Area inputs: a damaged file must train, or be refused in one line with exit code 2; nothing else may happen."""

import hashlib
import random
import re
import shutil
from pathlib import Path

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from tools.soak import damage
from tools.soak.base import Base
from tools.soak.kills import said
from tools.soak.processes import begin, error_log
from utils.errors import InputError
from utils.files import draft_pattern
from utils.run import checkpoint

KINDS = {  # of ten cases
    "split lists": (damage.split_list, 3),
    "images": (damage.image, 2),
    "checkpoints": (damage.checkpoint_file, 2),
    "target files": (damage.target_file, 1),
}
OTHERS = {  # the rest, in turn
    "IDX files": damage.idx_file,
    "recipes": damage.recipe,
    "plans": damage.plan,
    "features": damage.features,
    "run folders": damage.run_folder,
}


def kind_of(number: int) -> str:
    """Which kind of file a case damages."""
    often = [name for name, (_, share) in KINDS.items() for _ in range(share)]
    ten, place = divmod(number, 10)
    rest = 10 - len(often)
    return often[place] if place < len(often) else list(OTHERS)[(rest * ten + place - len(often)) % len(OTHERS)]


def case(number: int, rng: random.Random, base: Base, folder: Path) -> dict:
    """One damaged file."""
    name, whole = kind_of(number), rng.random() < 0.1  # not damaged: the command itself must be good
    for part in ("data", "run", "optimal_10_16.npy"):
        (shutil.copytree if (base.folder / part).is_dir() else shutil.copy)(base.folder / part, folder / part)
    trial = (OTHERS.get(name) or KINDS[name][0])(rng, base, folder)
    if whole:
        restore(trial.damaged)
    scripts = trial.module in (stage1, stage2) and "--evaluate" not in trial.flags
    flags = trial.flags + (["--run-dir", str(folder / "new")] if scripts and "--run-dir" not in trial.flags else [])
    before, log = contents(folder), folder.with_name(f"{folder.name}.log")
    code = begin(trial.module, flags, log).wait()
    outcome = judged(code, error_log(log).read_text(errors="replace"), folder, before, goes_on="auto" in flags)
    if whole and outcome != USED:
        outcome = f"whole, and yet: {outcome}"
    result = {"kind": f"{name}, whole" if whole else name, "outcome": outcome}
    if outcome not in GOOD:
        result |= {"detail": said(log), "command": [trial.module.__name__, *flags], "damaged": str(trial.damaged)}
    for file in (log, error_log(log)):
        file.unlink()
    return result


def restore(file: Path) -> None:
    """Make it again what it was, whatever is there now."""
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    file.write_bytes(damage.WHOLE[file])


USED, REFUSED, STOPPED = "used", "refused", "stopped in one line while it ran"
GOOD = (USED, REFUSED, STOPPED)


def judged(code: int | None, errors: str, folder: Path, before: dict[Path, str], goes_on: bool) -> str:
    """One of GOOD, or what should not have been.

    goes_on: with --resume auto a run that is not refused may write in its own folder; it may have trained before it
        met numbers that are not finite, and names the epoch then.
    """
    if code is None:
        return "hangs"
    if "Traceback" in errors:
        return "a traceback"
    if code not in (0, 2):
        return f"exit code {code}"
    lines = [line for line in errors.splitlines() if line.strip()]
    if code == 2 and not (len(lines) == 1 and lines[0].startswith("error: ")):
        return f"refused in {len(lines)} lines"
    after = contents(folder)
    trained = code == 2 and bool(re.match(r"error: epoch:? \[?\d", lines[0].lower()))
    changed = [path for path in before if after.get(path) != before[path]]
    if changed and not (goes_on and (code == 0 or trained)):
        return f"{'refused and ' if code else ''}changed {changed[0].name}"
    new = [path for path in after if path not in before]
    for path in new:
        if path.match(draft_pattern("*")) or (path.suffix == ".tar" and not readable(path)):
            return f"left {path.name}"
    if code == 0:
        return USED
    return STOPPED if trained or [path for path in new if path.name != ".lock"] else REFUSED


def contents(folder: Path) -> dict[Path, str]:
    """The files of a folder, and what is in them; not a run's lock, nor kept features, which are made anew."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    files = [path for path in files if not path.parent.name.startswith("features_")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def readable(path: Path) -> bool:
    try:
        checkpoint.read(path)
    except InputError:
        return False
    return True
