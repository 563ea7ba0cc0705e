"""Fit the classifiers of stage 2 to raw pixels, without an encoder: the lower baseline.

    python -m examples.pixels --dataset digits --imbalance 50

It takes seconds and writes the same table as `main_lincls_imba.py --compare-heads`. A
pre-trained encoder should be clearly better.
"""

import utils.startup  # first, because it handles signals during the other imports
from imagenet_inat import data_flags
from utils import errors
from utils.cli.parser import Parser, parse


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    data_flags.add_data_arguments(parser)
    running = parser.add_argument_group("Run and logging")
    running.add_argument(
        "--run-dir",
        metavar="DIR",
        help="Run folder (default: runs/<data set>_pixels_<imbalance>).",
        affects_result=False,
    )
    running.add_argument(
        "--resume",
        choices=["auto"],
        help="Recompute the results of an existing run folder (auto).",
        affects_result=False,
    )
    running.add_argument(
        "--device",
        default="auto",
        help="Device, such as cpu or cuda:1; auto uses a GPU if available.",
        affects_result=False,
    )
    parser.set_defaults(pretrained=None, arch=None, seed=0)  # entries of results.json
    return parser


utils.startup.answer_help(__name__, get_args_parser)  # before the imports below, which take seconds

from pathlib import Path

import torch

from imagenet_inat import options
from imagenet_inat.loaders import check_lists_and_hash
from imagenet_inat.options import DataConfig
from moco.heads import comparison
from moco.heads.data import HeadData
from utils.devices import check_device, resolve_device
from utils.measure.feature_cache import Features
from utils.run.compute import ComputeConfig
from utils.run.folder import check_run_dir, lock_run_dir

ARCH = "pixels"  # used as the name of the architecture
MISSING_PARTS = {"targets": "pixels have no targets", "classifier": "pixels have no network"}


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    args = parse(parser, argv)
    flags = options.DataFlags.from_args(args).resolved()
    vars(args).update(vars(flags))
    check_device(args.device, 1)
    args.arch, device = ARCH, resolve_device(args.device)
    name = f"{flags.data_name}_pixels" + (f"_{args.imbalance:g}" if args.imbalance else "")
    args.run_dir = args.run_dir or str(Path("runs") / name)
    data, run_dir = options.build_data_config(flags), Path(args.run_dir)
    arguments = parser.describe(args, data.facts | check_lists_and_hash(data, "instance", 1))
    check_run_dir(arguments, fitted=True)
    train, val, test = (pixel_features(data, split) for split in ("train", "val", "test"))
    counts = data.open("train").class_counts
    train = Features(train.features.double(), train.labels)
    compute = ComputeConfig(device)
    head_data = HeadData(train, val, test, counts, compute, data.selection_split, lacks=MISSING_PARTS)
    with lock_run_dir(run_dir):
        comparison.run(run_dir, arguments.values, head_data)


def pixel_features(data: DataConfig, split: str) -> Features:
    """Return the evaluation views of a split as features in [0, 1], (n, 3·S·S), or (n, S·S) for grey images."""
    images = data.open_decoded(split, data.eval_view())
    views = torch.stack([images[i][0] for i in range(len(images))]).float() / 255  # (n, 3, S, S)
    grey = bool((views[:, :1] == views).all())
    return Features((views[:, :1] if grey else views).flatten(1), torch.from_numpy(images.labels))


if __name__ == "__main__":
    errors.run(main, "no results were written")
