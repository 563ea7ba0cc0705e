"""A checkpoint of an older commit still resumes: it has the entries of today's, and its run ends as it did.

tests/checkpoints/b954aa5 holds what commit b954aa5 wrote, on PyTorch 2.14.1: of a TSC run, and of the linear probe of
its end, a checkpoint from within the last epoch and the one of its end. In an empty folder, with a checkout of that
commit at OLD and of this one at NEW:

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

OLD = ROOT / "tests" / "checkpoints" / "b954aa5"
# What checkpoints have gained since; the old ones do without.
VIEWS = {"args.views": str, "args.crop_scale": type(None), "args.statistics": type(None)}
VIEWS |= {"args.holdout": type(None), "args.largest": type(None)}
LOADING = {"args.dist_timeout": int, "args.cache": str, "args.batch_views": bool}
SCHEDULE = {"args.lr_end": float, "args.warmup_epochs": int, "args.warmup_from": float}
SCHEDULE |= {"args.dry_run": bool, "args.optimizer": str, "args.clip_grad": type(None)}
ENCODER = {"args.accum_steps": int, "args.grad_checkpointing": bool, "args.freeze": list, "args.lr_backbone": float}
ADDED = {
    "tsc": {
        "queue_grid": int,
        **{f"args.{name}": bool for name in ("deterministic", "only_t", "unbiased", "sync_bn", "keep_last")},
        **{"args.contrast": str, "args.kcl_epochs": type(None), "args.sampling": str},
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
        **{
            f"results.{choice}.{name}": float
            for choice in ("selected", "last", "best_on_test")
            for name in ("balanced", "worst", "harmonic", "ece", "val_balanced")
        },
        **SCHEDULE,
        **VIEWS,
        **LOADING,
    },
}
# PyTorch 2.4, two threads and other CPUs round otherwise; measured: 2e-5 in a whole run, 1.2e-7 in its rest.
WHOLE, REST = 1e-4, 1e-6
LOGGED = ("epoch", "phase", "lr", "loss", "loss_class", "loss_target", "target_cosine", "target_changed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The inputs of the runs; their network has a name meanwhile."""
    made = tmp_path_factory.mktemp("old")
    make.write_inputs(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.OWN, make.ARCH, make.TinyNet)
        yield made


@pytest.fixture(scope="module", params=["tsc", "probe"])
def stage(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(stage, folder) -> Path:
    """The folder of the run that nothing disturbs; its previous.pth.tar is from within the last epoch."""
    return go(stage, folder, folder / f"{stage}_whole")


@pytest.fixture(scope="module")
def resumed(stage, folder) -> Path:
    """The folder of a run that goes on from the old checkpoint."""
    run = folder / f"{stage}_resumed"
    run.mkdir()
    shutil.copy(OLD / f"{stage}_within.pth.tar", run / "last.pth.tar")
    return go(stage, folder, run)


def go(stage: str, folder: Path, run: Path) -> Path:
    if stage == "tsc":
        make.pretrain(folder, run)
    else:
        make.probe(folder, run, pretrained=OLD / "tsc_end.pth.tar")
    return run


def leaves(path: Path) -> dict:
    """What a checkpoint holds, by path: `state_dict.module.queue`; without the optimiser's options, PyTorch's own."""
    found, todo = {}, list(torch.load(path, weights_only=True).items())
    for at, value in todo:  # which grows meanwhile
        if isinstance(value, dict | list) and value:
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [(f"{at}.{name}", entry) for name, entry in inner if name != "param_groups"]
        else:
            found[at] = value
    return found


def kind(value):
    return (value.dtype, tuple(value.shape)) if torch.is_tensor(value) else type(value)


def computed(path: Path, stage: str) -> dict:
    """The leaves of a checkpoint but for the arguments, and for what the old ones do not have."""
    return {at: value for at, value in leaves(path).items() if not at.startswith("args.") and at not in ADDED[stage]}


def differing(one: dict, other: dict, tolerance: float) -> list[str]:
    """The names of entries that differ: tensors by more than the tolerance, floats by that share, all else at all."""

    def near(a, b) -> bool:
        if kind(a) != kind(b):
            return False
        if torch.is_tensor(a):
            return torch.allclose(a, b, rtol=0, atol=tolerance)
        return math.isclose(a, b, rel_tol=tolerance) if isinstance(a, float) else a == b

    return [at for at in one.keys() | other.keys() if not (at in one and at in other and near(one[at], other[at]))]


def last_line(run: Path) -> dict:
    """What an epoch computed: the log has it beside the speeds, of the probe in `train`."""
    record = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    record |= record.get("train", {})
    return {name: record[name] for name in LOGGED if name in record}


def test_a_checkpoint_of_today_has_the_old_ones_entries(stage, whole):
    for mine, old in (("previous", "within"), ("last", "end")):
        now, then = leaves(whole / f"{mine}.pth.tar"), leaves(OLD / f"{stage}_{old}.pth.tar")
        assert {at: kind(now[at]) for at in now} == {at: kind(then[at]) for at in then} | ADDED[stage]


def test_an_old_run_that_goes_on_ends_as_it_did(stage, whole, resumed):
    """Weights, optimiser, assignment, results; and the means of its epoch count the steps before."""
    end, then = computed(resumed / "last.pth.tar", stage), computed(OLD / f"{stage}_end.pth.tar", stage)
    assert not differing(end, then, REST)
    assert not differing(last_line(resumed), last_line(whole), WHOLE)


def test_an_old_run_that_goes_on_ends_bit_for_bit_as_one_of_today(stage, whole, resumed):
    now, then = computed(whole / "previous.pth.tar", stage), computed(OLD / f"{stage}_within.pth.tar", stage)
    now, then = ({at: tensor for at, tensor in found.items() if at.startswith("state_dict.")} for found in (now, then))
    assert not differing(now, then, WHOLE)
    if differing(now, then, 0):
        pytest.skip("this PyTorch, CPU or number of threads rounds otherwise than where the files were made")
    for end in (computed(whole / "last.pth.tar", stage), computed(OLD / f"{stage}_end.pth.tar", stage)):
        assert not differing(computed(resumed / "last.pth.tar", stage), end, 0)
    assert last_line(resumed) == last_line(whole)
