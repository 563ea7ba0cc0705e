"""Measuring a classifier on validation and test while it trains, and choosing the epoch: what stage 2 reports."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from imagenet_inat.datasets import DatasetSpec
from imagenet_inat.loaders import DeviceBatches, eval_loader
from imagenet_inat.samplers import ClassAwareBatches
from moco.loader import eval_transform
from utils import arguments, distributed, resolve
from utils.errors import InputError
from utils.files import json_text, write_text
from utils.logger import Progress, RunLog, describe, say
from utils.metrics import ClassAccuracy, Means
from utils.speed import Speed
from utils.tables import CHOICES, show_accuracies

BEST = "model_best.pth.tar"
EVAL_BATCH = 256  # images a process measures at least at a time


def add_evaluation_arguments(group: arguments.Group) -> None:
    group.add_argument(
        "--eval-freq",
        type=arguments.positive_int,
        default=1,
        metavar="E",
        help="validate and test after every E-th epoch and after the last; 'selected' and 'best_on_test' choose "
        "among those. 1: the release; more where measuring takes as long as training",
    )
    group.add_argument(
        "--eval-batch-size",
        type=arguments.positive_int,
        metavar="N",
        help="images a process measures at a time; it changes no result (default: 256, or a process's share of "
        "--batch-size if that is more)",
    )


def check_splits(args, spec: DatasetSpec) -> None:
    """Open the three lists once, before anything is made, and note them in the arguments.

    Raises:
        InputError: one cannot be used, or has too few images for a batch.
    """
    for split in ("train", "val", "test"):
        data = resolve.open_split(args, split, None)
        setattr(args, f"{split}_list", data.digest)  # a run goes on with the lists it began with
        if split == "train":
            ClassAwareBatches(data.labels, spec.repeat, args.batch_size, seed=0)


def check_epochs_left(args, state: dict) -> None:
    """Refuse a run that has no epoch left to train, and was not measured after its last.

    Raises:
        InputError: it is such a one.
    """
    measured = state.get("results", {}).get("last", {}).get("epoch")  # a checkpoint of the release has none
    if state["epoch"] >= args.epochs and measured != state["epoch"]:
        raise InputError(f"--epochs {args.epochs}: {state['epoch']} are done, none is left to train")


def open_eval_loaders(args, spec: DatasetSpec) -> dict[str, DeviceBatches]:
    """Validation and test; one loader where one list serves as both."""
    lists = resolve.find_lists(args)[1]
    names = ("val",) if lists["val"] == lists["test"] else ("val", "test")
    splits = {name: resolve.open_split(args, name, eval_transform(spec, args.image_size)) for name in names}
    for data in filter(lambda data: data.layout, splits.values()):
        say(f"{data.list_file.name}: layout {data.layout}")
    size = args.eval_batch_size or max(EVAL_BATCH, args.batch_size // distributed.world_size())
    return {name: eval_loader(data, size, args.workers, spec, args.device) for name, data in splits.items()}


def measure_if_due(
    args, epochs_done: int, loaders: dict, model, speed: Speed, class_counts: np.ndarray, between: Callable
) -> dict[str, dict]:
    """What `validate` says of val and of test, which may be one split; nothing between --eval-freq's epochs."""
    if epochs_done % args.eval_freq and epochs_done != args.epochs:
        return {}
    measured = {
        split: validate(loader, model, speed, class_counts, between, f"epoch {epochs_done}, {split}")
        for split, loader in loaders.items()
    }
    return measured | {"test": measured.get("test", measured["val"])}


@torch.no_grad()
def validate(
    loader: DeviceBatches,
    model,
    speed: Speed,
    class_counts: np.ndarray,
    between: Callable = lambda: None,
    where: str = "this split",
) -> dict:
    """Loss and accuracies of a split in percent: acc1, acc5, many, medium, few, per_class.

    Args:
        between: called after each batch that every rank has. where: what the split is called in messages.

    Raises:
        InputError: on all ranks, if a logit is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    accuracy = ClassAccuracy(len(class_counts), device, where)
    loss = torch.zeros((), device=device)
    for number, (images, labels) in enumerate(loader):
        with speed.autocast():
            logits = model(images)
        assert logits.dtype == torch.float32, "half-precision logits tie, and a tie is no hit"
        accuracy.add(logits, labels)
        loss += cross_entropy(logits, labels, reduction="sum")
        if number < loader.on_every_rank:
            between()
    return {
        "loss": float(distributed.sum_over_ranks(loss)) / len(loader.dataset),
        **accuracy.summary(class_counts),
    }


def choose(results: dict, epoch: int, measured: dict[str, dict]) -> bool:
    """Note an epoch's test accuracies, if it was measured, under each name it earns; True when validation chose it.

    selected: best top-1 on validation. last. best_on_test: the release's own number,
    which picks the epoch by the test split and so flatters it.
    """
    if not measured:
        return False
    entry = {"epoch": epoch, **measured["test"], "val_acc1": measured["val"]["acc1"]}
    results["last"] = entry
    if "best_on_test" not in results or entry["acc1"] > results["best_on_test"]["acc1"]:
        results["best_on_test"] = entry
    if "selected" in results and entry["val_acc1"] <= results["selected"]["val_acc1"]:
        return False
    results["selected"] = entry
    return True


def best_on_test(results: dict) -> float:
    """The release's entry of its checkpoints; 0 before the first measuring."""
    return results["best_on_test"]["acc1"] if results else 0.0


def log_epoch(log: RunLog, epoch_means: Means, epoch: int, rate: float, measured: dict, progress: Progress) -> None:
    means = epoch_means.read(over_ranks=True)
    rows = {"train": means}
    for split, values in measured.items():
        rows[split] = {"loss": values["loss"], "top1": values["acc1"], "top5": values["acc5"]}
    for split, values in rows.items():
        log.scalars(split, values, epoch)
    log.record(epoch=epoch, lr=rate, **rows, **progress.rates())
    accuracies = "".join(f"{split} {measured[split]['acc1']:.2f}  " for split in ("val", "test") if measured)
    say(f"{epoch_means.where}  {describe(means)}  {accuracies}lr {rate:.4g}  ETA {progress.eta()}")


def finish(args, run_dir: Path, results: dict, class_counts: np.ndarray) -> None:
    """Write results.json, show the table and say what there is."""
    record = {
        "dataset": args.dataset,
        "arch": args.arch,
        "seed": args.seed,
        "pretrained": args.pretrained,
    }
    record |= {name: results[name] for name in CHOICES}
    record["train_counts"] = class_counts.tolist()
    if distributed.is_main():
        write_text(run_dir / "results.json", json_text(record, indent=2) + "\n")
    for name in CHOICES:
        show_accuracies(f"test, {name} (epoch {results[name]['epoch']})", results[name])
    files = f"args.json, log.jsonl, epochs.csv, last.pth.tar, {BEST}, results.json"
    say(f"wrote {run_dir}: {files}, train/ val/ test/ (TensorBoard)")
