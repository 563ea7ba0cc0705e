"""Selection of one candidate per head on the validation split, by the same rule for all heads."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moco.heads import HEADS
from moco.heads.candidates import FitInputs
from moco.heads.classifiers import exclude_absent_classes
from moco.heads.head_flags import build_balancing
from utils.distributed import log
from utils.errors import InputError
from utils.measure.feature_cache import Features
from utils.measure.results import format_settings, show_accuracies
from utils.run import checkpoint
from utils.run.compute import ComputeConfig
from utils.run.evaluation import BEST, validate, write_results
from utils.run.logger import RunLog

LARGE_VAL_SPLIT = 5000  # with more validation images, the search stops at the first worse penalty
BATCH_SIZE = 8192  # images per batch
SLOW_SECONDS = 20  # seconds after which progress is printed
POST_FIT_HYPERPARAMETERS = ("t", "tau")  # applied after the fit, so that one fit serves all their values
UNCALIBRATED = ("ncm", "target")  # heads whose logits have no fitted scale


class FeatureLoader:
    """Loader over stored features (n, d) and labels (n,), as `validate` expects."""

    num_common_batches = 0  # a single process: `validate` calls no `after_batch`

    def __init__(self, split_features: Features, device: torch.device):
        self.split_features, self.device, self.dataset = split_features, device, split_features.labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for z, y in zip(*(tensor.split(BATCH_SIZE) for tensor in self.split_features), strict=True):
            yield z.to(self.device), y.to(self.device)


class HeadData(NamedTuple):
    """The data on which heads are fitted, selected and tested.

    Attributes:
        splits: "val" and "test".
        selection_split: See `DataConfig.selection_split`.
    """

    inputs: FitInputs
    splits: dict[str, FeatureLoader]
    compute: ComputeConfig
    selection_split: str

    @property
    def counts(self) -> np.ndarray:
        """(C,) training images per class."""
        return self.inputs.counts.numpy()

    def measure(self, split: str, classifier: nn.Module, title: str) -> dict:
        """Evaluate a classifier on a split; returns the result of `validate`. title: the head's, for messages."""
        return validate(self.splits[split], classifier, self.compute, self.counts, where=f"{title}, {split}")


class SelectedHead(NamedTuple):
    """The selected candidate of a head.

    Attributes:
        entry: Entry of results.json.
        tried: Maps each hyperparameter to the values tried.
        seconds: Duration of fitting and selection.
    """

    classifier: nn.Module
    entry: dict
    tried: dict[str, list[float]]
    seconds: float


def select_head(name: str, sampling: str, adjustment: str, head_data: HeadData) -> SelectedHead:
    """Fit a head, select the candidate with the best balanced accuracy on val, and test it.

    Ties are broken by validation loss, because a strongly penalised fit can have the same accuracy as a weaker one, but
    less confident predictions. For UNCALIBRATED heads, whose loss means
    nothing, the first of the tied candidates wins. Fits that did not converge are
    reported and skipped. The search ends after two penalties in a row without improvement (one for a large validation
    split).

    Raises:
        InputError: No fit converged, or the logits are not finite.
    """
    started, title = time.monotonic(), head_title(name, sampling, adjustment)
    best, tried, failed, worse = None, {}, [], 0
    patience = 1 if len(head_data.splits["val"].dataset) > LARGE_VAL_SPLIT else 2
    for candidates in HEADS[name].candidates(head_data.inputs, build_balancing(sampling, adjustment)):
        previous_best = best
        for candidate in candidates:
            for value_name, value in candidate.hyperparameters.items():
                tried.setdefault(value_name, {})[value] = None
            if not candidate.converged:
                fitted = {k: v for k, v in candidate.hyperparameters.items() if k not in POST_FIT_HYPERPARAMETERS}
                settings = ", ".join(f"{k} {v:g}" for k, v in fitted.items()) or "defaults"
                failed += [settings] if settings not in failed else []
                continue
            classifier = candidate.classifier.to(head_data.compute.device)
            exclude_absent_classes(classifier, head_data.inputs.counts)
            on_val = head_data.measure("val", classifier, title)
            key = on_val["balanced"], 0.0 if name in UNCALIBRATED else -on_val["loss"]
            if best is None or key > best.key:
                best = BestCandidate(key, on_val, classifier, candidate.hyperparameters)
        hyperparameters = format_settings({"values": candidates[-1].hyperparameters})
        log_if_slow(
            f"{title}: fitted up to {hyperparameters}, best accuracy on val {best.key[0] if best else 0:.2f}", started
        )
        worse = worse + 1 if best is previous_best else 0
        if best and worse == patience:
            break
    for settings in failed:
        log(f"note: {title}: the fit with {settings} did not converge and was skipped")
    if best is None:
        raise InputError(f"{title}: no fit converged; the features may be damaged. Choose another --head")
    entry = {"values": best.hyperparameters, **head_data.measure("test", best.classifier, title)}
    entry |= {"val_acc1": best.on_val["acc1"], "val_balanced": best.on_val["balanced"]}
    if name in UNCALIBRATED:
        entry |= {"ece": None, "loss": None}
    return SelectedHead(best.classifier, entry, {k: list(v) for k, v in tried.items()}, time.monotonic() - started)


class BestCandidate(NamedTuple):
    """The best candidate so far. key: values to compare by. on_val: its result of `validate` on val."""

    key: tuple[float, float]
    on_val: dict
    classifier: nn.Module
    hyperparameters: dict[str, float]


def log_if_slow(line: str, started: float) -> None:
    """Log the progress of a fit that takes long. started: `time.monotonic()` at the start."""
    if (seconds := time.monotonic() - started) > SLOW_SECONDS:
        log(f"{line} ({seconds / 60:.1f} min)")


def head_title(name: str, sampling: str, adjustment: str) -> str:
    """Return the name of a head in tables: `logistic, class-balanced` or `logistic, post`."""
    words = [sampling] if sampling == "class-balanced" else [] if adjustment == "off" else [adjustment]
    return ", ".join([name, *words])


def fit_and_save(run_dir: Path, args: dict, network: nn.Module, head_data: HeadData) -> None:
    """Fit the head of a run, and write args.json, the network with the selected classifier, and results.json.

    Args:
        args: Arguments of the run, as in args.json. network: The encoder. Its `fc` is replaced.

    Raises:
        InputError: As `select_head`.
    """
    selected = select_head(args["head"], args["sampling"], args["logit_adjustment"], head_data)
    RunLog(run_dir, args, (), 0)  # after the fit, because a failed fit must not replace the arguments of old results
    network.fc = selected.classifier
    checkpoint.save_network(
        run_dir / BEST, network, epoch=0, arch=args["arch"], args=args, train_counts=head_data.counts.tolist()
    )
    selected_by = {"on": head_data.selection_split, "from": selected.tried}
    write_results(run_dir, args, {"selected": selected.entry}, head_data.counts, selected_by)
    show_accuracies(f"test, selected ({format_settings(selected.entry)})", selected.entry)
    log(f"wrote {run_dir}: args.json, {BEST}, results.json")
