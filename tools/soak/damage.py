"""Which files are damaged, how, and by which command they are then read: functions of (rng, base, folder)."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import examples.results.__main__ as results
import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
import utils.report.__main__ as report
from tests import ROOT
from tests.idx_files import write_parts
from tools.soak import mutations
from tools.soak.base import Base
from tools.soak.kills import HEADS, QUEUE
from utils.run import checkpoint

SHORT = QUEUE.replace("--epochs 4", "--epochs 1").split()
GO_ON = QUEUE.replace("--epochs 4", "--epochs 3").split()
TSC = ["--targeted", "--sep_t", "--monitor-freq", "1"]
BATCH = 16
PROBE = f"-b {BATCH} --epochs 1 --lr 1".split()


class Trial(NamedTuple):
    """module: its main is called with flags. damaged: the file."""

    module: object
    flags: list[str]
    damaged: Path


def data_flags(base: Base, folder: Path) -> list[str]:
    """The flags of data, all of it copied into the folder of the case."""
    return [word.replace(str(base.folder), str(folder)) for word in base.flags]


WHOLE: dict[Path, bytes] = {}  # what files were in this case before they were damaged


def note(file: Path) -> None:
    WHOLE[file] = file.read_bytes()


def change(file: Path, rng: random.Random, *ways: Callable[[bytes, random.Random], bytes]) -> None:
    """Damage a file by one of the ways; one, two or three times."""
    note(file)
    data, way = file.read_bytes(), rng.choice(ways)
    for _ in range(rng.choice([1, 1, 2, 3]) if way is mutations.damage_bytes else 1):
        data = way(data, rng) or b"\0"
    file.write_bytes(data)


def split_list(rng: random.Random, base: Base, folder: Path) -> Trial:
    stage, split = rng.choice([(stage1, "train"), (stage2, "train"), (stage2, "val"), (stage2, "test")])
    file = folder / "data" / f"{split}.txt"
    change(file, rng, mutations.damage_bytes, mutations.damage_line)
    return Trial(stage, [*data_flags(base, folder), *(SHORT if stage is stage1 else probed(folder, rng))], file)


def probed(folder: Path, rng: random.Random, pretrained: Path | None = None) -> list[str]:
    """Flags of a linear probe, or of a fitted head."""
    lacking = {"own"} if pretrained in (None, folder / "run" / checkpoint.LAST) else {"own", "target"}
    fitted = [name for name, flags in HEADS.items() if "--epochs" not in flags and name not in lacking]
    head = PROBE if rng.random() < 0.5 else ["--head", rng.choice(fitted)]
    return ["--pretrained", str(pretrained or folder / "run" / checkpoint.LAST), *head]


def image(rng: random.Random, base: Base, folder: Path) -> Trial:
    """An image of the training list, of the test list, or one that only looks like what it was."""
    split = rng.choice(["train", "test"])
    line = rng.choice((folder / "data" / f"{split}.txt").read_text().splitlines())
    file = folder / "data" / line.rsplit(" ", 1)[0]
    other = rng.choice(["bytes", "bytes", "JPEG", "TIFF", "GIF", "mode", "size", "empty", "folder", "none", "loop"])
    note(file)
    if other in ("JPEG", "TIFF", "GIF"):
        Image.open(file).save(file, format=other)
    if other == "mode":
        Image.open(file).convert(rng.choice(["RGBA", "P", "1", "LA", "I;16"])).save(file)
    if other == "size":
        Image.new("L", rng.choice([(1, 1), (1, 3000), (3000, 1), (4000, 4000)])).save(file)
    if other in ("bytes", "JPEG", "TIFF", "GIF"):
        file.write_bytes(mutations.damage_bytes(file.read_bytes(), rng))
    if other in ("empty", "folder", "none", "loop"):
        file.unlink()
    if other == "empty":
        file.touch()
    if other == "folder":
        file.mkdir()
    if other == "loop":
        file.symlink_to(file)
    how = rng.choice([[], ["--cache", "off"], ["--cache", "off", "-j", "1"]])
    if split == "train":
        how = how + rng.choice([[], ["--on-bad-image", "skip"]])
        return Trial(stage1, [*data_flags(base, folder), *SHORT, *how], file)
    return Trial(stage2, [*data_flags(base, folder), *probed(folder, rng), *how], file)


def checkpoint_file(rng: random.Random, base: Base, folder: Path) -> Trial:
    """Read by --resume, --pretrained, --init-from, --evaluate; of stage 1, of stage 2, or as .safetensors."""
    use = rng.choice(["resume", "resume 2", "pretrained", "init-from", "evaluate", "safetensors", "auto"])
    own = folder / "run"
    file = {"resume 2": own / "probe" / checkpoint.LAST, "evaluate": own / "probe" / checkpoint.LAST}.get(
        use, own / checkpoint.LAST
    )
    if use == "safetensors":
        weights = checkpoint.unpacked(torch.load(file, weights_only=True))
        file = folder / "encoder.safetensors"
        query = {k.removeprefix("encoder_q."): v.contiguous() for k, v in weights.items() if k.startswith("encoder_q.")}
        save_file(query, file, {"arch": "resnet20"})
    note(file)
    if use != "safetensors" and rng.random() < 0.6:
        torch.save(mutations.damage_entry(torch.load(file, weights_only=True), rng), file)
    else:
        change(file, rng, mutations.damage_bytes)
    targets = ["--targets", str(folder / "optimal_10_16.npy")]
    pretrained = ["--pretrained", str(own / checkpoint.LAST), "--epochs", "3", "--lr", "1", "-b", "16"]
    stage, more = {
        "resume": (stage1, [*GO_ON, *TSC, *targets, "--resume", str(file), "--override"]),
        "auto": (stage1, [*GO_ON, *TSC, *targets, "--resume", "auto", "--override", "--run-dir", str(own)]),
        "resume 2": (stage2, [*pretrained, "--resume", str(file), "--override"]),
        "evaluate": (stage2, ["--evaluate", "--resume", str(file)]),
        "init-from": (stage1, [*SHORT, "--init-from", str(file)]),
    }.get(use) or (stage2, probed(folder, rng, file))
    return Trial(stage, [*data_flags(base, folder), *more], file)


def target_file(rng: random.Random, base: Base, folder: Path) -> Trial:
    file = folder / "optimal_10_16.npy"
    note(file)
    array = np.load(file)
    row = rng.randrange(10)
    if rng.random() < 0.5:
        change(file, rng, mutations.damage_bytes)
    else:
        array = rng.choice(
            [array[:row], array[:, : row + 1], array.astype(rng.choice(["f2", "f8", "i4", "c8", ">f4", "S4"])), array.T]
            + [np.where(np.arange(10)[:, None] == row, value, array) for value in (np.nan, np.inf, 0, array[0])]
            + [np.asfortranarray(array), array[None], np.array(1.0), array * 2]
        )
        np.save(file, array)
    return Trial(stage1, [*data_flags(base, folder), *SHORT, *TSC, "--kcl-epochs", "0", "--targets", str(file)], file)


def idx_file(rng: random.Random, base: Base, folder: Path) -> Trial:
    """Of Fashion-MNIST's four, before the lists are cut or after."""
    where, cut = folder / "fashion", rng.random() < 0.4
    write_parts(where, train_each=104, test_each=2, suffix=rng.choice(["", ".gz"]), size=8)
    flags = f"--dataset fashion --data-root {where} --largest 4 --imbalance 2 --image-size 8 -a resnet20".split()
    flags += f"-j 0 -p 0 --seed 5 --device cpu -b {BATCH} --epochs 1 --lr 0.1".split()
    pretrained = ["--pretrained", str(folder / "run" / checkpoint.LAST)]
    stage, more = rng.choice([(stage1, f"--moco-dim 8 --moco-k {BATCH}".split()), (stage2, pretrained)])
    file = rng.choice(sorted(where.glob("*ubyte*")))
    whole = file.read_bytes()
    if cut:
        from imagenet_inat.sets import fashion

        fashion.prepare(where, 2.0, 4)
        file = rng.choice([file, *sorted(where.glob("*/*.json"))])
        whole = file.read_bytes()
    note(file)
    start = whole[:24]
    file.write_bytes(rng.choice([mutations.damage_bytes(whole, rng), mutations.damage_bytes(start, rng) + whole[24:]]))
    return Trial(stage, [*flags, *more], file)


def recipe(rng: random.Random, base: Base, folder: Path) -> Trial:
    """What follows it on the command line keeps the run short, whatever the numbers in it have become."""
    named = rng.choice(
        [f"{name}_{method}.txt" for name in ("fashion", "imagenet", "inat") for method in ("kcl", "tsc")]
    )
    for path in (ROOT / "recipes").glob("*.txt"):
        shutil.copy(path, folder)
    file = folder / rng.choice([named, named, f"{named.partition('_')[0]}.txt" if "inat" not in named else named])
    change(file, rng, mutations.damage_bytes, mutations.damage_text)
    kept = f"-b {BATCH} --epochs 1 --moco-dim 16 --targets {folder / 'optimal_10_16.npy'}".split()
    kept += ["--contrast", "batch"] if "fashion" in named else ["--moco-k", "32"]
    return Trial(stage1, [f"@{folder / named}", *data_flags(base, folder), *kept], file)


def plan(rng: random.Random, base: Base, folder: Path) -> Trial:
    file, encoder = folder / "plan.ini", str(folder / "run" / checkpoint.LAST)
    text = rng.choice(sorted((ROOT / "examples" / "results").glob("*.ini"))).read_text()
    file.write_text(text.replace("runs/fashion.safetensors", encoder))  # which a user has made before
    change(file, rng, mutations.damage_bytes, mutations.damage_text)
    return Trial(results, [str(file), "--plan", "--device", "cpu", "--folder", str(folder / "study")], file)


def features(rng: random.Random, base: Base, folder: Path) -> Trial:
    """features.npz, which a report reads, or those that heads are fitted to, kept beside the checkpoint."""
    if rng.random() < 0.5:
        file = folder / "run" / "features.npz"
        note(file)
        if rng.random() < 0.5:
            arrays = dict(np.load(file))
            name = rng.choice(sorted(arrays))
            value = arrays.pop(name)
            if rng.random() < 0.8:
                others = [value[..., :1], value.astype("f2"), value * 0, value - 100] if value.ndim else [-value]
                arrays[name] = rng.choice([*others, value.astype("S"), value[None]])
            np.savez(file, **arrays)
        else:
            change(file, rng, mutations.damage_bytes)
        return Trial(report, [str(folder / "run"), "--output", str(folder / "report")], file)
    file = rng.choice(sorted((folder / "run").glob("features_*/*.safetensors")))
    change(file, rng, mutations.damage_bytes)
    pretrained = ["--pretrained", str(folder / "run" / checkpoint.LAST), "--head", "logistic"]
    return Trial(stage2, [*base.flags, *pretrained], file)  # on the data that they are of, else they are made anew


def run_folder(rng: random.Random, base: Base, folder: Path) -> Trial:
    """Its small files, which a report reads and --resume auto finds."""
    own, probe = folder / "run", folder / "run" / "probe"
    shutil.copytree(own, folder / "other")  # of another seed: the second of two trials
    for args in (folder / "other").rglob("args.json"):
        args.write_text(args.read_text().replace('"seed": 5', '"seed": 6'))
    files = [own / "log.jsonl", own / "args.json", own / "epochs.csv", probe / "log.jsonl", probe / "args.json"]
    file = rng.choice([*files, probe / "results.json", probe / "results.json"])
    if file.suffix != ".csv" and rng.random() < 0.7:
        change(file, rng, mutations.damage_json)
    else:
        change(file, rng, mutations.damage_bytes)
    use = rng.choice(["report", "report", "trials", "resume"])
    if use == "report":
        named = rng.choice([[str(own)], [str(probe)]])
        return Trial(report, [*named, "--output", str(folder / "report")], file)
    if use == "trials":
        return Trial(report, ["--trials", str(folder / "[ro][ut][nh]*")], file)
    if file.parent == own:
        more = f"--targets {folder / 'optimal_10_16.npy'} --resume auto --override --run-dir {own}".split()
        return Trial(stage1, [*data_flags(base, folder), *GO_ON, *TSC, *more], file)
    more = f"--pretrained {own / checkpoint.LAST} -b 16 --epochs 3 --lr 1 --resume auto --override --run-dir {probe}"
    return Trial(stage2, [*data_flags(base, folder), *more.split()], file)
