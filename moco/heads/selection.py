"""Fit a head, and select one of its candidates on the validation split, by the same rule for all heads."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.heads import HEADS
from moco.heads.candidates import PRIOR_STRENGTHS
from moco.heads.classifiers import Fit
from moco.heads.data import HeadData
from utils.distributed import log
from utils.errors import InputError
from utils.measure.feature_cache import Features
from utils.measure.results import format_settings, show_accuracies
from utils.run import checkpoint
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

    def __init__(self, features: Features, device: torch.device):
        self.features, self.device, self.dataset = features, device, features.labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for z, y in zip(*(tensor.split(BATCH_SIZE) for tensor in self.features), strict=True):
            yield z.to(self.device), y.to(self.device)


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


def select_head(name: str, sampling: str, adjustment: str, data: HeadData) -> SelectedHead:
    """Fit a head, select the candidate with the best balanced accuracy on val, and test it.

    Ties are broken by validation loss, because a strongly penalised fit can have the same accuracy as a weaker one, but
    less confident predictions. The loss of UNCALIBRATED heads means nothing; of their tied candidates the first wins.

    Fits that did not converge are reported and skipped. The search ends after two penalties in a row without
    improvement (one for a large validation split). It also ends at the first penalty with no fit that converged, if an
    earlier one converged, because fits with weaker penalties converge more slowly.

    Raises:
        InputError: No fit converged, or the logits are not finite.
    """
    started, title = time.monotonic(), head_title(name, sampling, adjustment)
    best, best_key, tried, failed, worse = None, (0.0, 0.0), {}, {}, 0
    patience = 1 if len(data.val.labels) > LARGE_VAL_SPLIT else 2
    for candidates in HEADS[name].candidates(data, sampling, adjustment):
        worse, any_converged = worse + 1, False
        for fit in subtract_prior(candidates, data.log_prior) if adjustment == "post" else candidates:
            for parameter, value in fit.hyperparameters.items():
                tried.setdefault(parameter, {})[value] = None
            if not fit.converged:
                of_fit = {k: v for k, v in fit.hyperparameters.items() if k not in POST_FIT_HYPERPARAMETERS}
                failed[format_settings({"values": of_fit})] = None
                continue
            any_converged = True
            classifier = fit.build_module(data.counts).to(data.compute.device)
            on_val = measure(data, data.val, classifier, f"{title}, val")
            key = on_val["balanced"], 0.0 if name in UNCALIBRATED else -on_val["loss"]
            if best is None or key > best_key:
                best, best_key, worse = (fit, classifier, on_val), key, 0
        settings = format_settings({"values": fit.hyperparameters})
        log_if_slow(f"{title}: fitted up to {settings}, best accuracy on val {best_key[0]:.2f}", started)
        if best and (worse == patience or not any_converged):
            break
    ended = "" if any_converged or not best else "; the search ended there"
    for settings in failed:
        log(f"note: {title}: the fit with {settings} did not converge and was skipped{ended}")
    if best is None:
        raise InputError(f"{title}: no fit converged; the features may be damaged. Choose another --head")
    fit, classifier, on_val = best
    entry = {"values": fit.hyperparameters, **measure(data, data.test, classifier, f"{title}, test")}
    entry |= {"val_acc1": on_val["acc1"], "val_balanced": on_val["balanced"]}
    if name in UNCALIBRATED:
        entry |= {"ece": None, "loss": None}
    return SelectedHead(classifier, entry, {k: list(v) for k, v in tried.items()}, time.monotonic() - started)


def measure(data: HeadData, split: Features, classifier: nn.Module, where: str) -> dict:
    """Evaluate a classifier on a split. Return the result of `validate`. where: head and split, for messages."""
    return validate(FeatureLoader(split, data.compute.device), classifier, data.compute, data.counts, where=where)


def subtract_prior(candidates: Iterable[Fit], log_prior: Tensor) -> Iterator[Fit]:
    """Yield each fit minus t times the log class prior (C,), for each t of --logit-adjustment post."""
    for fit in candidates:
        for t in PRIOR_STRENGTHS:
            yield fit._replace(bias=fit.bias - t * log_prior, hyperparameters=fit.hyperparameters | {"t": t})


def log_if_slow(line: str, started: float) -> None:
    """Log the progress of a fit that takes long. started: `time.monotonic()` at the start."""
    if (seconds := time.monotonic() - started) > SLOW_SECONDS:
        log(f"{line} ({seconds / 60:.1f} min)")


def head_title(name: str, sampling: str, adjustment: str) -> str:
    """Return the name of a head in tables: `logistic, class-balanced` or `logistic, post`."""
    words = [sampling] if sampling == "class-balanced" else [] if adjustment == "off" else [adjustment]
    return ", ".join([name, *words])


def fit_and_save(run_dir: Path, args: dict, network: nn.Module, data: HeadData) -> None:
    """Fit the head of a run, and write args.json, the network with the selected classifier, and results.json.

    Args:
        args: Arguments of the run, as in args.json.
        network: The encoder. Its `fc` is replaced.

    Raises:
        InputError: As `select_head`.
    """
    selected = select_head(args["head"], args["sampling"], args["logit_adjustment"], data)
    RunLog(run_dir, args, (), 0)  # after the fit, because a failed fit must not replace the arguments of old results
    network.fc = selected.classifier
    entries = {"train_counts": data.counts.tolist(), **data.described}
    checkpoint.save_network(run_dir / BEST, network, epoch=0, arch=args["arch"], args=args, **entries)
    chosen = {"on": data.selection_split, "from": selected.tried}
    names = data.described.get("class_names")
    write_results(run_dir, args, {"selected": selected.entry}, data.counts.tolist(), chosen, names)
    show_accuracies(f"test, selected ({format_settings(selected.entry)})", selected.entry)
    log(f"wrote {run_dir}: args.json, {BEST}, results.json")
