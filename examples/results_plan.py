"""What examples/results.py runs: methods, imbalances, and the commands of a trial."""

from pathlib import Path
from typing import NamedTuple

from examples import demo

IMBALANCES = (10, 50, 100)
PROBE_EPOCHS = 8  # of demo.STAGE_2: cross-entropy has them too
MONITORED = 4  # --monitor-freq of demo.STAGE_1
ONE_CORE = "--imbalance {imbalance} -j 0 --device cpu"
CROSS_ENTROPY = (
    "-m examples.cross_entropy --dataset digits --device-aug --epochs {all_epochs} -b 64 --lr 0.1 --cos --seed {seed} "
    "-p 0 --resume auto --run-dir {run_dir}"
)


HEADS = (
    "main_lincls_imba.py --dataset digits --compare-heads --seed {seed} --resume auto "
    "--pretrained {run_dir}/last.pth.tar --run-dir {run_dir}/heads"
)


class Method(NamedTuple):
    """key: in the names of run folders. title: in tables. flags: of stage 1, or of cross-entropy in one stage."""

    key: str
    title: str
    flags: str


BALANCED = "CE, balanced batches"
KCL, TSC = demo.METHODS["KCL"], demo.METHODS["TSC"]
METHODS = (
    Method("kcl", "KCL", KCL),
    Method("tsc", "TSC", TSC),
    Method("ce", BALANCED, "--balance sampling"),
    Method("ce_softmax", "CE, balanced softmax", "--balance softmax"),
    Method("ce_plain", "CE, plain", "--balance none"),
)


class Trial(NamedTuple):
    """One seed of a method. commands: what is left to run of it, in this order, each as words."""

    run_dir: Path
    commands: tuple[list[str], ...]


def cells() -> list[tuple[int, Method]]:
    """Imbalance and method of all that is run."""
    return [(rho, method) for rho in IMBALANCES for method in METHODS]


def trial_of(imbalance: int, method: Method, seed: int, args) -> Trial:
    """args: epochs of pre-training, folder of all runs."""
    run_dir = Path(args.folder) / f"rho{imbalance}" / f"{method.key}_s{seed}"
    stages = [f"{CROSS_ENTROPY} {method.flags}"]
    if not method.key.startswith("ce"):
        stages = [f"{demo.STAGE_1} {demo.FAST} {method.flags} --run-dir {{run_dir}}"]
        stages.append(f"{demo.STAGE_2} {demo.FAST} --pretrained {{run_dir}}/last.pth.tar --run-dir {{run_dir}}/probe")
    stages.append(HEADS)
    values = vars(args) | {"all_epochs": args.epochs + PROBE_EPOCHS}
    values |= {"imbalance": imbalance, "seed": seed, "run_dir": run_dir}
    words = (f"{stage} {ONE_CORE}".split() for stage in stages)  # split first: a folder's name may hold spaces
    return Trial(run_dir, tuple([word.format(**values) for word in command] for command in words))
