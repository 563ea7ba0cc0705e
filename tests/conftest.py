"""Fixtures of all tests."""

import os

# Two test processes' worth of threads on two cores: spinning threads only take each other's time.
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
    """A data root; the first script that uses it writes the digits there."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def data_flags(digits_root) -> list[str]:
    """Flags of both stages' data: a quarter of the digits at 8 px, as custom lists, so that an epoch sees them once."""
    root, lists = digits.prepare(digits_root, REGISTRY["digits"].imbalance)
    files = []
    for split in ("train", "val", "test"):
        small = lists / f"quarter_{split}.txt"
        small.write_text("".join(quarter((lists / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True))))
        files += [f"--{split}-txt", str(small)]
    words = f"--dataset custom --data-root {root} --views digit --statistics digits --image-size 8"
    return [*words.split(), *files]


def quarter(lines: list[str]) -> list[str]:
    """The first quarter of each class's lines in a split list, and at least two."""
    by_class: dict[str, list[str]] = {}
    for line in lines:
        by_class.setdefault(line.split()[-1], []).append(line)
    return [line for of_class in by_class.values() for line in of_class[: max(2, -(-len(of_class) // 4))]]


@pytest.fixture(scope="session")
def flags(data_flags, tmp_path_factory) -> list[str]:
    """Flags of a stage-1 run that takes a second: resnet20 at 8 px, STEPS steps of BATCH images an epoch."""
    targets = tmp_path_factory.mktemp("targets") / "optimal_10_16.npy"
    generate_file(targets, 10, 16)
    text = f"-a resnet20 -b {BATCH} --moco-k {QUEUE} --moco-dim 16 --mlp --cos --lr 0.1 --seed 1 -j 0 -p 2 --device cpu"
    return [*data_flags, *text.split(), "--targets", str(targets)]


@pytest.fixture(scope="session")
def digits_flags(digits_root) -> list[str]:
    """The same of the named data set, for what its row says: 5 steps of 512, each image eight times an epoch."""
    text = f"""--dataset digits --data-root {digits_root} --image-size 8 -b 512 --moco-k 1024 --moco-dim 16 --mlp --cos
        --lr 0.1 --seed 1 -j 0 -p 2 --device cpu"""
    return text.split()


@pytest.fixture(scope="session")
def batch_flags(flags) -> list[str]:
    """The same for contrast without a queue, but for --contrast itself."""
    at = flags.index("--moco-k")
    return [*flags[:at], *flags[at + 2 :]]


@pytest.fixture(scope="session")
def probe_flags(data_flags) -> list[str]:
    """Flags of a stage-2 run to go with `flags`."""
    text = f"-a resnet20 -b {BATCH} --lr 1 --seed 1 -j 0 -p 0 --device cpu"
    return [*data_flags, *text.split()]


@pytest.fixture(scope="session")
def tsc_run(flags, tmp_path_factory) -> Path:
    """The folder of a TSC run of two epochs, one in each phase."""
    run = tmp_path_factory.mktemp("tsc") / "run"
    stage1.main([*flags, "--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--run-dir", str(run), "-s", "1"])
    return run


@pytest.fixture(scope="session")
def probe_run(tsc_run, probe_flags) -> Path:
    """The folder of a linear probe of `tsc_run`."""
    run = tsc_run / "probe"
    checkpoint = str(tsc_run / "last.pth.tar")
    stage2.main([*probe_flags, "--epochs", "2", "--pretrained", checkpoint, "--run-dir", str(run)])
    return run


@pytest.fixture(scope="session")
def whole(flags, tmp_path_factory) -> Path:
    """The folder of a run of two epochs KCL and two TSC that nothing disturbed, each epoch's checkpoint kept."""
    run = tmp_path_factory.mktemp("whole") / "run"
    stage1.main([*flags, *FOUR_EPOCHS, "-s", "1", "--run-dir", str(run)])
    return run
