"""Measure both stages at the sizes of ImageNet-LT or iNaturalist 2018, on synthetic images.

    python -m benchmarks.many_classes.real_sizes --dataset imagenet --targeted
    python -m benchmarks.many_classes.real_sizes --dataset inat

The benchmark creates lists and image paths of the real number and length (hard links to a
few 500×375 JPEGs) in a temporary folder. It measures how long it takes to read a list, to
verify a data root, and to reach the first step, and the memory of a loader process, with
resnet50 at 224 px. Then both stages run to the end on a sample. The output is Markdown.
Linux only.
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
from utils.parser import Parser, natural, positive_int

REPOSITORY = Path(__file__).parent.parent.parent
LINKS_A_FILE = 30_000  # hard links per file; ext4 allows 65,000


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--dataset", choices=["imagenet", "inat"], default="imagenet", metavar="NAME", help="Data set: %(choices)s."
    )
    parser.add_argument("--splits", metavar="DIR", help="Folder with real lists, used where they exist.")
    parser.add_argument("--steps", type=positive_int, default=2, metavar="N", help="Steps per phase.")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=16, metavar="N", help="Batch size.")
    parser.add_argument(
        "-j", "--workers", type=natural, default=2, metavar="N", help="Number of data-loading processes."
    )
    parser.add_argument("--targeted", action="store_true", help="Measure TSC as well; the targets are created first.")
    parser.add_argument("--folder", metavar="DIR", help="Parent of the temporary folder (default: the system's).")
    return parser


def stand_in_lines(dataset: str) -> list[str]:
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

    Return the root of the images and the parent of the two list folders.
    """
    spec, lists = REGISTRY[dataset], {}
    for name in spec.list_names:
        real = Path(splits or LISTS_ROOT / spec.set_name) / name
        if real.is_file():
            lists[name] = real.read_text().splitlines()
    train_name, *others = spec.list_names
    lists.setdefault(train_name, stand_in_lines(dataset))
    for name in others:  # evaluation always uses a sample, because a full evaluation takes hours on a CPU
        lists[name] = spaced(lists.get(name) or lists[train_name], sample)
    for kind, train in (("full", lists[train_name]), ("sample", spaced(lists[train_name], sample))):
        (folder / kind).mkdir()
        for name, lines in (lists | {train_name: train}).items():
            (folder / kind / name).write_text("\n".join(lines) + "\n")
    link_images(folder / "images", {line.rsplit(None, 1)[0] for lines in lists.values() for line in lines})
    return folder / "images", folder


def spaced(lines: list[str], number: int) -> list[str]:
    """Return `number` lines at equal distances."""
    return [lines[i] for i in np.linspace(0, len(lines) - 1, number, dtype=int)]


def link_images(root: Path, paths: set[str], size: tuple[int, int] = (500, 375)) -> None:
    rng, original = np.random.default_rng(1), root / "original.jpg"
    for folder in {os.path.dirname(path) for path in paths}:  # noqa: PTH120 pathlib is too slow for half a million paths
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(paths):
        if i % LINKS_A_FILE == 0:
            original.unlink(missing_ok=True)
            coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(original, quality=90)
        os.link(original, root / path)


def watch(command: list[str], steps: int, folder: Path) -> dict:
    """Run a script for some steps, measure the memory of its processes, and interrupt it.

    Returns:
        set_up, first_step: seconds since the start of the command. steps: the same for the end of each step.
        peak: peak memory of the process in MiB. workers: MiB of each loader process, private and proportional
        (private plus its share of the shared memory).
    """
    started, seen = time.perf_counter(), {"steps": []}
    process = subprocess.Popen([*command, "-p", "1"], cwd=folder, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        now = time.perf_counter() - started
        if " steps per epoch, " in line:
            seen["set_up"] = now
        if line.startswith("Epoch: ") and "Time" in line:
            seen.setdefault("first_step", now)
            seen["steps"].append(now)
            if f"[{steps:>4}/" in line:
                seen |= {"workers": worker_memory(process.pid), "peak": peak_memory(process.pid)}
                process.send_signal(signal.SIGINT)
                break
    process.stdout.read()
    if process.wait() != 130:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}, expected 130 after an interrupt")
    return seen


def peak_memory(pid: int) -> float:
    """Return the peak memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def worker_memory(pid: int) -> list[tuple[float, float]]:
    """Return the private and proportional MiB of each child process, without the batches in shared memory."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    memory = []
    for child in children:
        private = proportional = 0
        batch = False
        for line in Path(f"/proc/{child}/smaps").read_text().splitlines():
            field, *values = line.split()
            if not field.endswith(":"):  # the first line of a mapping, which ends in its name
                batch = "/torch_" in line
            elif not batch:
                private += int(values[0]) if field in ("Private_Clean:", "Private_Dirty:") else 0
                proportional += int(values[0]) if field == "Pss:" else 0
        memory.append((private / 1024, proportional / 1024))
    return memory


def timed(command: list[str], folder: Path) -> float:
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
    """Run all measurements and print each table row when it is ready."""
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
    report(f"reading {len(labels):,} lines, CPU time, best of 3", f"{min(seconds):.2f} s")
    report("the list as arrays, one copy in all processes", f"{(paths.nbytes + labels.nbytes) / 2**20:.1f} MiB")
    command = [sys.executable, "-c", VERIFY_IMAGES, str(train_list), str(root), args.dataset]
    report(f"looking for {len(labels):,} images, with the program's start", f"{timed(command, REPOSITORY):.1f} s")

    common = f"--dataset {args.dataset} --data-root {root} -b {args.batch_size} -j {args.workers} --seed 0".split()
    pretraining = [sys.executable, str(REPOSITORY / "main_moco_supcon_imba.py"), *common, "--mlp"]
    probe = [sys.executable, str(REPOSITORY / "main_lincls_imba.py"), *common, "--pretrained", "run/last.pth.tar"]
    full, sample = ["--splits", str(lists / "full")], ["--splits", str(lists / "sample")]
    tsc = ["--targeted", "--sep_t", "--tw", "0.2"] if args.targeted else []

    report_start("stage 1", watch([*pretraining, *full, "--epochs", "1", "--run-dir", "a"], args.steps, lists))
    epochs = "2" if args.targeted else "1"
    seconds = timed([*pretraining, *sample, *tsc, "--epochs", epochs, "--run-dir", "run"], lists)
    report(
        f"stage 1 to its end on a sample, {args.steps} steps a phase{', KCL and TSC' if tsc else ''}",
        f"{seconds:.0f} s",
    )
    report("stage 1: the checkpoint", f"{(lists / 'run' / 'last.pth.tar').stat().st_size / 2**20:.0f} MiB")
    report_start("stage 2", watch([*probe, *full, "--epochs", "1", "--run-dir", "b"], args.steps, lists))
    seconds = timed([*probe, *sample, "--epochs", "1", "--run-dir", "probe"], lists)
    results = json.loads((lists / "probe" / "results.json").read_text())
    report(f"stage 2 to its end on a sample, {len(results['train_counts'])} classes", f"{seconds:.0f} s")


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
sys.exit(findings.wrong)
"""


def report(what: str, value: str) -> None:
    print(f"| {what} | {value} |", flush=True)


def report_start(stage: str, seen: dict) -> None:
    report(f"{stage}: from the command to the data and the model ready", f"{seen['set_up']:.1f} s")
    report(f"{stage}: from the command to the first step done", f"{seen['first_step']:.1f} s")
    report(f"{stage}: the process, at its peak", f"{seen['peak']:.0f} MiB")
    for number, (private, proportional) in enumerate(seen["workers"]):
        report(f"{stage}: loader process {number}, private / with its share", f"{private:.0f} / {proportional:.0f} MiB")


if __name__ == "__main__":
    main()
