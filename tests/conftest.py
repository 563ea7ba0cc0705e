"""Fixtures shared by all tests."""

import os

# Tests run in parallel processes. With several threads each, spinning threads only compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.sets import digits
from moco.targets.generation import generate_file
from tests.stopping import BATCH, FOUR_EPOCHS, QUEUE


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory) -> Path:
    """Return an empty data root. The first script that uses it writes the digits there."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def data_flags(digits_root) -> list[str]:
    """Return data flags of both stages: custom lists of a quarter of the digits at 8 px, so that an epoch is short.

    The images are augmented one by one, so that tests with -j use loader processes. `digits_flags` has the default.
    """
    root, lists = digits.prepare(digits_root, REGISTRY["digits"].imbalance_ratio)
    files = []
    for split in ("train", "val", "test"):
        small = lists / f"quarter_{split}.txt"
        small.write_text(
            "".join(first_quarter((lists / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)))
        )
        files += [f"--{split}-txt", str(small)]
    words = f"--dataset custom --data-root {root} --views digit --statistics digits --image-size 8"
    words += " --device-aug off"
    return [*words.split(), *files]


def first_quarter(lines: list[str]) -> list[str]:
    """Return the first quarter of each class's lines in a split list, and at least two."""
    by_class: dict[str, list[str]] = {}
    for line in lines:
        by_class.setdefault(line.split()[-1], []).append(line)
    return [line for class_lines in by_class.values() for line in class_lines[: max(2, -(-len(class_lines) // 4))]]


@pytest.fixture(scope="session")
def flags(data_flags, tmp_path_factory) -> list[str]:
    """Return flags of a one-second stage-1 run: resnet20 at 8 px, STEPS steps of BATCH images per epoch."""
    targets = tmp_path_factory.mktemp("targets") / "optimal_10_16.npy"
    generate_file(targets, 10, 16)
    text = f"-a resnet20 -b {BATCH} --moco-k {QUEUE} --moco-dim 16 --mlp --cos --lr 0.1 --seed 1 -j 0 -p 2 --device cpu"
    return [*data_flags, *text.split(), "--targets", str(targets)]


@pytest.fixture(scope="session")
def digits_flags(digits_root) -> list[str]:
    """Return flags of a stage-1 run with --dataset digits: 5 steps of 512 per epoch, with each image eight times."""
    text = f"""--dataset digits --data-root {digits_root} --image-size 8 -b 512 --moco-k 1024 --moco-dim 16 --mlp --cos
        --lr 0.1 --seed 1 -j 0 -p 2 --device cpu"""
    return text.split()


@pytest.fixture(scope="session")
def batch_flags(flags) -> list[str]:
    """Return `flags` without the queue's length, for tests that add `--contrast batch`."""
    at = flags.index("--moco-k")
    return [*flags[:at], *flags[at + 2 :]]


@pytest.fixture(scope="session")
def probe_flags(data_flags) -> list[str]:
    """Return flags of a stage-2 run that fit `flags`."""
    text = f"-a resnet20 -b {BATCH} --lr 1 --seed 1 -j 0 -p 0 --device cpu"
    return [*data_flags, *text.split()]


@pytest.fixture(scope="session")
def tsc_run(flags, tmp_path_factory) -> Path:
    """Train TSC for two epochs, one in each phase; return the run folder."""
    run = tmp_path_factory.mktemp("tsc") / "run"
    stage1.main([*flags, "--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--run-dir", str(run), "-s", "1"])
    return run


@pytest.fixture(scope="session")
def probe_run(tsc_run, probe_flags) -> Path:
    """Train a linear probe on `tsc_run`; return its run folder."""
    run = tsc_run / "probe"
    checkpoint = str(tsc_run / "last.pth.tar")
    stage2.main([*probe_flags, "--epochs", "2", "--pretrained", checkpoint, "--run-dir", str(run)])
    return run


@pytest.fixture(scope="session")
def uninterrupted_run(flags, tmp_path_factory) -> Path:
    """Train two epochs of KCL and two of TSC, with a checkpoint of each epoch; return the run folder."""
    run = tmp_path_factory.mktemp("whole") / "run"
    stage1.main([*flags, *FOUR_EPOCHS, "-s", "1", "--run-dir", str(run)])
    return run
