"""Train a classifier, evaluate it on the validation and test splits, and write the results of stage 2."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from utils import distributed
from utils.distributed import collectives, log
from utils.files import format_json, write_text
from utils.measure.confusion import Confusion
from utils.measure.metrics import Calibration, ClassAccuracy, Means, in_top_k, rank_of_label
from utils.measure.progress import Progress, format_means
from utils.measure.results import CHOICES, RULE, show_accuracies, update_results
from utils.run import checkpoint
from utils.run.checkpointer import Checkpointer
from utils.run.compute import ComputeConfig
from utils.run.logger import RunLog, open_log
from utils.run.loop import Phase, epochs, get_lr
from utils.run.session import RunPlan
from utils.run.state import RunState

BEST = "model_best.pth.tar"


def is_evaluated(state: RunState) -> bool:
    """Whether the run was evaluated after its last completed epoch; checkpoints of the authors' code do not record it.

    The authors' code is the code released by the TSC authors.
    """
    return (state.results or {}).get("last", {}).get("epoch") == state.epoch


def train_classifier(
    plan: RunPlan,
    eval_freq: int,
    checkpointer: Checkpointer,
    loader,
    splits: dict,
    compute: ComputeConfig,
    optimizer: torch.optim.Optimizer,
    step: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]],
    training: bool = True,
    after_epoch: Callable[[], None] = lambda: None,
) -> dict:
    """Train `checkpointer.model` from its state on, evaluate it every `eval_freq` epochs, and return the results.

    Args:
        loader: the training batches.
        splits: the loaders of val, and of test if it is a different list.
        step: step(model, images, labels) trains on a batch and returns logits (N, C) and the loss.
        training: whether the model is in training mode during the steps (batch norm uses batch statistics).
        after_epoch: called between training and evaluation.
    """
    state, model, counts = checkpointer.state, checkpointer.model, loader.dataset.class_counts
    state.results = results = state.results or {}
    if state.source:
        state.load_optimizer(optimizer)
    ddp = collectives.wrap_ddp(model, compute.device)
    run_log, progress = open_log(checkpointer.run_dir, state, loader, ("train", "val", "test"))
    for epoch in epochs([Phase(None, 0, plan.epochs)], state, len(loader)):
        means = Means(epoch.title, compute.device, state.means if epoch.first_step else None)
        loader.start_at(epoch.number, epoch.first_step)
        checkpointer.begin_epoch(epoch, optimizer, means)
        ddp.train(training)
        for images, labels in progress.iterate(loader, epoch.title, epoch.first_step):
            plan.schedule.set_lr(optimizer, epoch, state.step)
            state.seed_layers()
            add_step(means, labels, *step(ddp, images, labels))
            progress.step(means, len(labels))
            checkpointer.after_step()
        after_epoch()
        collectives.broadcast_buffers(model)
        due = (done := epoch.number + 1) % eval_freq == 0 or done == plan.epochs
        checkpointer.save_before_first_measurement(due)
        measured = measure(splits, model, compute, counts, checkpointer.stop_if_asked, f"epoch {done}") if due else {}
        also = (BEST,) if update_results(results, done, measured) else ()
        log_epoch(run_log, means, done, get_lr(optimizer), measured, progress)
        state.best_acc1 = results["best_on_test"]["acc1"] if results else 0.0
        checkpointer.end_epoch(also)  # model_best is a full copy of last.pth.tar, as in the authors' code
        loader.report_bad_images(checkpointer.run_dir)
    progress.close()
    return results


def add_step(means: Means, labels: Tensor, logits: Tensor, loss: Tensor) -> None:
    rank = rank_of_label(logits.detach(), labels)
    means.add(len(labels), loss=loss, top1=in_top_k(rank, 1), top5=in_top_k(rank, 5))


def measure(
    splits: dict, model: nn.Module, compute: ComputeConfig, class_counts: np.ndarray, after_batch: Callable, where: str
) -> dict[str, dict]:
    """Return the values of `validate` for val and for test, which may be the same split."""
    measured = {
        split: validate(loader, model, compute, class_counts, after_batch, f"{where}, {split}")
        for split, loader in splits.items()
    }
    return measured | {"test": measured.get("test", measured["val"])}


@torch.no_grad()
def validate(
    loader,
    model,
    compute: ComputeConfig,
    class_counts: np.ndarray,
    after_batch: Callable = lambda: None,
    where: str = "this split",
) -> dict:
    """Return the loss and the accuracies of a model on a split.

    The entries are loss (the mean), those of `ClassAccuracy.summary`, ece (the calibration error in percent) and
    confusion (see `Confusion.summary`).

    Args:
        after_batch: called after each batch that exists on every rank.
        where: name of the split in messages.

    Raises:
        InputError: a logit is not finite; raised on all ranks.
    """
    model.eval()
    accuracy, confusion = ClassAccuracy(len(class_counts), compute.device, where), Confusion(len(class_counts))
    loss, calibration = torch.zeros((), device=compute.device), Calibration(compute.device)
    for number, (images, labels) in enumerate(loader):
        with compute.autocast():
            logits = model(images)
        assert logits.dtype == torch.float32, "half-precision logits tie, and a tie counts as an error"
        accuracy.add(logits, labels)
        confusion.add(logits, labels)
        calibration.add(logits, labels)
        loss += cross_entropy(logits, labels, reduction="sum")
        if number < loader.num_common_batches:
            after_batch()
    mean = float(collectives.sum_over_ranks(loss)) / len(loader.dataset)
    accuracies = accuracy.summary(class_counts)  # raises if a logit is not finite
    return {"loss": mean, **accuracies, "ece": calibration.error(), "confusion": confusion.summary()}


def log_epoch(run_log: RunLog, means: Means, epoch: int, lr: float, measured: dict, progress: Progress) -> None:
    """Log a finished epoch to TensorBoard, log.jsonl and the console. measured: from `measure`; may be empty."""
    train_values = means.read(over_ranks=True)
    rows = {split: {"loss": v["loss"], "top1": v["acc1"], "top5": v["acc5"]} for split, v in measured.items()}
    rows = {"train": train_values, **rows}
    for split, values in rows.items():
        run_log.scalars(split, values, epoch)
    run_log.record(epoch=epoch, lr=lr, **rows, **progress.timing())
    accuracies = "".join(f"{split} {measured[split]['acc1']:.2f}  " for split in ("val", "test") if measured)
    log(f"{means.title}  {format_means(train_values)}  {accuracies}lr {lr:.4g}  ETA {progress.eta()}")


def read_stage2_checkpoint(path: Path) -> RunState:
    """Read the checkpoint of a second stage, to evaluate it."""
    return RunState.from_dict(checkpoint.read_checkpoint(path, needs=("state_dict", "epoch")), path)


def print_accuracies(
    splits: dict, model: nn.Module, compute: ComputeConfig, counts: Sequence[int], source: Path, epoch: int
) -> None:
    """Print the accuracies of a checkpoint on each split. counts: (C,) training images per class."""
    for split, loader in splits.items():
        accuracies = validate(loader, model, compute, np.asarray(counts), where=f"checkpoint {source}, {split}")
        show_accuracies(f"{split}, epoch {epoch}", accuracies)


def write_results(
    run_dir: Path,
    args: dict,
    results: dict,
    class_counts: Sequence[int],
    chosen: dict,
    class_names: list[str] | None = None,
) -> None:
    """Write results.json.

    Args:
        args: the run's arguments, as in args.json.
        chosen: {"on": the split used for selection, "from": the candidate values by hyperparameter}.
    """
    record = {name: args[name] for name in ("dataset", "arch", "seed", "pretrained")}
    record |= {"chosen": {"rule": RULE, **chosen}, **results, "train_counts": [*class_counts]}
    record |= {"class_names": class_names} if class_names else {}
    if distributed.is_main():
        write_text(run_dir / "results.json", format_json(record, indent=2) + "\n")


def finish(run_dir: Path, state: RunState, results: dict, selection_split: str) -> None:
    """Write results.json, and print the accuracies and the names of the files.

    Args:
        selection_split: see `DataConfig.selection_split`.
    """
    args = state.args
    evaluated_epochs = sorted({*range(args["eval_freq"], args["epochs"] + 1, args["eval_freq"]), args["epochs"]})
    chosen = {"on": selection_split, "from": {"epoch": evaluated_epochs}}
    write_results(run_dir, args, results, state.train_counts, chosen, state.class_names)
    for name in CHOICES:
        suffix = " on test" if name == "selected" and selection_split == "test" else ""
        show_accuracies(f"test, {name}{suffix} (epoch {results[name]['epoch']})", results[name])
    files = f"args.json, log.jsonl, epochs.csv, last.pth.tar, {BEST}, results.json"
    log(f"wrote {run_dir}: {files}, train/ val/ test/ (TensorBoard)")
