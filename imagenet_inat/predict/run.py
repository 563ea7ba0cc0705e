"""Predict the classes of images and write or print them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

from torch.utils.data import DataLoader

from imagenet_inat import datasets
from imagenet_inat.predict.classifiers import load_classifier
from imagenet_inat.predict.image_files import ImageFiles, ImageList, find_images, read_list
from imagenet_inat.predict.output import CsvFormat, JsonLinesFormat
from imagenet_inat.predict.predictor import Predictor
from moco.export.metadata import Metadata
from moco.loader import eval_transform
from utils.devices import pick_device, usable_cores
from utils.files import write_atomically
from utils.run.signals import ignore_in_worker

FEW_IMAGES = 64  # up to this many images, starting loader processes takes longer than reading the images


def predict(
    classifier_path: Path,
    image_paths: list[str],
    list_file: Path | None,
    data_root: Path,
    output: Path | None,
    batch_size: int,
    workers: int | None,
    max_workers: int,
    device: str,
) -> None:
    """Classify images and write the predictions.

    Args:
        classifier_path: run folder, checkpoint or program.
        image_paths: image files and folders. list_file: list to use instead, with paths relative to data_root.
        output: the file, .csv or .jsonl; None: print CSV.
        workers: loader processes; None: one per available core, at most `max_workers`.

    Raises:
        InputError: the classifier, list or device cannot be used, or no image exists or can be classified.
    """
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):  # notes; stdout may receive the predictions
        classifier = load_classifier(classifier_path, pick_device(device))
        facts = classifier.metadata
        transform = eval_transform(facts.views, facts.image_size)
        images = _read(facts, list_file, data_root) if list_file else find_images(image_paths)
    if workers is None:
        workers = min(usable_cores(), max_workers) if len(images.paths) > FEW_IMAGES else 0
    loader = DataLoader(
        ImageFiles(images, transform, facts.image_size, bool(facts.as_shown)),
        batch_size,
        num_workers=workers,
        pin_memory=classifier.device.type == "cuda",
        worker_init_fn=ignore_in_worker,
    )
    predictor = Predictor(classifier, images, loader)
    style = (
        JsonLinesFormat()
        if output and output.suffix == ".jsonl"
        else CsvFormat(facts.num_classes, images.labels is not None)
    )
    with redirect_stdout(sys.stderr), classifier.precision():
        texts = (style.rows(batch) for batch in predictor)
        if output:
            write_atomically(output, lambda file: write(texts, style.header(), lambda text: file.write(text.encode())))
        else:
            write(texts, style.header(), stdout.write)
    predictor.report(output)


def _read(facts: Metadata, list_file: Path, data_root: Path) -> ImageList:
    """Read a list of images, whose paths start from data_root. facts: the metadata of the classifier."""
    flat_folder = datasets.get_spec(facts.dataset).flat_folder if facts.dataset in datasets.names() else ""
    return read_list(list_file, data_root, facts.num_classes, flat_folder)


def write(texts: Iterator[str], header: str, write_text: Callable[[str], object]) -> None:
    write_text(header)
    for text in texts:
        write_text(text)
