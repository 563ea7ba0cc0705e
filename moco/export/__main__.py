"""Export a run's encoder as weights for torchvision or timm, or as an ONNX or PyTorch program.

Write the weights of the encoder under the names of its library, without the head:
    python -m moco.export RUN encoder.pth
    python -m moco.export RUN/checkpoint_0200.pth.tar encoder.safetensors

Load them into a torchvision or timm network; only its classifier keeps its own weights:
    model.load_state_dict(torch.load("encoder.pth", weights_only=True), strict=False)

Write a program that maps images to features and, for a stage-2 checkpoint, to logits:
    python -m moco.export PROBE/model_best.pth.tar classifier.onnx
    python -m moco.export RUN encoder.pt2
Load it with onnxruntime.InferenceSession(FILE), or torch.export.load(FILE).module(). A
program also stores image size, mean, std, the resize and the names of the classes.
"""

from utils import startup  # before imports that take seconds

# isort: split

from pathlib import Path

from utils import errors
from utils.cli.numbers import positive_int
from utils.cli.parser import Parser


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="Run folder (its last.pth.tar) or checkpoint of either stage.")
    parser.add_argument(
        "output",
        metavar="OUT",
        help="File to write: weights (.safetensors, .pth, .pt) or a program (.onnx, .pt2).",
    )
    parser.add_argument(
        "--to",
        choices=["torchvision", "timm"],
        help="Library whose weight names are used; only the network's own library is supported.",
    )
    parser.add_argument("-a", "--arch", help="Architecture, if the file does not name it.")
    parser.add_argument(
        "--image-size",
        type=positive_int,
        metavar="PX",
        help="Input size, for programs and ViTs (default: the file's, or 224).",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace OUT if it exists.")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    with startup.slow_imports():
        from moco.export import files

    files.export(args.run, Path(args.output), args.to, args.arch, args.image_size, args.overwrite)


if __name__ == "__main__":
    errors.run(main)
