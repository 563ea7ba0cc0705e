"""Split lists: fetch the published ones, check a data set, cut a long tail out of your own images.

python -m imagenet_inat.splits download imagenet
python -m imagenet_inat.splits verify imagenet --data-root IMAGENET
python -m imagenet_inat.splits make IMAGES --profile exp --imbalance 50 --output LISTS
python -m imagenet_inat.splits make cifar10 --imbalance 100
python -m imagenet_inat.splits make inat --json train2018.json val2018.json
"""

import utils.quiet_start  # noqa: F401, before all that takes seconds to load

# isort: split

import argparse
import shlex
import sys
from pathlib import Path

from imagenet_inat.datasets import LISTS_ROOT, REGISTRY, names, row
from imagenet_inat.flags import add_list_arguments
from imagenet_inat.lists.profiles import PROFILES
from imagenet_inat.options import find_lists, resolve_imbalance, resolve_largest
from imagenet_inat.splits import torchvision_sets
from imagenet_inat.splits.download import download
from imagenet_inat.splits.make import Plan, make_inat, make_split
from imagenet_inat.splits.verify import verify
from utils import errors
from utils.distributed import say
from utils.errors import InputError
from utils.parser import Parser, number, positive_float, positive_int

PUBLISHED = sorted(name for name, spec in REGISTRY.items() if spec.published)
VERIFY = ["python", "-m", "imagenet_inat.splits", "verify"]
# What `make` takes besides its source; a flag of another kind of source is refused, not ignored.
MAKE_DEFAULTS = {
    "cifar": {"output": "data", "imbalance": 100.0, "seed": 0},
    "inat": {"output": str(LISTS_ROOT / "iNaturalist18"), "json": None},
    "images": {
        "output": None, "profile": "exp", "imbalance": 100.0, "seed": 0, "val": 10, "test": 20, "largest": None,
    },
}  # fmt: skip


# All that NumPy's legacy generator takes.
list_seed = number("list_seed", int, lambda value: 0 <= value < 2**32, "less than 2**32, and 0 or more")


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_download(commands.add_parser("download", help="fetch published lists"))
    add_verify(commands.add_parser("verify", help="check lists and images before training"))
    # Only what is typed is in make's namespace: the defaults depend on the source.
    add_make(commands.add_parser("make", help="cut a long-tailed split", argument_default=argparse.SUPPRESS))
    return parser


def add_download(parser: Parser) -> None:
    parser.description = "Fetch the lists of classifier-balancing; interrupted, the same command goes on."
    parser.add_argument("name", choices=PUBLISHED, help="the data set")
    parser.add_argument("--output", metavar="DIR", help="where they go (default: imagenet_inat/data/<Set>)")
    parser.add_argument(
        "--from", dest="source", metavar="DIR|URL", help="folder or http(s) address that holds the files themselves"
    )


def add_verify(parser: Parser) -> None:
    parser.description = "Check lists (hash, classes, repeats, overlap) and images. Exit code 1 if anything is wrong."
    parser.add_argument("name", choices=names(), help="the data set")
    parser.add_argument("--data-root", metavar="DIR", help="look for every image below this folder")
    add_list_arguments(parser)
    parser.add_argument("--decode", action="store_true", help="also open every image, which takes minutes")


def add_make(parser: Parser) -> None:
    parser.description = "Write lists, and made.json, which says how they were made and lets `verify` know them again."
    parser.add_argument(
        "source",
        help="a folder with a folder of images for each class, or a list of images; or: cifar10, cifar100, inat",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the lists, needed for your images; CIFAR: the data root, where the archive is looked for "
        "or downloaded to and the images are written (default: data)",
    )
    parser.add_argument(
        "--profile",
        choices=sorted(PROFILES),
        help="images: exp, each class a fixed share smaller than the one before; step, half of the classes large and "
        "half small; pareto, a power law, few large classes and a long tail (default: exp)",
    )
    parser.add_argument("--imbalance", type=positive_float, help="largest class ÷ smallest, 1 or more (default: 100)")
    parser.add_argument("--seed", type=list_seed, help="which images are taken (default: 0)")
    parser.add_argument("--val", type=positive_int, help="images: validation images of each class (default: 10)")
    parser.add_argument("--test", type=positive_int, help="images: test images of each class (default: 20)")
    parser.add_argument(
        "--largest", type=positive_int, help="images: training images of the largest class (default: all that fit)"
    )
    parser.add_argument(
        "--json", nargs=2, metavar=("TRAIN", "VAL"), help="inat: train2018.json and val2018.json of the competition"
    )


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    {"download": run_download, "verify": run_verify, "make": run_make}[args.command](args)


def run_download(args: argparse.Namespace) -> None:
    spec = REGISTRY[args.name]
    output = Path(args.output or LISTS_ROOT / spec.set_name)
    download(spec, output, args.source)
    splits = ["--splits", args.output] if args.output else []
    say(f"next, check the images: {shlex.join([*VERIFY, args.name, *splits, '--data-root', 'DIR'])}")


def run_verify(args: argparse.Namespace) -> None:
    spec = row(args.name)
    if args.decode and not args.data_root:
        raise InputError("--decode opens images: say where they are with --data-root")
    largest = resolve_largest(spec, args.largest)
    lists = find_lists(spec, args, resolve_imbalance(spec, args.imbalance, largest), largest)
    wrong = verify(spec, lists.files, lists.get, lists.root if args.data_root else None, args.decode)
    say(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong" if wrong else "nothing is wrong")
    if wrong:
        sys.exit(1)


def run_make(args: argparse.Namespace) -> None:
    kind = "cifar" if args.source in torchvision_sets.SETS else "inat" if args.source == "inat" else "images"
    given = {name: value for name, value in vars(args).items() if name not in ("command", "source")}
    defaults = MAKE_DEFAULTS[kind]
    if strange := sorted(given.keys() - defaults.keys()):
        takes = ", ".join(f"--{name}" for name in sorted(defaults))
        raise InputError(f"--{strange[0]}: not for `make {args.source}`, which takes {takes}")
    {"cifar": make_cifar, "inat": make_inat_lists, "images": make_images}[kind](args.source, **(defaults | given))


def make_cifar(name: str, output: str, imbalance: float, seed: int) -> None:
    root, lists = torchvision_sets.make(name, Path(output), imbalance, seed)
    say(f"wrote {root}: images/ and the lists in {lists.name}/")
    which = ["--splits", str(lists)] if seed else ["--imbalance", f"{imbalance:g}"]
    say_next(name, ["--data-root", output, *which])


def make_inat_lists(name: str, output: str, json: list[str] | None) -> None:
    if json is None:
        raise InputError("make inat: name the annotations with --json train2018.json val2018.json")
    make_inat(dict(zip(("train", "val"), map(Path, json), strict=True)), Path(output))
    say(f"wrote {output}: iNaturalist18_train.txt, iNaturalist18_val.txt, made.json")
    say_next(name, ["--splits", output, "--data-root", "DIR"])


def make_images(source: str, output: str | None, **plan) -> None:
    if output is None:
        raise InputError("make: say where the lists go with --output DIR")
    if plan["imbalance"] < 1:
        raise InputError(f"--imbalance {plan['imbalance']:g}: expected 1 (balanced) or more")
    sizes = sorted(make_split(Path(source), Path(output), Plan(**plan)), reverse=True)
    say(
        f"wrote {output}: custom_{{train,val,test}}.txt and made.json; {len(sizes)} classes, {sum(sizes):,} training "
        f"images, {sizes[0]} … {sizes[-1]} a class"
    )
    root = source if Path(source).is_dir() else "DIR"
    say_next("custom", ["--splits", output, "--data-root", root])


def say_next(name: str, flags: list[str]) -> None:
    say(f"next, check it: {shlex.join([*VERIFY, name, *flags])}")
    say(f"then train: {shlex.join(['python', 'main_moco_supcon_imba.py', '--dataset', name, *flags])}")


if __name__ == "__main__":
    errors.run(main, "nothing is half written; the same command takes it up again")
