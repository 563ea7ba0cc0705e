"""Create targets or read them from a file, and report how evenly they are spread (target_generation.py)."""

from pathlib import Path

from torch import Tensor

from moco.targets import optimize
from moco.targets.bounds import format_quality, target_quality
from moco.targets.defaults import DIM
from moco.targets.files import check_targets, read_targets, target_file_name
from moco.targets.generation import generate_file
from utils.devices import check_memory, pick_device
from utils.errors import InputError, print_stderr, printable
from utils.files import check_output, format_json
from utils.openmp import SpinGuard


def create(
    output: str | None, num_classes: int, dim: int, device: str, overwrite: bool, **search: object
) -> tuple[Tensor, Path]:
    """Create targets and write them to a file. Return the targets, (C, D), and the file.

    Args:
        output: the file; None: its default name, in the current folder.
        device: --device. search: keywords of `generate`.

    Raises:
        InputError: the memory is too small, the device is not available, or the file cannot be written.
    """
    history_bytes = 2 * optimize.HISTORY * 4 * num_classes * dim  # of L-BFGS, in float32
    check_memory(f"--num-classes {num_classes} --dim {dim}", "the search", history_bytes, "use smaller values")
    file = Path(output or target_file_name(num_classes, dim))
    check_output("--output", file, overwrite)
    search["device"] = pick_device(device)
    with SpinGuard():
        return generate_file(file, num_classes, dim, keep_interrupted=True, **search), file


def read_checked(file: str, num_classes: int | None, dim: int | None) -> Tensor:
    """Read the targets of a file and check their values. Also check C and D, if the command line sets them."""
    targets = read_targets(file)
    # An array that is not 2-D has no C and D. The error message then names the default size as the expected one.
    rows, columns = tuple(targets.shape) if targets.ndim == 2 else (1000, DIM)
    check_targets(targets, num_classes or rows, dim or columns, source=f"targets {file}")
    return targets


def report(targets: Tensor, file: Path, temperature: float, plot: str | None, as_json: bool) -> None:
    """Print the quality report. With --plot, also plot the cosines."""
    if len(targets) < 2:
        raise InputError(f"{file}: holds one target, expected 2 or more to report cosines")
    facts = {"file": str(file)} | target_quality(targets.numpy(), temperature)
    print(format_json(facts, indent=2) if as_json else printable(format_quality(facts)), flush=True)
    if plot:
        from moco.targets.picture import plot_targets  # matplotlib takes a second to import

        plot_targets(targets.numpy(), facts, Path(plot))
        print_stderr(f"wrote {plot}")
    print_stderr(f"next: train TSC with --targeted --moco-dim {targets.shape[1]} --targets {file}")
