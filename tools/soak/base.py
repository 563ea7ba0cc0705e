"""What all cases of a soak start from: small data, targets, and a run of each stage that nothing disturbed."""

import shutil
from pathlib import Path
from typing import NamedTuple

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.sets import digits
from moco.targets.generation import generate_file
from tools.soak.processes import Running, error_log, fork

IMBALANCE = 10.0
LINES = {"train": 48, "val": 20, "test": 20}
TSC = "-b 16 --epochs 2 --lr 0.1 --moco-dim 16 --moco-k 32 --targeted --sep_t --monitor-freq 1 --save-steps 1"


class Base(NamedTuple):
    """folder: of all. data: a --data-root of some digits, and their lists. run, probe: ended, one in the other."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def targets(self) -> Path:
        return self.folder / "optimal_10_16.npy"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def probe(self) -> Path:
        return self.run / "probe"

    @property
    def flags(self) -> list[str]:
        """Of both stages. As images of one's own: the digits themselves are gone through eight times an epoch."""
        lists = " ".join(f"--{split}-txt {self.data / f'{split}.txt'}" for split in LINES)
        text = f"--dataset custom --data-root {self.data} {lists} --views digit --statistics digits --image-size 8"
        return f"{text} -a resnet20 -j 0 -p 0 --seed 5 --device cpu".split()


def make(folder: Path) -> Base:
    """Make it all in an empty folder."""
    base = Base(folder)
    root, lists = digits.prepare(folder / "digits", IMBALANCE)
    base.data.mkdir()
    for split, most in LINES.items():
        lines = (lists / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)
        kept = [lines[i * len(lines) // most] for i in range(most)]
        (base.data / f"{split}.txt").write_text("".join(kept))
        for path in (line.rsplit(" ", 1)[0] for line in kept):
            (base.data / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, base.data / path)
    shutil.rmtree(folder / "digits")
    generate_file(base.targets, 10, 16)
    whole(stage1, [*base.flags, *TSC.split(), "--targets", str(base.targets), "--run-dir", str(base.run)], base)
    pretrained = ["--pretrained", str(base.run / "last.pth.tar")]
    for more in (f"-b 16 --epochs 2 --lr 1 --run-dir {base.probe}", f"--head logistic --run-dir {folder / 'logistic'}"):
        whole(stage2, [*base.flags, *pretrained, *more.split()], base)
    return base


def whole(stage, flags: list[str], base: Base) -> None:
    """A run in a process of its own: after a computation here, threads could make a fork of this process unsafe."""
    log = base.folder / "log"
    if Running([fork(lambda: stage.main(flags), log)]).wait() != 0:
        raise RuntimeError(f"the undisturbed run fails: {error_log(log).read_text()}")
