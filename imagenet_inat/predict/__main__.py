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

from utils import startup  # before imports that take seconds

# isort: split

from pathlib import Path

from utils import errors
from utils.cli.numbers import number_type, positive_int
from utils.cli.parser import Parser
from utils.files import check_output

MAX_WORKERS = 16  # of the default of --workers


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
        raise errors.InputError("expected IMAGES or --list FILE, one of the two")
    with startup.slow_imports():
        from imagenet_inat.predict import run

    run.predict(
        Path(args.classifier),
        args.images,
        Path(args.list) if args.list else None,
        Path(args.data_root),
        output,
        batch_size=args.batch_size,
        workers=args.workers,
        max_workers=MAX_WORKERS,
        device=args.device,
    )


if __name__ == "__main__":
    errors.run(main)
