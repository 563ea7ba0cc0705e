"""The data, targets and undisturbed runs from which all cases start."""

import shutil
from pathlib import Path
from typing import NamedTuple

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.sets import digits
from moco.targets.generation import generate_file
from tools.soak.processes import RunningProcesses, error_log, fork

IMBALANCE = 10.0
LINES = {"train": 48, "val": 20, "test": 20}
TSC = "-b 16 --epochs 2 --lr 0.1 --moco-dim 16 --moco-k 32 --targeted --sep_t --monitor-freq 1 --save-steps 1"


class Base(NamedTuple):
    """Paths below `folder`. data: a --data-root with some digits and their lists. run, probe: finished runs."""

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
        """Flags of both stages. The digits are used as custom images, because --dataset digits repeats them 8 times."""
        lists = " ".join(f"--{split}-txt {self.data / f'{split}.txt'}" for split in LINES)
        text = f"--dataset custom --data-root {self.data} {lists} --views digit --statistics digits --image-size 8"
        return f"{text} -a resnet20 -j 0 -p 0 --seed 5 --device cpu".split()


def make_base(folder: Path) -> Base:
    """Write data and targets, and run both stages, in an empty folder."""
    base = Base(folder)
    root, lists = digits.prepare(folder / "digits", IMBALANCE)
    base.data.mkdir()
    for split, count in LINES.items():
        lines = (lists / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)
        kept = [lines[i * len(lines) // count] for i in range(count)]
        (base.data / f"{split}.txt").write_text("".join(kept))
        for path in (line.rsplit(" ", 1)[0] for line in kept):
            (base.data / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, base.data / path)
    shutil.rmtree(folder / "digits")
    generate_file(base.targets, 10, 16)
    run_undisturbed(
        stage1, [*base.flags, *TSC.split(), "--targets", str(base.targets), "--run-dir", str(base.run)], base
    )
    pretrained = ["--pretrained", str(base.run / "last.pth.tar")]
    for more in (f"-b 16 --epochs 2 --lr 1 --run-dir {base.probe}", f"--head logistic --run-dir {folder / 'logistic'}"):
        run_undisturbed(stage2, [*base.flags, *pretrained, *more.split()], base)
    return base


def run_undisturbed(stage, flags: list[str], base: Base) -> None:
    """Run a stage in its own process, because a computation here would start threads, which make a fork unsafe."""
    log = base.folder / "log"
    if RunningProcesses([fork(lambda: stage.main(flags), log)]).wait() != 0:
        raise RuntimeError(f"the undisturbed run failed: {error_log(log).read_text()}")
