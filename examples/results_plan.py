"""What examples/results.py runs: methods, imbalances, and the commands of a trial."""

from pathlib import Path
from typing import NamedTuple

from examples import demo

IMBALANCES, VARIED = (10, 50, 100), 100  # VARIED: that at which the variants are run
PROBE_EPOCHS = 8  # of demo.STAGE_2: cross-entropy has them too
MONITORED = 4  # --monitor-freq of demo.STAGE_1
ONE_CORE = "--imbalance {imbalance} -j 0 --device cpu"
CROSS_ENTROPY = (
    "-m examples.cross_entropy --dataset digits --device-aug --epochs {all_epochs} -b 64 --lr 0.1 --cos --seed {seed} "
    "-p 0 --resume auto --run-dir {run_dir}"
)


class Method(NamedTuple):
    """key: in the names of run folders. title: in tables. flags: of stage 1, or of cross-entropy in one stage."""

    key: str
    title: str
    flags: str
    compared_with: str | None = "KCL"  # the title of that which differences are taken to


BALANCED = "CE, balanced batches"
KCL, TSC = demo.METHODS["KCL"], demo.METHODS["TSC"]
METHODS = (
    Method("kcl", "KCL", KCL, None),
    Method("tsc", "TSC", TSC),
    Method("ce", BALANCED, "--balance sampling", None),
    Method("ce_softmax", "CE, balanced softmax", "--balance softmax", BALANCED),
    Method("ce_plain", "CE, plain", "--balance none", BALANCED),
)
VARIANTS = (
    Method("tsc_tw1", "TSC, λ = 1", f"{TSC} --tw 1"),
    Method("tsc_queue", "TSC, centroids from the queue", f"{TSC} --centroid-init queue"),
    Method("kcl_k256", "KCL, queue of 256", f"{KCL} --moco-k 256"),
    Method("tsc_k256", "TSC, queue of 256", f"{TSC} --moco-k 256", "KCL, queue of 256"),
    Method("kcl_long", "KCL, twice the epochs", f"{KCL} --epochs {{twice}}"),
    Method("tsc_long", "TSC, twice the epochs", f"{TSC} --epochs {{twice}}", "KCL, twice the epochs"),
)


class Trial(NamedTuple):
    """One seed of a method. commands: what is left to run of it, in this order, each as words."""

    run_dir: Path
    commands: tuple[list[str], ...]


def cells() -> list[tuple[int, Method]]:
    """Imbalance and method of all that is run."""
    return [*((rho, method) for rho in IMBALANCES for method in METHODS), *((VARIED, method) for method in VARIANTS)]


def trial_of(imbalance: int, method: Method, seed: int, args) -> Trial:
    """args: epochs of pre-training, folder of all runs."""
    run_dir = Path(args.folder) / f"rho{imbalance}" / f"{method.key}_s{seed}"
    stages = [f"{CROSS_ENTROPY} {method.flags}"]
    if not method.key.startswith("ce"):
        stages = [f"{demo.STAGE_1} {demo.FAST} {method.flags} --run-dir {{run_dir}}"]
        stages.append(f"{demo.STAGE_2} {demo.FAST} --pretrained {{run_dir}}/last.pth.tar --run-dir {{run_dir}}/probe")
    values = vars(args) | {"twice": 2 * args.epochs, "all_epochs": args.epochs + PROBE_EPOCHS}
    values |= {"imbalance": imbalance, "seed": seed, "run_dir": run_dir}
    words = (f"{stage} {ONE_CORE}".split() for stage in stages)  # split first: a folder's name may hold spaces
    return Trial(run_dir, tuple([word.format(**values) for word in command] for command in words))
