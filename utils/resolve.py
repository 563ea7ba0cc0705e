"""What a command line means: the data set's defaults, the device, the seed, the lists, what to type next."""

import argparse
import dataclasses
import secrets
import shlex
import sys
from pathlib import Path

import torch

from imagenet_inat.datasets import CUSTOM, REGISTRY, DatasetSpec, LongTailDataset, how_to_get, list_files, locate, row
from imagenet_inat.split_lists import count_classes, read_split
from utils import distributed
from utils.errors import InputError, first_line

# Arguments that say where and how a run is done, not what it computes: free to differ when it goes on.
# The seed and the pre-trained weights are compared with the checkpoint's own, not by their argument.
# fmt: off
FREE = frozenset((
    "data_root", "splits", "train_txt", "val_txt", "test_txt", "on_bad_image", "targets", "pretrained", "workers",
    "run_dir", "save_folder", "name", "resume", "override", "start_epoch", "seed", "evaluate", "print_freq",
    "save_freq", "save_steps", "monitor_freq", "device", "gpu", "multiprocessing_distributed", "world_size", "rank",
    "dist_url", "dist_backend", "eval_batch_size",
))
# fmt: on


def resolve(args: argparse.Namespace) -> DatasetSpec:
    """Fill in what depends on the data set, and check what can be checked without reading images.

    Raises:
        InputError: processes that cannot be numbered, a batch that does not divide over
            them, a device that is not there.
    """
    spec = row(args.dataset)
    args.arch = args.arch or spec.arch
    args.image_size = args.image_size or spec.image_size
    args.imbalance = resolve_imbalance(spec, args.imbalance)
    if not distributed.under_torchrun():  # which numbers the machines itself
        _check_machines(args)
    world = distributed.world_size_from(args)
    if args.batch_size % world:
        raise InputError(f"--batch-size {args.batch_size}: does not divide over {world} processes")
    check_device(f"cuda:{args.gpu}" if args.gpu is not None else args.device, world)
    args.num_classes = spec.num_classes or _count_classes(args)
    return spec_of(args)


def _check_machines(args: argparse.Namespace) -> None:
    nodes = max(args.world_size, 1)
    if not args.multiprocessing_distributed and (args.world_size > 1 or args.rank > 0):
        raise InputError("--world-size and --rank number machines: they need --multiprocessing-distributed")
    if args.rank >= nodes:
        raise InputError(f"--rank {args.rank}: expected 0 to {nodes - 1}, for --world-size {nodes}")


def spec_of(args: argparse.Namespace) -> DatasetSpec:
    """The data set's row, with the class count of these lists if it has none of its own."""
    return dataclasses.replace(row(args.dataset), num_classes=args.num_classes)


def data_name(args: argparse.Namespace) -> str:
    """The data set in the names of run folders: two folders of own images do not share one."""
    if args.dataset != CUSTOM.name:
        return args.dataset
    return f"{args.dataset}-{Path(args.data_root).resolve().name}"


def resolve_imbalance(spec: DatasetSpec, given: float | None) -> float | None:
    """The imbalance of the lists, of a set that is made.

    Raises:
        InputError: out of range, or given for a set whose lists are fixed.
    """
    if spec.imbalance is None and given is not None:
        made = ", ".join(name for name, spec in REGISTRY.items() if spec.imbalance)
        raise InputError(f"--imbalance {given:g}: the lists of {spec.name} are fixed; it is for {made}")
    imbalance = given or spec.imbalance
    if imbalance and not 1 <= imbalance <= spec.largest:
        raise InputError(f"--imbalance {imbalance:g}: expected 1 to {spec.largest}")
    return imbalance


def _count_classes(args: argparse.Namespace) -> int:
    train = find_lists(args)[1]["train"]
    _need_list(args, train)
    return count_classes(train, read_split(train, None)[1])


def check_device(device: str, world: int) -> None:
    """Refuse a --device that this machine does not have, or that `world` processes cannot share.

    Nothing is put on a GPU: each process that did so, before it knows its own, would hold memory of the first.

    Raises:
        InputError: says which.
    """
    if device == "auto":
        return
    try:
        parsed = torch.device(device)
        if parsed.type == "meta":
            raise RuntimeError("computes nothing")
        if parsed.type == "cuda":
            _check_cuda(parsed.index)
        else:
            torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}: {first_line(error)}") from None
    if parsed.index is not None and world > 1:
        raise InputError(f"device {device}: {world} processes cannot share it; leave --device and --gpu out")


def _check_cuda(index: int | None) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no GPU that it can use here")
    if index is not None and index >= torch.cuda.device_count():
        raise RuntimeError(f"there are {torch.cuda.device_count()}, counted from 0")


def pick_device(name: str) -> torch.device:
    """The device of --device, for a program of one process.

    Raises:
        InputError: it is not there.
    """
    check_device(name, 1)
    return distributed.device_named(name)


def resolve_seed(args: argparse.Namespace, state: dict) -> None:
    """Take the seed of the checkpoint that a run goes on from, or draw one, the same on all ranks.

    Raises:
        InputError: --seed is given and is not the checkpoint's.
    """
    seed = state.get("seed", args.seed)
    if args.seed not in (None, seed):
        raise InputError(f"--seed {args.seed}: the checkpoint was made with seed {seed}; leave --seed out to go on")
    args.seed = distributed.same_on_all_ranks(secrets.randbelow(2**31)) if seed is None else seed


def find_lists(args: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """The data root and the lists of train, val and test; digits are written at first use."""
    spec = row(args.dataset)
    root, folder = locate(spec, args.data_root, args.splits, args.imbalance)
    return root, list_files(spec, folder, {"train": args.train_txt, "val": args.val_txt, "test": args.test_txt})


def open_split(args: argparse.Namespace, split: str, transform) -> LongTailDataset:
    """The data set of a split, train, val or test.

    Raises:
        InputError: root or list is missing (what belongs where), or see LongTailDataset.
    """
    spec = spec_of(args)
    root, lists = find_lists(args)
    if spec.prepare:  # images and lists are made together
        _need_list(args, lists[split])
    if not root.is_dir():
        raise InputError(f"--data-root {root}: no such folder, expected the root of {spec.source}")
    _need_list(args, lists[split])
    skip_bad = split == "train" and args.on_bad_image == "skip"
    return LongTailDataset(root, lists[split], spec.num_classes, transform, args.seed or 0, spec.flat_folder, skip_bad)


def _need_list(args: argparse.Namespace, file: Path) -> None:
    if not file.is_file():
        get = how_to_get(row(args.dataset), file, args.data_root, args.imbalance)
        raise InputError(f"{file}: no such list; {get}")


def command_line(script: str, args: argparse.Namespace, **flags) -> str:
    """A command to type next on the same data as these arguments."""
    names = ["dataset", "arch", "data_root", "image_size"]
    names += [name for name in ("splits", "train_txt", "val_txt", "test_txt", "imbalance") if getattr(args, name)]
    flags = {name: getattr(args, name) for name in names} | flags
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python.name
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join([str(python), script, *words])


def plain_args(args: argparse.Namespace) -> dict:
    """The arguments as JSON and safe checkpoints can hold them."""
    keep = (str, int, float, bool, list, type(None))
    return {k: v if isinstance(v, keep) else str(v) for k, v in sorted(vars(args).items())}
