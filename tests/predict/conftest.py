"""Classifiers on a data set with class names."""

import json
import shutil
from pathlib import Path

import pytest

import main_lincls_imba as stage2
from examples import cross_entropy
from imagenet_inat.lists.known import MADE

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="session")
def named_flags(probe_flags, tmp_path_factory) -> list[str]:
    """Return `probe_flags` with lists in a folder whose made.json names the classes."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / MADE).write_text(json.dumps({"classes": NAMES, "files": {}}))
    words = list(probe_flags)
    for split in ("train", "val", "test"):
        at = words.index(f"--{split}-txt") + 1
        words[at] = shutil.copy(words[at], folder / f"{split}.txt")
    return list(map(str, words))


def run_head(head: str, words: list[str], pretrained: Path, folder: Path) -> Path:
    """Train or fit a classifier on a stage-1 checkpoint, or train with cross-entropy; return the run folder."""
    if head == "cross-entropy":
        cross_entropy.main([*words, "--lr", "0.1", "--epochs", "2", "--run-dir", str(folder)])
    elif head == "linear":
        stage2.main([*words, "--epochs", "2", "--pretrained", str(pretrained), "--run-dir", str(folder)])
    else:
        fitted = words[: words.index("--lr")]  # the flags after it are for training
        stage2.main([*fitted, "--head", head, "--pretrained", str(pretrained), "--run-dir", str(folder)])
    return folder


@pytest.fixture(scope="session")
def classifiers(named_flags, tsc_run, tmp_path_factory) -> dict[str, Path]:
    """Return the run folder of a trained probe, of fitted heads, and of a cross-entropy training."""
    root, pretrained = tmp_path_factory.mktemp("classifiers"), tsc_run / "last.pth.tar"
    pretrained = Path(shutil.copy(pretrained, root))
    return {
        head: run_head(head, named_flags, pretrained, root / head)
        for head in ("linear", "logistic", "target", "cross-entropy")
    }
