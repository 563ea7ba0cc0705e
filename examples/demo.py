"""Run the whole pipeline on handwritten digits. It takes a few minutes on two cores and downloads nothing.

    python -m examples.demo

The demo creates targets, pre-trains with KCL and with TSC for the same number of epochs,
trains a linear probe on each, and writes a table, a figure and a report to runs/demo. It
prints every command that it runs. If interrupted, run the same command again to continue.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from utils import errors
from utils.cli.numbers import positive_int, seed_number
from utils.cli.parser import Parser

STAGE_1 = (
    "main_moco_supcon_imba.py --dataset digits --mlp --cos --epochs {epochs} -b 64 --lr 0.03 "
    "--moco-k 1024 --moco-m 0.99 --seed {seed} -p 0 --resume auto --monitor-freq 4"
)
STAGE_2 = "main_lincls_imba.py --dataset digits --epochs 8 --schedule 4 6 -b 64 --lr 1 --seed {seed} -p 0 --resume auto"
METHODS = {"KCL": "", "TSC": "--targeted --sep_t --tw 0.2 --targets {folder}/optimal_10_128.npy"}
HEADS = "main_lincls_imba.py --dataset digits --compare-heads --pretrained {folder}/tsc/last.pth.tar"
REPORT = "-m utils.report {folder}/kcl {folder}/tsc --output {folder}"


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--epochs", type=positive_int, default=32, metavar="E", help="Epochs of pre-training (41 steps each)."
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="Random seed.")
    parser.add_argument("--folder", default="runs/demo", metavar="DIR", help="Folder for all runs and results.")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    folder, started = Path(args.folder), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "optimal_10_128.npy").exists():
        run("target_generation.py --dataset digits --output {folder}/optimal_10_128.npy", folder=folder)
    results = {}
    for method, flags in METHODS.items():
        run_dir = folder / method.lower()
        values = {"epochs": args.epochs, "seed": args.seed, "folder": folder, "run_dir": run_dir}
        run(f"{STAGE_1} {flags} --run-dir {{run_dir}}", **values)
        run(f"{STAGE_2} --pretrained {{run_dir}}/last.pth.tar --run-dir {{run_dir}}/probe", **values)
        results[method] = json.loads((run_dir / "probe" / "results.json").read_text())
    run(REPORT, folder=folder)
    print_results(results, folder)
    print(f"\nwrote {folder}/results.md, per_class.png and report.html in {time.monotonic() - started:.0f} s")
    print(f"to compare all classifiers, run: python {HEADS.format(folder=folder)}")
    print(f"to see the training curves, run: tensorboard --logdir {folder}\nto start from scratch, delete {folder}")


def run(command: str, **values) -> None:
    """Fill in the fields of a command, print it and run it. If it fails, exit with its exit code."""
    arguments = [word.format(**values) for word in shlex.split(command)]
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, *arguments]).returncode
    if code == 130:  # Ctrl-C also reached the command, which has already printed how to continue
        raise KeyboardInterrupt
    if code:
        sys.exit(code)


def print_results(results: dict[str, dict], folder: Path) -> None:
    """Print and write the table, and draw the figure."""
    from utils.measure.results import SHOT_NOTE, format_results_table  # here, because they take seconds to import
    from utils.report.figures import per_class_accuracy

    counts = next(iter(results.values()))["train_counts"]
    text = (
        f"Top-1 test accuracy in percent, digits, {counts[0]} to {counts[-1]} training images per class.\n"
        f"{SHOT_NOTE}.\n"
        "selected: the epoch of the linear probe with the best validation accuracy.\n\n"
        f"{format_results_table(results)}\n"
    )
    print("\n" + text)
    (folder / "results.md").write_text(text)
    per_class_accuracy(results, folder / "per_class.png")


if __name__ == "__main__":
    errors.run(main, "run the same command again to continue")
