"""Functions (rng, base, folder) -> Case that damage a file and return the command that reads it."""

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
from tests.idx_files import write_fashion_mnist
from tools.soak import mutations
from tools.soak.base import Base
from tools.soak.kills import HEADS, QUEUE
from utils.run import checkpoint

SHORT = QUEUE.replace("--epochs 4", "--epochs 1").split()  # flags of a run of one epoch
THREE_EPOCHS = QUEUE.replace("--epochs 4", "--epochs 3").split()
TSC = ["--targeted", "--sep_t", "--monitor-freq", "1"]
BATCH = 16
PROBE = f"-b {BATCH} --epochs 1 --lr 1".split()


class Case(NamedTuple):
    """A damaged file and the command that reads it: `module.main(flags)`."""

    module: object
    flags: list[str]
    file: Path


def data_flags(base: Base, folder: Path) -> list[str]:
    """Return the data flags for the copy of the data in the folder of the case."""
    return [word.replace(str(base.folder), str(folder)) for word in base.flags]


ORIGINAL_CONTENT: dict[Path, bytes] = {}  # content of this case's files before the damage


def save_original(file: Path) -> None:
    ORIGINAL_CONTENT[file] = file.read_bytes()


def damage_file(file: Path, rng: random.Random, *mutators: Callable[[bytes, random.Random], bytes]) -> None:
    """Damage a file with one of the mutators, one to three times."""
    save_original(file)
    data, mutator = file.read_bytes(), rng.choice(mutators)
    for _ in range(rng.choice([1, 1, 2, 3]) if mutator is mutations.damage_bytes else 1):
        data = mutator(data, rng) or b"\0"
    file.write_bytes(data)


def damage_split_list(rng: random.Random, base: Base, folder: Path) -> Case:
    stage, split = rng.choice([(stage1, "train"), (stage2, "train"), (stage2, "val"), (stage2, "test")])
    file = folder / "data" / f"{split}.txt"
    damage_file(file, rng, mutations.damage_bytes, mutations.damage_line)
    return Case(stage, [*data_flags(base, folder), *(SHORT if stage is stage1 else probe_flags(folder, rng))], file)


def probe_flags(folder: Path, rng: random.Random, pretrained: Path | None = None) -> list[str]:
    """Return the flags of a linear probe or of a fitted head."""
    unsupported = {"own"} if pretrained in (None, folder / "run" / checkpoint.LAST) else {"own", "target"}
    fitted = [name for name, flags in HEADS.items() if "--epochs" not in flags and name not in unsupported]
    head = PROBE if rng.random() < 0.5 else ["--head", rng.choice(fitted)]
    return ["--pretrained", str(pretrained or folder / "run" / checkpoint.LAST), *head]


def damage_image(rng: random.Random, base: Base, folder: Path) -> Case:
    """Damage an image of the training or test list, or replace it by a valid image of another format or size."""
    split = rng.choice(["train", "test"])
    line = rng.choice((folder / "data" / f"{split}.txt").read_text().splitlines())
    file = folder / "data" / line.rsplit(" ", 1)[0]
    kind = rng.choice(["bytes", "bytes", "JPEG", "TIFF", "GIF", "mode", "size", "empty", "folder", "none", "loop"])
    save_original(file)
    if kind in ("JPEG", "TIFF", "GIF"):
        Image.open(file).save(file, format=kind)
    if kind == "mode":
        Image.open(file).convert(rng.choice(["RGBA", "P", "1", "LA", "I;16"])).save(file)
    if kind == "size":
        Image.new("L", rng.choice([(1, 1), (1, 3000), (3000, 1), (4000, 4000)])).save(file)
    if kind in ("bytes", "JPEG", "TIFF", "GIF"):
        file.write_bytes(mutations.damage_bytes(file.read_bytes(), rng))
    if kind in ("empty", "folder", "none", "loop"):
        file.unlink()
    if kind == "empty":
        file.touch()
    if kind == "folder":
        file.mkdir()
    if kind == "loop":
        file.symlink_to(file)
    loading_flags = rng.choice([[], ["--cache", "off"], ["--cache", "off", "-j", "1"]])
    if split == "train":
        loading_flags = loading_flags + rng.choice([[], ["--on-bad-image", "skip"]])
        return Case(stage1, [*data_flags(base, folder), *SHORT, *loading_flags], file)
    return Case(stage2, [*data_flags(base, folder), *probe_flags(folder, rng), *loading_flags], file)


def damage_checkpoint(rng: random.Random, base: Base, folder: Path) -> Case:
    """Damage a checkpoint that is read by --resume, --pretrained, --init-from or --evaluate."""
    use = rng.choice(["resume", "resume 2", "pretrained", "init-from", "evaluate", "safetensors", "auto"])
    run_dir = folder / "run"
    file = {"resume 2": run_dir / "probe" / checkpoint.LAST, "evaluate": run_dir / "probe" / checkpoint.LAST}.get(
        use, run_dir / checkpoint.LAST
    )
    if use == "safetensors":
        weights = checkpoint.strip_prefix(torch.load(file, weights_only=True)["state_dict"])
        file = folder / "encoder.safetensors"
        query = {k.removeprefix("encoder_q."): v.contiguous() for k, v in weights.items() if k.startswith("encoder_q.")}
        save_file(query, file, {"arch": "resnet20"})
    save_original(file)
    if use != "safetensors" and rng.random() < 0.6:
        torch.save(mutations.damage_entry(torch.load(file, weights_only=True), rng), file)
    else:
        damage_file(file, rng, mutations.damage_bytes)
    targets = ["--targets", str(folder / "optimal_10_16.npy")]
    pretrained = ["--pretrained", str(run_dir / checkpoint.LAST), "--epochs", "3", "--lr", "1", "-b", "16"]
    stage, more = {
        "resume": (stage1, [*THREE_EPOCHS, *TSC, *targets, "--resume", str(file), "--override"]),
        "auto": (stage1, [*THREE_EPOCHS, *TSC, *targets, "--resume", "auto", "--override", "--run-dir", str(run_dir)]),
        "resume 2": (stage2, [*pretrained, "--resume", str(file), "--override"]),
        "evaluate": (stage2, ["--evaluate", "--resume", str(file)]),
        "init-from": (stage1, [*SHORT, "--init-from", str(file)]),
    }.get(use) or (stage2, probe_flags(folder, rng, file))
    return Case(stage, [*data_flags(base, folder), *more], file)


def damage_targets(rng: random.Random, base: Base, folder: Path) -> Case:
    file = folder / "optimal_10_16.npy"
    save_original(file)
    array = np.load(file)
    row = rng.randrange(10)
    if rng.random() < 0.5:
        damage_file(file, rng, mutations.damage_bytes)
    else:
        array = rng.choice(
            [array[:row], array[:, : row + 1], array.astype(rng.choice(["f2", "f8", "i4", "c8", ">f4", "S4"])), array.T]
            + [np.where(np.arange(10)[:, None] == row, value, array) for value in (np.nan, np.inf, 0, array[0])]
            + [np.asfortranarray(array), array[None], np.array(1.0), array * 2]
        )
        np.save(file, array)
    return Case(stage1, [*data_flags(base, folder), *SHORT, *TSC, "--kcl-epochs", "0", "--targets", str(file)], file)


def damage_idx_file(rng: random.Random, base: Base, folder: Path) -> Case:
    """Damage one of Fashion-MNIST's four files, before or after the lists are made."""
    data_root, cut = folder / "fashion", rng.random() < 0.4
    write_fashion_mnist(data_root, train_each=104, test_each=2, suffix=rng.choice(["", ".gz"]), size=8)
    flags = f"--dataset fashion --data-root {data_root} --largest 4 --imbalance 2 --image-size 8 -a resnet20".split()
    flags += f"-j 0 -p 0 --seed 5 --device cpu -b {BATCH} --epochs 1 --lr 0.1".split()
    pretrained = ["--pretrained", str(folder / "run" / checkpoint.LAST)]
    stage, more = rng.choice([(stage1, f"--moco-dim 8 --moco-k {BATCH}".split()), (stage2, pretrained)])
    file = rng.choice(sorted(data_root.glob("*ubyte*")))
    data = file.read_bytes()
    if cut:
        from imagenet_inat.sets import fashion

        fashion.prepare(data_root, 2.0, 4)
        file = rng.choice([file, *sorted(data_root.glob("*/*.json"))])
        data = file.read_bytes()
    save_original(file)
    head = data[:24]
    file.write_bytes(rng.choice([mutations.damage_bytes(data, rng), mutations.damage_bytes(head, rng) + data[24:]]))
    return Case(stage, [*flags, *more], file)


def damage_recipe(rng: random.Random, base: Base, folder: Path) -> Case:
    """Damage a recipe. The flags after it keep the run short, whatever the damaged numbers are."""
    recipe_name = rng.choice(
        [f"{name}_{method}.txt" for name in ("fashion", "imagenet", "inat") for method in ("kcl", "tsc")]
    )
    for path in (ROOT / "recipes").glob("*.txt"):
        shutil.copy(path, folder)
    file = folder / rng.choice(
        [recipe_name, recipe_name, f"{recipe_name.partition('_')[0]}.txt" if "inat" not in recipe_name else recipe_name]
    )
    damage_file(file, rng, mutations.damage_bytes, mutations.damage_text)
    kept = f"-b {BATCH} --epochs 1 --moco-dim 16 --targets {folder / 'optimal_10_16.npy'}".split()
    kept += ["--contrast", "batch"] if "fashion" in recipe_name else ["--moco-k", "32"]
    return Case(stage1, [f"@{folder / recipe_name}", *data_flags(base, folder), *kept], file)


def damage_study_file(rng: random.Random, base: Base, folder: Path) -> Case:
    file, encoder = folder / "plan.ini", str(folder / "run" / checkpoint.LAST)
    text = rng.choice(sorted((ROOT / "examples" / "results").glob("*.ini"))).read_text()
    file.write_text(text.replace("runs/fashion.safetensors", encoder))  # a file that the user would have made
    damage_file(file, rng, mutations.damage_bytes, mutations.damage_text)
    return Case(results, [str(file), "--plan", "--device", "cpu", "--folder", str(folder / "study")], file)


def damage_features(rng: random.Random, base: Base, folder: Path) -> Case:
    """Damage features.npz, which a report reads, or the cached features to which heads are fitted."""
    if rng.random() < 0.5:
        file = folder / "run" / "features.npz"
        save_original(file)
        if rng.random() < 0.5:
            arrays = dict(np.load(file))
            name = rng.choice(sorted(arrays))
            value = arrays.pop(name)
            if rng.random() < 0.8:
                others = [value[..., :1], value.astype("f2"), value * 0, value - 100] if value.ndim else [-value]
                arrays[name] = rng.choice([*others, value.astype("S"), value[None]])
            np.savez(file, **arrays)
        else:
            damage_file(file, rng, mutations.damage_bytes)
        return Case(report, [str(folder / "run"), "--output", str(folder / "report")], file)
    file = rng.choice(sorted((folder / "run").glob("features_*/*.safetensors")))
    damage_file(file, rng, mutations.damage_bytes)
    pretrained = ["--pretrained", str(folder / "run" / checkpoint.LAST), "--head", "logistic"]
    return Case(stage2, [*base.flags, *pretrained], file)  # with other data the features would be recomputed


def damage_run_folder(rng: random.Random, base: Base, folder: Path) -> Case:
    """Damage a small file of a run folder, which a report or --resume auto reads."""
    run_dir, probe = folder / "run", folder / "run" / "probe"
    shutil.copytree(run_dir, folder / "other")  # a second trial with another seed
    for args in (folder / "other").rglob("args.json"):
        args.write_text(args.read_text().replace('"seed": 5', '"seed": 6'))
    files = [
        run_dir / "log.jsonl",
        run_dir / "args.json",
        run_dir / "epochs.csv",
        probe / "log.jsonl",
        probe / "args.json",
    ]
    file = rng.choice([*files, probe / "results.json", probe / "results.json"])
    if file.suffix != ".csv" and rng.random() < 0.7:
        damage_file(file, rng, mutations.damage_json)
    else:
        damage_file(file, rng, mutations.damage_bytes)
    use = rng.choice(["report", "report", "trials", "resume"])
    if use == "report":
        paths = rng.choice([[str(run_dir)], [str(probe)]])
        return Case(report, [*paths, "--output", str(folder / "report")], file)
    if use == "trials":
        return Case(report, ["--trials", str(folder / "[ro][ut][nh]*")], file)
    if file.parent == run_dir:
        more = f"--targets {folder / 'optimal_10_16.npy'} --resume auto --override --run-dir {run_dir}".split()
        return Case(stage1, [*data_flags(base, folder), *THREE_EPOCHS, *TSC, *more], file)
    more = (
        f"--pretrained {run_dir / checkpoint.LAST} -b 16 --epochs 3 --lr 1 --resume auto --override --run-dir {probe}"
    )
    return Case(stage2, [*data_flags(base, folder), *more.split()], file)
