"""Two tiny runs, TSC and its probe, whose checkpoints are a few kB. As a program, write the files of this folder.

Run it with a checkout of the commit whose checkpoints should stay loadable, in an empty folder:
    OMP_NUM_THREADS=1 PYTHONPATH=CHECKOUT python PATH/TO/tests/checkpoints/make.py

An epoch has 17 steps; checkpoints are written after step 11 and at its end. The previous.pth.tar of the finished run is
therefore the checkpoint that a kill in the last 6 steps would have left. It is stored as within.pth.tar, and
last.pth.tar is stored as end.pth.tar.
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
# One epoch of KCL and two of TSC. Step 45 still uses the assignment of step 36, which is no longer optimal.
TSC = """--epochs 3 --targeted --sep_t --tw 0.2 --assignment-interval 12 --mlp --moco-dim 4 --moco-k 128 --moco-m 0.9
    --lr 0.1 --cos"""
PROBE = "--epochs 2 --lr 1"  # the first epoch is better, so resuming must keep its result


class TinyNet(nn.Module):
    """One convolution, batch norm, pooling and `fc`."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(relu(self.bn(self.conv(x))).mean(dim=(2, 3)))


def write_inputs(folder: Path) -> None:
    """Write a list of 70 digits and ten exact targets in R^4. Neither depends on library versions."""
    labels = load_digits().target[:70]
    lines = [f"images/{label}/{number:04d}.png {label}\n" for number, label in enumerate(labels)]
    (folder / "train.txt").write_text("".join(lines))
    axes, diagonal = np.eye(4, dtype=np.float32), np.full((1, 4), 0.5, dtype=np.float32)
    np.save(folder / "targets.npy", np.concatenate([axes, -axes, diagonal, -diagonal]))


def pretrain(folder: Path, run: Path, *flags: str) -> None:
    """Run stage 1 on the inputs in `folder`, with further flags."""
    paths = ["--data-root", folder / "data", "--train-txt", folder / "train.txt", "--targets", folder / "targets.npy"]
    stage1.main([*COMMON.split(), *TSC.split(), *map(str, paths), "--run-dir", str(run), *flags])


def probe(folder: Path, run: Path, pretrained: Path, *flags: str) -> None:
    """Run stage 2 on the inputs in `folder`, with further flags."""
    paths = ["--data-root", folder / "data", "--train-txt", folder / "train.txt", "--pretrained", pretrained]
    stage2.main([*COMMON.split(), *PROBE.split(), *map(str, paths), "--run-dir", str(run), *flags])


if __name__ == "__main__":
    encoders.PROJECT_NETWORKS[ARCH] = TinyNet
    here = Path()
    write_inputs(here)
    pretrain(here, here / "tsc")
    probe(here, here / "probe", here / "tsc" / "last.pth.tar")
    for run in ("tsc", "probe"):
        shutil.copy(here / run / "previous.pth.tar", f"{run}_within.pth.tar")
        shutil.copy(here / run / "last.pth.tar", f"{run}_end.pth.tar")
