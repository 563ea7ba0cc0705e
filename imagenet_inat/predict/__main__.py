"""Predict the classes of images with a trained classifier.

Classify all images of a folder and its subfolders:
    python -m imagenet_inat.predict RUN/logistic IMAGES --output predictions.csv

Classify the test split, and print the accuracy:
    python -m imagenet_inat.predict RUN/logistic --list LISTS/custom_test.txt \\
        --data-root IMAGES --output predictions.csv

The classifier is a run folder or a checkpoint of stage 2 or of examples.cross_entropy, or a
program of moco.export (.pt2, .onnx). Images are resized and normalised as in its training.
Without --output, CSV is printed.
"""

import utils.startup  # noqa: F401, imported before the modules that take seconds to load

# isort: split

import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

from torch.utils.data import DataLoader

from imagenet_inat import datasets
from imagenet_inat.predict.classifiers import load_classifier
from imagenet_inat.predict.image_files import ImageFiles, find_images, read_list
from imagenet_inat.predict.output import CsvFormat, JsonLinesFormat
from imagenet_inat.predict.predictor import Predictor
from moco.loader import eval_transform
from utils import errors
from utils.cli.numbers import number_type, positive_int
from utils.cli.parser import Parser
from utils.devices import pick_device, usable_cores
from utils.errors import InputError
from utils.files import check_output, write_atomically
from utils.run.signals import ignore_in_worker

MAX_WORKERS = 16  # of the default of --workers
FEW_IMAGES = 64  # up to this many images, starting loader processes takes longer than reading the images


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "classifier", metavar="CLASSIFIER", help="Run folder or checkpoint with a classifier, or a .pt2 or .onnx file."
    )
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="Image files, and folders (with subfolders).")
    parser.add_argument(
        "--list",
        metavar="FILE",
        help="File of image paths, one per line, instead of IMAGES. If a label follows each path, as in a split list, "
        "the accuracy is printed.",
    )
    parser.add_argument("--data-root", default=".", metavar="DIR", help="Folder from which the paths in --list start.")
    parser.add_argument(
        "--output", metavar="FILE", help="File to write: .csv, or .jsonl for JSON lines (default: print CSV)."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the output file if it exists.")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=128, metavar="N", help="Images per batch.")
    parser.add_argument(
        "-j",
        "--workers",
        type=number_type("workers", int, lambda value: 0 <= value <= 1024, "0 to 1024"),
        metavar="N",
        help=f"Number of data-loading processes (default: the available cores, at most {MAX_WORKERS}).",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, ...; auto: a GPU if there is one.")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    output = Path(args.output) if args.output else None
    if output:
        check_output("--output", output, args.overwrite, (".csv", ".jsonl"))
    if bool(args.images) == bool(args.list):
        raise InputError("expected IMAGES or --list FILE, one of the two")
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):  # notes; stdout may receive the predictions
        classifier = load_classifier(Path(args.classifier), pick_device(args.device))
        facts = classifier.metadata
        transform = eval_transform(facts.views, facts.image_size)
        if args.list:
            flat_folder = datasets.get_spec(facts.dataset).flat_folder if facts.dataset in datasets.names() else ""
            images = read_list(Path(args.list), Path(args.data_root), facts.num_classes, flat_folder)
        else:
            images = find_images(args.images)
    workers = min(usable_cores(), MAX_WORKERS) if len(images.paths) > FEW_IMAGES else 0
    files = ImageFiles(images, transform, facts.image_size, bool(facts.as_shown))
    loader = DataLoader(
        files,
        args.batch_size,
        num_workers=workers if args.workers is None else args.workers,
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


def write(texts: Iterator[str], header: str, write_text: Callable[[str], object]) -> None:
    write_text(header)
    for text in texts:
        write_text(text)


if __name__ == "__main__":
    errors.run(main)
