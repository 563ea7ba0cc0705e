"""Damaged split lists and checkpoints: each must train, or be refused in one line with nothing changed.

Used by tests/faults.py and, in small, by test_faults.py; everything runs in this process.
"""

import contextlib
import io
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.sets import digits
from utils.errors import InputError

SECONDS = 60  # longer is a hang
FLAGS = "--dataset digits --image-size 8 -b 64 -j 0 -p 0 --seed 5 --device cpu --epochs 1"
STAGE_1 = f"{FLAGS} --moco-k 64 --moco-dim 8 --lr 0.01"


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or blank a random part."""
    at, size = rng.randrange(len(data)), rng.choice([1, 1, 1, 2, 20, 500])
    piece = data[at : at + size]
    return {
        "flip": lambda: data[:at] + bytes(byte ^ (1 << rng.randrange(8)) for byte in piece) + data[at + size :],
        "cut": lambda: data[:at] + data[at + size :],
        "truncate": lambda: data[:at],
        "insert": lambda: data[:at] + rng.randbytes(size) + data[at:],
        "repeat": lambda: data[: at + size] + piece + data[at + size :],
        "blank": lambda: data[:at] + bytes(len(piece)) + data[at + size :],
    }[rng.choice(["flip", "cut", "truncate", "insert", "repeat", "blank"])]()


def damage_line(data: bytes, rng: random.Random) -> bytes:
    """Damage one line of a split list the way people do."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    path, label = lines[at].rsplit(" ", 1)
    lines[at] = rng.choice(
        [
            path,
            label,
            "",
            f"{path}  {label}",
            f"{path}\t{label}",
            f"{path} {label}\r",
            f"{path},{label}",
            f"{path} {label}.0",
            f"{path} -{label}",
            f"{path} {int(label) + 10}",
            f"{path} {label} {label}",
            f"../{path} {label}",
            f"/{path} {label}",
            f"{path}x {label}",
            f"{path} ①",
            f"\ufeff{path} {label}",
            f"# {lines[at]}",
        ]
    )
    return "\n".join(lines).encode()


JUNK = (None, -1, 0, 10**12, 1.5, "x", [], {}, [1, 2], {"a": 1}, float("nan"), True)


def damage_entry(state: dict, rng: random.Random) -> dict:
    """Put something else at a random place of a checkpoint, or leave it out."""
    table = rng.choice([state, state, state["state_dict"], state["optimizer"], state["args"]])
    key = rng.choice(sorted(table, key=str))
    if rng.random() < 0.3:
        del table[key]
    else:
        table[key] = rng.choice([*JUNK, torch.zeros(3), torch.tensor(float("inf"))])
    return state


def outcome(main, flags: list[str], run_dir: Path, inputs: list[Path]) -> str:
    """'trained' or 'refused', or what should not have been."""
    before = {path: path.read_bytes() for path in inputs}
    quiet = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            main([*flags, "--run-dir", str(run_dir)])
        result = "trained"
    except InputError as error:
        result = "refused" if "\n" not in str(error) else f"more than a line: {error}"
        if any(run_dir.glob("*.pth.tar")):
            result = f"refused and left a checkpoint: {error}"
    except TimeoutError:
        result = "hang"
    except Exception as error:
        result = f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return result if before == {path: path.read_bytes() for path in inputs} else "an input file has changed"


def _hang(*_):
    raise TimeoutError


def fuzz(splits: int, checkpoints: int, seed: int) -> bool:
    """Try so many damaged files of each kind, print the counts, return whether all ended well."""
    rng, good = random.Random(seed), True
    before = signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        _, lists = digits.prepare(base / "data", 50.0)
        small = base / "lists"
        small.mkdir()
        for split in ("train", "val", "test"):
            lines = (lists / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)
            step = max(len(lines) // 16, 1)
            (small / f"digits_LT_{split}.txt").write_text("".join(lines[::step][:16]))
        common = ["--data-root", str(base / "data"), "--splits", str(small)]
        if splits:
            good &= _report("split lists", _damaged_splits(splits, rng, base, common))
        if checkpoints:
            good &= _report("checkpoints", _damaged_checkpoints(checkpoints, rng, base, common))
    signal.signal(signal.SIGALRM, before)
    return good


def _damaged_splits(number: int, rng: random.Random, base: Path, common: list[str]) -> Counter:
    train = base / "lists" / "digits_LT_train.txt"
    whole, found = train.read_bytes(), Counter()
    for i in range(number):
        train.write_bytes(rng.choice([damage_bytes, damage_line])(whole, rng))
        found[outcome(stage1.main, [*STAGE_1.split(), *common], base / f"s{i}", [train])] += 1
        print(f"\rsplit list {i + 1}/{number}", end="", file=sys.stderr, flush=True)
    train.write_bytes(whole)
    return found


def _damaged_checkpoints(number: int, rng: random.Random, base: Path, common: list[str]) -> Counter:
    """Half of them go into stage 1's --resume, half into stage 2's --pretrained."""
    stage1.main([*STAGE_1.split(), *common, "--save-steps", "1", "--run-dir", str(base / "whole")])
    whole, damaged, found = base / "whole" / "previous.pth.tar", base / "damaged.pth.tar", Counter()
    for i in range(number):
        if rng.random() < 0.5:
            damaged.write_bytes(damage_bytes(whole.read_bytes(), rng))
        else:
            torch.save(damage_entry(torch.load(whole, weights_only=True), rng), damaged)
        if i % 2:
            flags = [*STAGE_1.split(), *common, "--resume", str(damaged)]
            found[outcome(stage1.main, flags, base / f"c{i}", [damaged])] += 1
        else:
            flags = [*FLAGS.split(), *common, "--lr", "0.1", "--pretrained", str(damaged)]
            found[outcome(stage2.main, flags, base / f"c{i}", [damaged])] += 1
        print(f"\rcheckpoint {i + 1}/{number}", end="", file=sys.stderr, flush=True)
    return found


def _report(what: str, found: Counter) -> bool:
    bad = {result: count for result, count in found.items() if result not in ("trained", "refused")}
    print(
        f"\n{found.total()} damaged {what}: {found['trained']} trained, {found['refused']} refused, {bad or 'no'} other"
    )
    return not bad
