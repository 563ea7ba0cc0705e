"""Small stage-1 runs, with and without feature measures."""

import pytest

import main_moco_supcon_imba as stage1
from imagenet_inat.sets import digits


@pytest.fixture(scope="session")
def few_images_flags(flags, digits_root, tmp_path_factory) -> list[str]:
    """Return the flags of a TSC run of four epochs on 24 images, with two steps per epoch."""
    splits = tmp_path_factory.mktemp("few_images")
    _, lists_folder = digits.prepare(digits_root, 1)
    for split, every in (("train", 50), ("val", 10)):
        lines = (lists_folder / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)
        (splits / f"{split}.txt").write_text("".join(lines[::every]))
    lists = f"--train-txt {splits}/train.txt --val-txt {splits}/val.txt"
    tsc = f"{lists} -b 12 --moco-k 24 --epochs 4 --targeted --sep_t --tw 0.2"
    return [*flags, *tsc.split()]


@pytest.fixture(scope="session")
def monitored(few_images_flags, tmp_path_factory):
    """Run `few_images_flags` with measures after every second epoch. Return the run folder."""
    run = tmp_path_factory.mktemp("monitored") / "run"
    stage1.main([*few_images_flags, "--monitor-freq", "2", "--run-dir", str(run)])
    return run


@pytest.fixture(scope="session")
def unmonitored(few_images_flags, tmp_path_factory):
    """Run `few_images_flags` without measures. Return the run folder."""
    run = tmp_path_factory.mktemp("unmonitored") / "run"
    stage1.main([*few_images_flags, "--run-dir", str(run)])
    return run
