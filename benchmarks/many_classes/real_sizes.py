"""Measure both stages at the sizes of ImageNet-LT or iNaturalist 2018, on synthetic images.

    python -m benchmarks.many_classes.real_sizes --dataset imagenet --targeted
    python -m benchmarks.many_classes.real_sizes --dataset inat

The benchmark writes lists and images to a temporary folder. The number of images and the length
of their paths are real; the images are hard links to a few 500×375 JPEG files. With resnet50 at
224 px, it measures the time to read a list, to verify a data root and to reach the first step,
and the memory of a loader process. Then both stages run to the end on a sample. The output is
Markdown. Linux only.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagenet_inat.datasets import LISTS_ROOT, REGISTRY
from imagenet_inat.lists.format import read_split
from utils.cli.numbers import nonnegative_int, positive_int
from utils.cli.parser import Parser

REPOSITORY = Path(__file__).parent.parent.parent
LINKS_PER_FILE = 30_000  # hard links per file; ext4 allows 65,000


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--dataset", choices=["imagenet", "inat"], default="imagenet", metavar="NAME", help="Data set: %(choices)s."
    )
    parser.add_argument("--splits", metavar="DIR", help="Folder with real lists, which are used if they exist.")
    parser.add_argument("--steps", type=positive_int, default=2, metavar="N", help="Steps per phase.")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=16, metavar="N", help="Batch size.")
    parser.add_argument(
        "-j", "--workers", type=nonnegative_int, default=2, metavar="N", help="Number of data-loading processes."
    )
    parser.add_argument("--targeted", action="store_true", help="Measure TSC as well; the targets are created first.")
    parser.add_argument(
        "--folder", metavar="DIR", help="Parent of the temporary folder (default: the system's temporary folder)."
    )
    return parser


def synthetic_lines(dataset: str) -> list[str]:
    """Return a synthetic training list with the real number of lines and realistic file names."""
    if dataset == "imagenet":
        counts = json.loads((LISTS_ROOT / "ImageNet_LT" / "train_counts.json").read_text())
        return [f"train/n{c:08d}/n{c:08d}_{100 + 17 * i}.JPEG {c}" for c, n in enumerate(counts) for i in range(n)]
    rng = np.random.default_rng(0)
    shares = np.arange(10, 8152) ** -0.6
    labels = np.sort(np.append(np.arange(8142), rng.choice(8142, 437_513 - 8142, p=shares / shares.sum())))
    names = rng.bytes(16 * len(labels)).hex()
    return [f"train_val2018/Plantae/{c}/{names[32 * i : 32 * i + 32]}.jpg {c}" for i, c in enumerate(labels)]


def build(folder: Path, dataset: str, splits: str | None, sample: int) -> tuple[Path, Path]:
    """Write images to folder/images, the full lists to folder/full and samples of them to folder/sample.

    Returns:
        The root of the images, and the parent of the two list folders.
    """
    spec, lists = REGISTRY[dataset], {}
    for name in spec.list_names:
        real = Path(splits or LISTS_ROOT / spec.set_name) / name
        if real.is_file():
            lists[name] = real.read_text().splitlines()
    train_name, *others = spec.list_names
    lists.setdefault(train_name, synthetic_lines(dataset))
    for name in others:  # evaluation always uses a sample, because a full evaluation takes hours on a CPU
        lists[name] = evenly_spaced(lists.get(name) or lists[train_name], sample)
    for list_name, train in (("full", lists[train_name]), ("sample", evenly_spaced(lists[train_name], sample))):
        (folder / list_name).mkdir()
        for name, lines in (lists | {train_name: train}).items():
            (folder / list_name / name).write_text("\n".join(lines) + "\n")
    link_images(folder / "images", {line.rsplit(None, 1)[0] for lines in lists.values() for line in lines})
    return folder / "images", folder


def evenly_spaced(lines: list[str], number: int) -> list[str]:
    """Return `number` lines at equal distances, including the first and the last."""
    return [lines[i] for i in np.linspace(0, len(lines) - 1, number, dtype=int)]


def link_images(root: Path, paths: set[str], size: tuple[int, int] = (500, 375)) -> None:
    """Create JPEG files at the given paths below root, as hard links to a few images."""
    rng, original = np.random.default_rng(1), root / "original.jpg"
    for folder in {os.path.dirname(path) for path in paths}:  # noqa: PTH120 pathlib is too slow for half a million paths
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(paths):
        if i % LINKS_PER_FILE == 0:
            original.unlink(missing_ok=True)
            image = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            image.resize(size, Image.Resampling.BICUBIC).save(original, quality=90)
        os.link(original, root / path)


def run_steps(command: list[str], steps: int, folder: Path) -> dict:
    """Run a script for some steps, measure the memory of its processes, and interrupt it.

    Returns:
        A dict with these entries. Times are seconds since the start of the command, memory is in MiB.
        set_up: Time at which the data and the model are ready.
        first_step: Time at which the first step ends.
        steps: Time at which each step ends.
        peak: Peak memory of the process.
        workers: Memory of each loader process, private and proportional (private plus its share of shared memory).
    """
    started, measured = time.perf_counter(), {"steps": []}
    process = subprocess.Popen([*command, "-p", "1"], cwd=folder, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        now = time.perf_counter() - started
        if " steps per epoch, " in line:
            measured["set_up"] = now
        if line.startswith("Epoch: ") and "Time" in line:
            measured.setdefault("first_step", now)
            measured["steps"].append(now)
            if f"[{steps:>4}/" in line:
                measured |= {"workers": worker_memory(process.pid), "peak": peak_memory(process.pid)}
                process.send_signal(signal.SIGINT)
                break
    process.stdout.read()
    if process.wait() != 130:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}, expected 130 after an interrupt")
    return measured


def peak_memory(pid: int) -> float:
    """Return the peak memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def worker_memory(pid: int) -> list[tuple[float, float]]:
    """Return the private and proportional memory of each child process in MiB, without batches in shared memory."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    memory = []
    for child in children:
        private = proportional = 0
        batch = False
        for line in Path(f"/proc/{child}/smaps").read_text().splitlines():
            field, *values = line.split()
            if not field.endswith(":"):  # the first line of a mapping, which ends with its name
                batch = "/torch_" in line
            elif not batch:
                private += int(values[0]) if field in ("Private_Clean:", "Private_Dirty:") else 0
                proportional += int(values[0]) if field == "Pss:" else 0
        memory.append((private / 1024, proportional / 1024))
    return memory


def time_command(command: list[str], folder: Path) -> float:
    """Run a command in a folder. Return its seconds."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    args = get_args_parser().parse_args()
    spec, folder = REGISTRY[args.dataset], Path(tempfile.mkdtemp(dir=args.folder))
    try:
        root, lists = build(folder, args.dataset, args.splits, args.steps * args.batch_size)
        measure(args, spec, root, lists)
    finally:
        shutil.rmtree(folder)


def measure(args, spec, root: Path, lists: Path) -> None:
    """Run all measurements, and print each table row as soon as it is measured."""
    train_list = lists / "full" / spec.list_name("train")
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, PyTorch {torch.__version__}, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}\n"
    )
    print(f"| {args.dataset}, {spec.num_classes} classes, resnet50, 224 px | |\n|---|--:|")

    seconds = []
    for _ in range(3):
        started = time.process_time()
        paths, labels = read_split(train_list, spec.num_classes)
        seconds.append(time.process_time() - started)
    print_row(f"reading {len(labels):,} lines, CPU time, best of 3", f"{min(seconds):.2f} s")
    print_row("the list in memory, shared by all processes", f"{(paths.nbytes + labels.nbytes) / 2**20:.1f} MiB")
    command = [sys.executable, "-c", VERIFY_IMAGES, str(train_list), str(root), args.dataset]
    print_row(f"finding {len(labels):,} images, including program start", f"{time_command(command, REPOSITORY):.1f} s")

    common = f"--dataset {args.dataset} --data-root {root} -b {args.batch_size} -j {args.workers} --seed 0".split()
    pretraining = [sys.executable, str(REPOSITORY / "main_moco_supcon_imba.py"), *common, "--mlp"]
    probe = [sys.executable, str(REPOSITORY / "main_lincls_imba.py"), *common, "--pretrained", "run/last.pth.tar"]
    full, sample = ["--splits", str(lists / "full")], ["--splits", str(lists / "sample")]
    tsc = ["--targeted", "--sep_t", "--tw", "0.2"] if args.targeted else []

    print_start("stage 1", run_steps([*pretraining, *full, "--epochs", "1", "--run-dir", "a"], args.steps, lists))
    epochs = "2" if args.targeted else "1"
    seconds = time_command([*pretraining, *sample, *tsc, "--epochs", epochs, "--run-dir", "run"], lists)
    print_row(
        f"stage 1 on a sample, {args.steps} steps per phase{', KCL and TSC' if tsc else ''}",
        f"{seconds:.0f} s",
    )
    print_row("stage 1: size of the checkpoint", f"{(lists / 'run' / 'last.pth.tar').stat().st_size / 2**20:.0f} MiB")
    print_start("stage 2", run_steps([*probe, *full, "--epochs", "1", "--run-dir", "b"], args.steps, lists))
    seconds = time_command([*probe, *sample, "--epochs", "1", "--run-dir", "probe"], lists)
    results = json.loads((lists / "probe" / "results.json").read_text())
    print_row(f"stage 2 on a sample, {len(results['train_counts'])} classes", f"{seconds:.0f} s")


# Like `verify`, but only for the training list, because the other lists are samples here.
VERIFY_IMAGES = """
import sys
from pathlib import Path
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.splits.findings import Findings
from imagenet_inat.lists.format import read_split
from imagenet_inat.splits.verify_images import check_images
file, root, name = sys.argv[1:]
spec, findings = REGISTRY[name], Findings()
check_images(spec, name, read_split(Path(file), spec.num_classes)[0], Path(root), False, findings)
sys.exit(findings.num_problems)
"""


def print_row(name: str, value: str) -> None:
    print(f"| {name} | {value} |", flush=True)


def print_start(stage: str, measured: dict) -> None:
    """Print the rows of a result of `run_steps`."""
    print_row(f"{stage}: time until data and model are ready", f"{measured['set_up']:.1f} s")
    print_row(f"{stage}: time until the end of the first step", f"{measured['first_step']:.1f} s")
    print_row(f"{stage}: peak memory of the process", f"{measured['peak']:.0f} MiB")
    for number, (private, proportional) in enumerate(measured["workers"]):
        print_row(
            f"{stage}: loader process {number}, private / proportional memory",
            f"{private:.0f} / {proportional:.0f} MiB",
        )


if __name__ == "__main__":
    main()
