"""Download, check or create split lists, which name the images of train, val and test.

python -m imagenet_inat.splits download imagenet
python -m imagenet_inat.splits verify imagenet --data-root IMAGENET
python -m imagenet_inat.splits make IMAGES --output LISTS
python -m imagenet_inat.splits make cifar10 --imbalance 100
python -m imagenet_inat.splits make inat --json train2018.json val2018.json
"""

from utils import startup  # before imports that take seconds

# isort: split

import argparse
import shlex
import sys
from pathlib import Path

from imagenet_inat.datasets import LISTS_ROOT, REGISTRY, get_spec, names
from imagenet_inat.lists.format import read_split
from imagenet_inat.lists.plan import NATURAL, SplitPlan
from imagenet_inat.lists.profiles import PROFILES
from imagenet_inat.paths import ListFlags, add_list_arguments, find_lists
from imagenet_inat.splits import torchvision_sets
from imagenet_inat.splits.download import download
from imagenet_inat.splits.make import make_inat, make_split
from utils import errors
from utils.cli.numbers import number_type, positive_float, positive_int
from utils.cli.parser import Parser
from utils.distributed import log
from utils.errors import InputError

PUBLISHED = sorted(name for name, spec in REGISTRY.items() if spec.published)
VERIFY = ["python", "-m", "imagenet_inat.splits", "verify"]
# The flags that `make` accepts for each kind of source, with their defaults. Other flags are an error.
MAKE_DEFAULTS = {
    "cifar": {"output": "data", "imbalance": 100.0, "seed": 0},
    "inat": {"output": str(LISTS_ROOT / "iNaturalist18"), "json": None},
    "images": SplitPlan._field_defaults | {"output": None, "profile": None},
}


# The seeds that NumPy's legacy generator accepts.
list_seed = number_type("list_seed", int, lambda value: 0 <= value < 2**32, "less than 2**32, and 0 or more")


def share_or_number(text: str) -> float | int:
    """Convert a share above 0 and below 1 to float, and a number from 1 to int."""
    if text.isdecimal():
        return positive_int(text)
    if 0 < (share := float(text)) < 1:
        return share
    raise argparse.ArgumentTypeError(f"found {text}, expected a share such as 0.1, or a whole number from 1")


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_download_arguments(commands.add_parser("download", help="download the published lists"))
    add_verify_arguments(commands.add_parser("verify", help="check lists and images"))
    # make's namespace holds only the flags that were typed, because the defaults depend on the source.
    add_make_arguments(commands.add_parser("make", help="create lists", argument_default=argparse.SUPPRESS))
    return parser


def add_download_arguments(parser: Parser) -> None:
    parser.description = "Download the published lists. If interrupted, run the same command again to continue."
    parser.add_argument("name", choices=PUBLISHED, metavar="NAME", help="Data set: %(choices)s.")
    parser.add_argument("--output", metavar="DIR", help="Folder for the lists (default: below imagenet_inat/data).")
    parser.add_argument("--from", dest="source", metavar="DIR|URL", help="Folder or http(s) address of a mirror.")


def add_verify_arguments(parser: Parser) -> None:
    parser.description = (
        "Check lists (hash, classes, duplicates, overlap) and images. The exit code is 1 if a check fails."
    )
    parser.add_argument("name", choices=names(), metavar="NAME", help="Data set: %(choices)s.")
    parser.add_argument("--data-root", metavar="DIR", help="Folder in which every listed image must exist.")
    add_list_arguments(parser)
    parser.add_argument("--decode", action="store_true", help="Also open every image, which takes minutes.")


def add_make_arguments(parser: Parser) -> None:
    parser.description = (
        "Create lists, and made.json, by which `verify` recognises them. For a folder of your own images, also create "
        "recipe.txt, with flags of stage 1 that fit the images."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="Folder with one folder of images per class, or with train/, val/ and test/ that each have such folders; "
        "or a list of images; or cifar10, cifar100 or inat.",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="Folder for the lists; required for your own images. CIFAR: data root, to which the archive is downloaded "
        "and the images are written (default: data).",
    )
    parser.add_argument(
        "--profile",
        choices=[NATURAL, *sorted(PROFILES)],
        help="Class sizes of your own images (default: natural; exp with --imbalance or --largest).\n"
        "natural: every image is used\nexp: a subset, a constant factor from class to class\n"
        "step: a subset, half of the classes large, half small\n"
        "pareto: a subset, a power law with few large classes and a long tail",
    )
    parser.add_argument(
        "--imbalance",
        type=positive_float,
        metavar="RATIO",
        help="Largest / smallest class of a subset, 1 or more (default: 100).",
    )
    parser.add_argument("--seed", type=list_seed, help="Random seed of the selection of images (default: 0).")
    for split, share, number in (("val", "0.1", 10), ("test", "0.2", 20)):
        parser.add_argument(
            f"--{split}",
            type=share_or_number,
            metavar="N",
            help=f"{split.capitalize()} images of each class of your own images: a share below 1, or a number "
            f"(default: {share}; {number} for a subset). With natural, a class with three or more images has at least "
            "one, and a number is at most a third of the class.",
        )
    parser.add_argument(
        "--largest",
        type=positive_int,
        metavar="N",
        help="Training images of the largest class of a subset of your own images (default: as many as possible).",
    )
    parser.add_argument(
        "--min-images",
        type=positive_int,
        metavar="N",
        help="Omit the classes of your own images that have fewer images; with split folders, fewer training images.",
    )
    parser.add_argument(
        "--json", nargs=2, metavar=("TRAIN", "VAL"), help="Annotations for inat: train2018.json and val2018.json."
    )


def main(argv: list[str] | None = None) -> None:
    arguments = vars(get_args_parser().parse_args(argv))
    {"download": run_download, "verify": run_verify, "make": run_make}[arguments.pop("command")](**arguments)


def run_download(name: str, output: str | None, source: str | None) -> None:
    spec = REGISTRY[name]
    download(spec, Path(output or spec.lists_folder), source)
    splits = ["--splits", output] if output else []
    log(f"next: check the images: {shlex.join([*VERIFY, name, *splits, '--data-root', 'DIR'])}")


def run_verify(name: str, decode: bool, **list_flags) -> None:
    spec, flags = get_spec(name), ListFlags(**list_flags)
    if decode and not flags.data_root:
        raise InputError("--decode: expected --data-root, the folder of the images")
    lists = find_lists(spec, flags.with_class_sizes(spec))
    with startup.slow_imports():
        from imagenet_inat.splits.verify import verify

    num_problems = verify(spec, lists.files, lists.hints, lists.root if flags.data_root else None, decode)
    log(
        f"{num_problems} {'problem' if num_problems == 1 else 'problems'} found"
        if num_problems
        else "no problems found"
    )
    if num_problems:
        sys.exit(1)


def run_make(source: str, **typed) -> None:
    kind = "cifar" if source in torchvision_sets.SETS else "inat" if source == "inat" else "images"
    defaults = MAKE_DEFAULTS[kind]
    if unsupported := sorted(typed.keys() - defaults.keys()):
        supported = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(defaults))
        raise InputError(
            f"--{unsupported[0].replace('_', '-')}: not supported by `make {source}`, which accepts {supported}"
        )
    {"cifar": make_cifar, "inat": make_inat_lists, "images": make_images}[kind](source, **(defaults | typed))


def make_cifar(name: str, output: str, imbalance: float, seed: int) -> None:
    root, lists = torchvision_sets.make(name, Path(output), imbalance, seed)
    log(f"wrote {root}: images/ and the lists in {lists.name}/")
    list_flags = ["--splits", str(lists)] if seed else ["--imbalance", f"{imbalance:g}"]
    log_next_commands(name, ["--data-root", output, *list_flags])


def make_inat_lists(name: str, output: str, json: list[str] | None) -> None:
    if json is None:
        raise InputError("make inat: no annotations; add --json train2018.json val2018.json")
    make_inat(dict(zip(("train", "val"), map(Path, json), strict=True)), Path(output))
    log(f"wrote {output}: iNaturalist18_train.txt, iNaturalist18_val.txt, made.json")
    log_next_commands(name, ["--splits", output, "--data-root", "DIR"])


def make_images(
    source: str, output: str | None, profile: str | None, imbalance: float | None, largest: int | None, **plan
) -> None:
    if output is None:
        raise InputError("make: no folder for the lists; add --output DIR")
    subset_flags = {"imbalance": imbalance, "largest": largest}
    typed = [name for name, value in subset_flags.items() if value is not None]
    profile = profile or ("exp" if typed else NATURAL)
    if profile == NATURAL and typed:
        raise InputError(f"--{typed[0]}: not supported by --profile natural; use exp, step or pareto")
    if profile != NATURAL:
        subset_flags["imbalance"] = imbalance = imbalance or 100.0
        if imbalance < 1:
            raise InputError(f"--imbalance {imbalance:g}: expected 1 (balanced) or more")
    counts = make_split(Path(source), Path(output), SplitPlan(profile, **subset_flags, **plan))
    train = counts["train"]
    log(
        f"wrote {output}: custom_{{train,val,test}}.txt and made.json; {len(train)} classes, {train.sum():,} training "
        f"images, {train.max()} … {train.min()} per class; {counts['val'].sum():,} validation and "
        f"{counts['test'].sum():,} test images"
    )
    if not Path(source).is_dir():  # the paths of a list may start from any folder
        log_next_commands("custom", ["--splits", output, "--data-root", "DIR"])
        return
    paths = [path.decode() for path in read_split(Path(output) / "custom_train.txt", None)[0].tolist()]
    with startup.slow_imports():
        from imagenet_inat.splits.recipe import write_recipe

    recipe = write_recipe(Path(output), Path(source), paths, train)
    flags = [f"@{recipe}", "--run-dir", "RUN"] if recipe else None
    log_next_commands("custom", ["--splits", output, "--data-root", source], flags)


def log_next_commands(name: str, flags: list[str], train_flags: list[str] | None = None) -> None:
    """Log the commands that check and train the data. train_flags: flags of stage 1, if not the same."""
    log(f"next: check the data: {shlex.join([*VERIFY, name, *flags])}")
    train_flags = train_flags or ["--dataset", name, *flags]
    log(f"then train: {shlex.join(['python', 'main_moco_supcon_imba.py', *train_flags])}")


if __name__ == "__main__":
    errors.run(main, "no file is incomplete; run the same command again to continue")
