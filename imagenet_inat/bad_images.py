"""Training images that could not be read and were passed over, with --on-bad-image skip: counted and listed."""

from pathlib import Path

import torch

from imagenet_inat.datasets import LongTailDataset
from utils import distributed
from utils.errors import InputError, one_line
from utils.files import write_text
from utils.logger import say

FILE = "bad_images.txt"


def report_bad_images(dataset: LongTailDataset, run_dir: Path, device: torch.device) -> None:
    """Say how many images have been passed over so far, on all ranks, and write which into bad_images.txt.

    Nothing is said or written while there is none. All ranks call it, after an epoch.
    """
    if dataset.passed_over is None:
        return
    found = distributed.sum_over_ranks(dataset.passed_over.int().to(device)).nonzero()[:, 0].tolist()
    if not found or not distributed.is_main():
        return
    file = run_dir / FILE
    before = file.read_text().splitlines() if file.exists() else []  # of a run that goes on
    lines = sorted({*before, *(_what_is_wrong(dataset, index) for index in found)})
    if lines != before:
        write_text(file, "".join(f"{line}\n" for line in lines))
        say(f"note: {len(lines)} unreadable images passed over so far, others of their class taken instead: {file}")


def _what_is_wrong(dataset: LongTailDataset, index: int) -> str:
    try:
        dataset.read(index)
    except InputError as error:
        return one_line(error)
    return f"{dataset.list_file}:{index + 1}: could not be read then, can be now"
