"""Area inputs: a damaged file is either used, or refused in one line with exit code 2."""

import hashlib
import random
import re
import shutil
from pathlib import Path

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from tools.soak import damage
from tools.soak.base import Base
from tools.soak.kills import log_tail
from tools.soak.processes import error_log, start_run
from utils.errors import InputError
from utils.files import draft_pattern
from utils.run import checkpoint

KINDS = {  # kind of file: (function, cases out of ten)
    "split lists": (damage.damage_split_list, 3),
    "images": (damage.damage_image, 2),
    "checkpoints": (damage.damage_checkpoint, 2),
    "target files": (damage.damage_targets, 1),
}
OTHERS = {  # kinds that share the remaining cases in turn
    "IDX files": damage.damage_idx_file,
    "recipes": damage.damage_recipe,
    "study files": damage.damage_study_file,
    "features": damage.damage_features,
    "run folders": damage.damage_run_folder,
}


def kind_of_case(number: int) -> str:
    """Return the kind of file that a case damages."""
    frequent = [name for name, (_, share) in KINDS.items() for _ in range(share)]
    ten, place = divmod(number, 10)
    rest = 10 - len(frequent)
    return (
        frequent[place] if place < len(frequent) else list(OTHERS)[(rest * ten + place - len(frequent)) % len(OTHERS)]
    )


def case(number: int, rng: random.Random, base: Base, folder: Path) -> dict:
    """Run one case: damage a file, and check how the command ends."""
    name, intact = kind_of_case(number), rng.random() < 0.1  # an intact file: the command must use it
    for part in ("data", "run", "optimal_10_16.npy"):
        (shutil.copytree if (base.folder / part).is_dir() else shutil.copy)(base.folder / part, folder / part)
    damaged = (OTHERS.get(name) or KINDS[name][0])(rng, base, folder)
    if intact:
        restore(damaged.file)
    is_training = damaged.module in (stage1, stage2) and "--evaluate" not in damaged.flags
    flags = damaged.flags + (
        ["--run-dir", str(folder / "new")] if is_training and "--run-dir" not in damaged.flags else []
    )
    before, log = hash_files(folder), folder.with_name(f"{folder.name}.log")
    code = start_run(damaged.module, flags, log).wait()
    outcome = classify_outcome(
        code, error_log(log).read_text(errors="replace"), folder, before, resumes="auto" in flags
    )
    if intact and outcome != USED:
        outcome = f"intact file, but: {outcome}"
    result = {"kind": f"{name}, intact" if intact else name, "outcome": outcome}
    if outcome not in GOOD:
        result |= {
            "detail": log_tail(log),
            "command": [damaged.module.__name__, *flags],
            "damaged": str(damaged.file),
        }
    for file in (log, error_log(log)):
        file.unlink()
    return result


def restore(file: Path) -> None:
    """Restore the original content of a file, whatever exists in its place."""
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    file.write_bytes(damage.ORIGINAL_CONTENT[file])


USED, REFUSED, STOPPED = "used", "refused", "stopped in one line while it ran"
GOOD = (USED, REFUSED, STOPPED)


def classify_outcome(code: int | None, errors: str, folder: Path, before: dict[Path, str], resumes: bool) -> str:
    """Return one of GOOD, or a description of the failure.

    resumes: with --resume auto, a run that is not refused may write to its folder. It may also train before it stops at
        numbers that are not finite; its error line then names the epoch.
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
    after = hash_files(folder)
    trained = code == 2 and bool(re.match(r"error: epoch:? \[?\d", lines[0].lower()))
    changed = [path for path in before if after.get(path) != before[path]]
    if changed and not (resumes and (code == 0 or trained)):
        return f"{'refused and ' if code else ''}changed {changed[0].name}"
    new = [path for path in after if path not in before]
    for path in new:
        if path.match(draft_pattern("*")) or (path.suffix == ".tar" and not is_readable(path)):
            return f"left {path.name}"
    if code == 0:
        return USED
    return STOPPED if trained or [path for path in new if path.name != ".lock"] else REFUSED


def hash_files(folder: Path) -> dict[Path, str]:
    """Return a hash of each file of a folder, without locks and without cached features, which may be recomputed."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    files = [path for path in files if not path.parent.name.startswith("features_")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def is_readable(path: Path) -> bool:
    try:
        checkpoint.read_file(path)
    except InputError:
        return False
    return True
