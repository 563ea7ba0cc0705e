"""What a command line means: the data set's defaults, the device, the seed, the lists, what to type next."""

import argparse
import secrets
import shlex
import sys
from pathlib import Path

import torch

from imagenet_inat import digits
from imagenet_inat.datasets import REGISTRY, DatasetSpec, LongTailDataset, default_splits_folder
from utils import distributed
from utils.errors import InputError

# Arguments that say where and how a run is done, not what it computes: free to differ when it goes on.
# The seed and the pre-trained weights are compared with the checkpoint's own, not by their argument.
# fmt: off
FREE = frozenset((
    "data_root", "splits", "targets", "pretrained", "workers", "run_dir", "save_folder", "name", "resume", "override",
    "start_epoch", "seed", "evaluate", "print_freq", "save_freq", "save_steps", "monitor_freq", "device", "gpu",
    "multiprocessing_distributed", "world_size", "rank", "dist_url", "dist_backend",
))
# fmt: on


def resolve(args: argparse.Namespace) -> DatasetSpec:
    """Fill in what depends on the data set, and check what can be checked without reading data.

    Raises:
        InputError: processes that cannot be numbered, a batch that does not divide over
            them, a device that is not there.
    """
    spec = REGISTRY[args.dataset]
    args.arch = args.arch or spec.arch
    args.image_size = args.image_size or spec.image_size
    if not 1 <= args.imbalance <= digits.TRAIN_LARGEST:
        raise InputError(f"--imbalance {args.imbalance:g}: expected 1 to {digits.TRAIN_LARGEST}")
    nodes = max(args.world_size, 1)
    if not args.multiprocessing_distributed and (args.world_size > 1 or args.rank > 0):
        raise InputError("--world-size and --rank number machines: they need --multiprocessing-distributed")
    if args.rank >= nodes:
        raise InputError(f"--rank {args.rank}: expected 0 to {nodes - 1}, for --world-size {nodes}")
    world = distributed.world_size_from(args)
    if args.batch_size % world:
        raise InputError(f"--batch-size {args.batch_size}: does not divide over {world} processes")
    check_device(f"cuda:{args.gpu}" if args.gpu is not None else args.device, world)
    return spec


def check_device(device: str, world: int) -> None:
    """Refuse a --device that this machine does not have, or that `world` processes cannot share.

    Raises:
        InputError: says which.
    """
    if device == "auto":
        return
    try:
        parsed = torch.device(device)
        if parsed.type == "meta":
            raise RuntimeError("computes nothing")
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}: {str(error).splitlines()[0]}") from None
    if parsed.index is not None and world > 1:
        raise InputError(f"device {device}: {world} processes cannot share it; leave --device and --gpu out")


def resolve_seed(args: argparse.Namespace, state: dict) -> None:
    """Take the seed of the checkpoint that a run goes on from, or draw one, the same on all ranks.

    Raises:
        InputError: --seed is given and is not the checkpoint's.
    """
    seed = state.get("seed", args.seed)
    if args.seed not in (None, seed):
        raise InputError(f"--seed {args.seed}: the checkpoint was made with seed {seed}; leave --seed out to go on")
    args.seed = distributed.same_on_all_ranks(secrets.randbelow(2**31)) if seed is None else seed


def open_split(args: argparse.Namespace, split: str, transform) -> LongTailDataset:
    """The data set of a split, train, val or test; digits are written at first use.

    Raises:
        InputError: root or list is missing (what belongs where), or see LongTailDataset.
    """
    spec = REGISTRY[args.dataset]
    if spec.name == "digits":
        root, splits = digits.prepare(Path(args.data_root), args.imbalance)
    else:
        root, splits = Path(args.data_root), default_splits_folder(spec)
    splits = Path(args.splits) if args.splits else splits
    list_file = splits / f"{spec.set_name}_{spec.test_split if split == 'test' else split}.txt"
    if not root.is_dir():
        raise InputError(f"--data-root {root}: no such folder, expected the root of {spec.source}")
    if not list_file.is_file():
        raise InputError(
            f"{list_file}: no such list; put {spec.set_name}'s lists there or name their folder with --splits"
        )
    return LongTailDataset(root, list_file, spec.num_classes, transform, args.seed or 0)


def command_line(script: str, args: argparse.Namespace, **flags) -> str:
    """A command to type next on the same data as these arguments."""
    names = ["dataset", "arch", "data_root", "image_size"]
    names += ["splits"] if args.splits else []
    names += ["imbalance"] if args.dataset == "digits" else []
    flags = {name: getattr(args, name) for name in names} | flags
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python.name
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join([str(python), script, *words])


def plain_args(args: argparse.Namespace) -> dict:
    """The arguments as JSON and safe checkpoints can hold them."""
    keep = (str, int, float, bool, list, type(None))
    return {k: v if isinstance(v, keep) else str(v) for k, v in sorted(vars(args).items())}
