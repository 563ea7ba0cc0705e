"""Small runs that are measured, and one that is not."""

import pytest

import main_moco_supcon_imba as stage1
from imagenet_inat.sets import digits


@pytest.fixture(scope="session")
def few_images(flags, digits_root, tmp_path_factory) -> list[str]:
    """`flags` of a TSC run of four epochs on 24 images, two steps an epoch."""
    splits = tmp_path_factory.mktemp("few_images")
    _, whole = digits.prepare(digits_root, 1)
    for split, every in (("train", 50), ("val", 10)):
        lines = (whole / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)
        (splits / f"{split}.txt").write_text("".join(lines[::every]))
    lists = f"--train-txt {splits}/train.txt --val-txt {splits}/val.txt"
    tsc = f"{lists} -b 12 --moco-k 24 --epochs 4 --targeted --sep_t --tw 0.2"
    return [*flags, *tsc.split()]


@pytest.fixture(scope="session")
def monitored(few_images, tmp_path_factory):
    """The run of `few_images`, measured after every second epoch."""
    run = tmp_path_factory.mktemp("monitored") / "run"
    stage1.main([*few_images, "--monitor-freq", "2", "--run-dir", str(run)])
    return run


@pytest.fixture(scope="session")
def unmonitored(few_images, tmp_path_factory):
    """The run of `few_images` as it is."""
    run = tmp_path_factory.mktemp("unmonitored") / "run"
    stage1.main([*few_images, "--run-dir", str(run)])
    return run
