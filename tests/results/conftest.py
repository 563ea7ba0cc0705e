"""A small plan and its study."""

from pathlib import Path

import pytest
import torch

from examples.results.plan import Plan
from examples.results.plan_file import read_plan
from examples.results.reading import Results
from examples.results.study import Study
from examples.results.trials import main_cells, sweep_cells
from tests.results.written import write_run

PLAN = """
[study]
title = Small
imbalances = 10 100
seeds = 2
data = --dataset digits --image-size 8
contrast = --mlp --cos --epochs 2 -b 64 --contrast batch --moco-dim 8 -p 0 --monitor-freq 2
cross-entropy = --epochs 4 -b 256 --cos -p 0
rates = 0.1
pairs =
    tsc - kcl
    kcl - ce

[method pixels]
title = pixels
stage1 = pixels

[method kcl]
title = KCL
stage1 = contrast

[method tsc]
title = TSC
stage1 = contrast
flags = --targeted --tw 0.2

[method ce]
title = CE
stage1 = cross-entropy
flags = --balance none

[sweep tw]
methods = tsc
flag = --tw
values = 0.2 1
imbalance = 100
seeds = 2
axis = weight of the targets
labels = little much
caption = TSC over its weight.
"""
SWEEP = PLAN[PLAN.index("[sweep tw]") :]
# Changes of PLAN: one imbalance, two lengths, no sweep.
LENGTHS = (("imbalances = 10 100\nseeds = 2", "imbalances = 100\nlengths = 4 12\nseeds = 3 2"), (SWEEP, ""))


@pytest.fixture
def write_plan(tmp_path):
    """Return a function that writes PLAN with some of its text replaced."""

    def write(*changes: tuple[str, str]) -> Path:
        text = PLAN
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "small.ini"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def plan(write_plan) -> Plan:
    return read_plan(str(write_plan()))


@pytest.fixture
def study(plan, tmp_path) -> Study:
    """Return the study of `plan` in a folder whose name contains a space."""
    plan = plan._replace(data=(*plan.data, "--data-root", str(tmp_path / "data")))
    return Study(plan, tmp_path / "a b", torch.device("cpu"))


@pytest.fixture
def finished_study(study) -> Study:
    """Write two seeds of every cell: KCL 80 and 82, TSC 83 and 84, CE 70 and 71, pixels 60, at both imbalances."""
    accuracies = {"kcl": (80, 82), "tsc": (83, 84), "ce": (70, 71), "pixels": (60, 60)}
    for cell in [*main_cells(study.plan), *sweep_cells(study.plan, study.plan.sweeps[0]).values()]:
        for seed, acc1 in enumerate(accuracies[cell.method.key]):
            write_run(study, cell, seed, acc1, acc1 + 1, 1.2 if cell.method.key == "tsc" else 1.0)
    return study


@pytest.fixture
def study_results(finished_study) -> Results:
    """Return the results of `finished_study`."""
    return finished_study.results()


@pytest.fixture
def length_study(write_plan, tmp_path) -> Study:
    """Return a study of two lengths: three seeds at 4 epochs, two at 12."""
    plan = read_plan(str(write_plan(*LENGTHS)))
    plan = plan._replace(data=(*plan.data, "--data-root", str(tmp_path / "data")))
    study = Study(plan, tmp_path / "runs", "cpu")
    study.folder.mkdir()
    return study
