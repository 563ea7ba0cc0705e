"""A checkpoint of an older commit still resumes, and its run ends with the same results.

Commit b954aa5 wrote tests/checkpoints/b954aa5 on PyTorch 2.14.1. It contains a TSC run and a linear probe of its end,
each with a checkpoint from the middle of the last epoch and a final checkpoint. To write it again, run this in an empty
folder, with a checkout of that commit at OLD and of this commit at NEW:

    OMP_NUM_THREADS=1 PYTHONPATH=OLD python NEW/tests/checkpoints/make.py
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from moco import encoders
from tests import ROOT
from tests.checkpoints import make

OLD_CHECKPOINTS = ROOT / "tests" / "checkpoints" / "b954aa5"
# Entries that newer checkpoints have in addition.
VIEWS = {"args.views": str, "args.crop_scale": type(None), "args.statistics": type(None)}
VIEWS |= {"args.holdout": type(None), "args.largest": type(None), "args.split_seed": int}
LOADING = {"args.dist_timeout": int, "args.cache": str, "args.batch_views": bool, "args.images_as_shown": bool}
SCHEDULE = {"args.lr_end": float, "args.warmup_epochs": int, "args.warmup_from": float}
SCHEDULE |= {"args.dry_run": bool, "args.optimizer": str, "args.clip_grad": type(None)}
ENCODER = {"args.accum_steps": int, "args.grad_checkpointing": bool, "args.freeze": list, "args.lr_backbone": float}
COUNTS = {f"train_counts.{label}": int for label in range(10)}
COUNTS |= {f"statistics.{name}.{channel}": float for name in ("mean", "std") for channel in range(3)}
CONFUSION = {f"results.selected.confusion.counts.{c}.{d}": int for c in range(10) for d in range(10)}
ADDED = {
    "tsc": {
        "queue_grid": int,
        **COUNTS,
        **{f"args.{name}": bool for name in ("deterministic", "only_t", "unbiased", "sync_bn", "keep_last")},
        "args.no_momentum_keys": bool,
        **dict.fromkeys(("args.queue_init", "args.positives", "args.unused_positives", "args.joint_classifier"), str),
        **dict.fromkeys(("args.joint", "args.ce_weight", "args.contrast_weight"), float),
        **dict.fromkeys(("args.alpha", "args.beta", "args.gamma"), float),
        **{"args.contrast": str, "args.classifier_view": type(None)},
        **{"args.kcl_epochs": type(None), "args.sampling": str},
        **{"args.knn_k": type(None), "args.knn_vote": str, "args.online_probe": str, "args.init_from": type(None)},
        **SCHEDULE,
        **ENCODER,
        **VIEWS,
        **LOADING,
    },
    "probe": {
        **{f"args.{name}": bool for name in ("deterministic", "cos", "finetune", "compare_heads")},
        **{f"args.{name}": str for name in ("head", "sampling", "logit_adjustment")},
        **{"args.feature_views": int},
        **COUNTS,
        **CONFUSION,
        **{
            f"results.{choice}.{name}": float
            for choice in ("selected", "last", "best_on_test")
            for name in ("balanced", "worst", "harmonic", "spread", "ece", "val_balanced")
        },
        **SCHEDULE,
        **VIEWS,
        **LOADING,
    },
}
# PyTorch 2.4, two threads and other CPUs round differently. Measured: 2e-5 in a full run, 1.2e-7 after resuming.
RUN_TOLERANCE, RESUME_TOLERANCE = 1e-4, 1e-6
LOGGED = ("epoch", "phase", "lr", "loss", "loss_class", "loss_target", "target_cosine", "target_changed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write the inputs of the runs, and register their network while the tests run."""
    made = tmp_path_factory.mktemp("old")
    make.write_inputs(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.PROJECT_NETWORKS, make.ARCH, make.TinyNet)
        yield made


@pytest.fixture(scope="module", params=["tsc", "probe"])
def stage(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(stage, folder) -> Path:
    """Return the folder of an uninterrupted run. Its previous.pth.tar is from the middle of the last epoch."""
    return run_stage(stage, folder, folder / f"{stage}_whole", "--device-aug", "off")


@pytest.fixture(scope="module")
def resumed(stage, folder) -> Path:
    """Return the folder of a run that resumes from the old checkpoint, which decides how images are augmented."""
    run = folder / f"{stage}_resumed"
    run.mkdir()
    shutil.copy(OLD_CHECKPOINTS / f"{stage}_within.pth.tar", run / "last.pth.tar")
    return run_stage(stage, folder, run)


def run_stage(stage: str, folder: Path, run: Path, *flags: str) -> Path:
    if stage == "tsc":
        make.pretrain(folder, run, *flags)
    else:
        make.probe(folder, run, OLD_CHECKPOINTS / "tsc_end.pth.tar", *flags)
    return run


def flatten_checkpoint(path: Path) -> dict:
    """Return the entries of a checkpoint by path, as `state_dict.module.queue`, without the optimiser's options."""
    found, todo = {}, list(torch.load(path, weights_only=True).items())
    for path_in_state, value in todo:  # the loop appends to `todo`
        if isinstance(value, dict | list) and value:
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [(f"{path_in_state}.{name}", entry) for name, entry in inner if name != "param_groups"]
        else:
            found[path_in_state] = value
    return found


def type_of(value):
    return (value.dtype, tuple(value.shape)) if torch.is_tensor(value) else type(value)


def computed_entries(path: Path, stage: str) -> dict:
    """Return the entries of a checkpoint without the arguments and without the entries in ADDED."""
    return {
        name: value
        for name, value in flatten_checkpoint(path).items()
        if not name.startswith("args.") and name not in ADDED[stage]
    }


def differing_names(first: dict, second: dict, tolerance: float) -> list[str]:
    """Return the names of differing entries. tolerance: absolute for tensors, relative for floats."""

    def is_close(a, b) -> bool:
        if type_of(a) != type_of(b):
            return False
        if torch.is_tensor(a):
            return torch.allclose(a, b, rtol=0, atol=tolerance)
        return math.isclose(a, b, rel_tol=tolerance) if isinstance(a, float) else a == b

    return [
        name
        for name in first.keys() | second.keys()
        if not (name in first and name in second and is_close(first[name], second[name]))
    ]


def last_log_values(run: Path) -> dict:
    """Return the results of the last epoch from the log, without speeds. A probe logs them under `train`."""
    record = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    record |= record.get("train", {})
    return {name: record[name] for name in LOGGED if name in record}


def test_new_checkpoint_has_entries_of_old_checkpoint(stage, uninterrupted):
    for mine, old in (("previous", "within"), ("last", "end")):
        now, then = (
            flatten_checkpoint(uninterrupted / f"{mine}.pth.tar"),
            flatten_checkpoint(OLD_CHECKPOINTS / f"{stage}_{old}.pth.tar"),
        )
        assert {name: type_of(now[name]) for name in now} == {name: type_of(then[name]) for name in then} | ADDED[stage]


def test_resumed_old_run_matches_its_original_end(stage, uninterrupted, resumed):
    """Weights, optimiser, assignment and results match, and the epoch's means include the steps before the stop."""
    end, then = (
        computed_entries(resumed / "last.pth.tar", stage),
        computed_entries(OLD_CHECKPOINTS / f"{stage}_end.pth.tar", stage),
    )
    assert not differing_names(end, then, RESUME_TOLERANCE)
    assert not differing_names(last_log_values(resumed), last_log_values(uninterrupted), RUN_TOLERANCE)


def test_resumed_old_run_is_bit_identical_to_new_run(stage, uninterrupted, resumed):
    now, then = (
        computed_entries(uninterrupted / "previous.pth.tar", stage),
        computed_entries(OLD_CHECKPOINTS / f"{stage}_within.pth.tar", stage),
    )
    now, then = (
        {name: tensor for name, tensor in found.items() if name.startswith("state_dict.")} for found in (now, then)
    )
    assert not differing_names(now, then, RUN_TOLERANCE)
    if differing_names(now, then, 0):
        pytest.skip(
            "rounding differs from the machine that wrote the files (PyTorch version, CPU or number of threads)"
        )
    for end in (
        computed_entries(uninterrupted / "last.pth.tar", stage),
        computed_entries(OLD_CHECKPOINTS / f"{stage}_end.pth.tar", stage),
    ):
        assert not differing_names(computed_entries(resumed / "last.pth.tar", stage), end, 0)
    assert last_log_values(resumed) == last_log_values(uninterrupted)
