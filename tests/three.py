"""A data set of sixteen images in three classes, and flags for runs on it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_inat.datasets import IMAGENET_STATISTICS, REGISTRY, DatasetSpec
from moco.targets.generation import generate_file

CLASSES = 3
ROW = DatasetSpec("three", "three", CLASSES, **IMAGENET_STATISTICS, source="noise", image_size=8, arch="resnet20")


def write(root: Path) -> Path:
    """Write sixteen 8-px images of three classes, their lists, and targets in eight dimensions; return the folder."""
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(16)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / name)
    for split in ("train", "val", "test"):
        (root / f"three_{split}.txt").write_text("".join(f"{name} {int(name[:-4]) % CLASSES}\n" for name in names))
    generate_file(root / "targets.npy", CLASSES, 8)
    return root


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the data set to the registry, so that --dataset accepts its name."""
    monkeypatch.setitem(REGISTRY, ROW.name, ROW)


def flags(root: Path) -> list[str]:
    """Return flags for either stage: two epochs of two steps."""
    return f"--dataset three --data-root {root} --splits {root} -j 0 -b 8 --device cpu --seed 3 -p 0 --epochs 2".split()
