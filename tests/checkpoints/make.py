"""Two tiny runs, TSC and its probe, whose checkpoints are a few kB; as a program, makes the files of this folder.

Run by the commit that is to be remembered, in an empty folder:
    OMP_NUM_THREADS=1 PYTHONPATH=CHECKOUT python PATH/TO/tests/checkpoints/make.py

An epoch has 17 steps and is saved after 11 and at its end. So the whole run leaves, as previous.pth.tar, what a kill
in its last 6 steps would have left as last.pth.tar: that is within.pth.tar here, and its last.pth.tar is end.pth.tar.
"""

import shutil
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import relu

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco import encoders

ARCH = "tiny"
COMMON = (
    f"--dataset digits --image-size 8 -a {ARCH} -b 32 --save-steps 11 --seed 1 -j 0 -p 0 --device cpu --resume auto"
)
# One epoch of KCL and two of TSC; step 45 uses the assignment of step 36, which is no longer the best, until step 48.
TSC = """--epochs 3 --targeted --sep_t --tw 0.2 --assignment-interval 12 --mlp --moco-dim 4 --moco-k 128 --moco-m 0.9
    --lr 0.1 --cos"""
PROBE = "--epochs 2 --lr 1"  # its first epoch is the better one, so the file within the second decides the end


class TinyNet(nn.Module):
    """A convolution, batch norm, pooling, `fc`."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(relu(self.bn(self.conv(x))).mean(dim=(2, 3)))


def write_inputs(folder: Path) -> None:
    """A list of 70 digits, and ten targets in R^4 that are exact: neither depends on a version."""
    labels = load_digits().target[:70]
    lines = [f"images/{label}/{number:04d}.png {label}\n" for number, label in enumerate(labels)]
    (folder / "train.txt").write_text("".join(lines))
    axes, halves = np.eye(4, dtype=np.float32), np.full((1, 4), 0.5, dtype=np.float32)
    np.save(folder / "targets.npy", np.concatenate([axes, -axes, halves, -halves]))


def pretrain(folder: Path, run: Path) -> None:
    """Stage 1, on the inputs in `folder`."""
    paths = ["--data-root", folder / "data", "--train-txt", folder / "train.txt", "--targets", folder / "targets.npy"]
    stage1.main([*COMMON.split(), *TSC.split(), *map(str, paths), "--run-dir", str(run)])


def probe(folder: Path, run: Path, pretrained: Path) -> None:
    """Stage 2, on the inputs in `folder`."""
    paths = ["--data-root", folder / "data", "--train-txt", folder / "train.txt", "--pretrained", pretrained]
    stage2.main([*COMMON.split(), *PROBE.split(), *map(str, paths), "--run-dir", str(run)])


if __name__ == "__main__":
    encoders.OWN[ARCH] = TinyNet
    here = Path()
    write_inputs(here)
    pretrain(here, here / "tsc")
    probe(here, here / "probe", here / "tsc" / "last.pth.tar")
    for run in ("tsc", "probe"):
        shutil.copy(here / run / "previous.pth.tar", f"{run}_within.pth.tar")
        shutil.copy(here / run / "last.pth.tar", f"{run}_end.pth.tar")
