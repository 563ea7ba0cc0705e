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

import utils.startup  # noqa: F401, before imports that take seconds

# isort: split

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from moco.encoders import PROJECT_NETWORKS, get_encoder
from moco.encoders.library import TIMM
from moco.export.metadata import Metadata
from moco.export.programs import onnx_file, pt2_file, trained_network
from moco.pretrained import SAFETENSORS, checkpoint_file, load_encoder, read_state
from utils import errors
from utils.cli.numbers import positive_int
from utils.cli.parser import Parser
from utils.distributed import log
from utils.files import check_output, write_atomically

WEIGHTS = (".pth", ".pt", SAFETENSORS)
PROGRAMS = {".onnx": onnx_file, ".pt2": pt2_file}


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
    source, output = checkpoint_file(args.run), Path(args.output)
    check_output("OUT", output, args.overwrite, (*WEIGHTS, *PROGRAMS))
    state = read_state(source)
    arch = args.arch or state.get("arch")
    if arch is None:
        raise errors.InputError(f"{source}: no architecture stored in the file. Name it with --arch")
    library = "timm" if arch.startswith(TIMM) else "torchvision"
    if args.to not in (None, library):
        raise errors.InputError(
            f"--to {args.to}: {arch} is a {library} network, other names are not supported. Omit --to"
        )
    image_size = args.image_size or trained_size(state) or 224
    if output.suffix in PROGRAMS:
        write_program(output, source, state, arch, image_size)
        return
    network = get_encoder(arch, image_size)(num_classes=1000)
    weights = load_encoder(network, source, arch, state).weights
    write_weights(output, weights, arch)
    home = (
        "moco.encoders" if arch in PROJECT_NETWORKS else {"torchvision": "torchvision.models", "timm": "timm"}[library]
    )
    log(f"wrote {output}: {len(weights)} tensors of {arch.removeprefix(TIMM)}, named as in {home}, no classifier")
    log(f"next: python main_lincls_imba.py --arch {arch} --pretrained {output}")


def write_weights(output: Path, weights: dict[str, Tensor], arch: str) -> None:
    weights = {key: value.contiguous() for key, value in weights.items()}
    if output.suffix == SAFETENSORS:
        data = safetensors.torch.save(weights, metadata={"arch": arch, "format": "pt"})
        write_atomically(output, lambda file: file.write(data))
    else:
        write_atomically(output, lambda file: torch.save(weights, file))


def write_program(output: Path, source: Path, state: dict, arch: str, image_size: int) -> None:
    """Export the network and write it, after a check that its outputs match the network's.

    state: entries of the checkpoint, from which the metadata is taken.
    """
    network = trained_network(source, state, arch, image_size)
    facts = {"outputs": network.output_names, "num_classes": network.num_classes}
    metadata = Metadata.of_run(state, arch=arch, image_size=image_size, **facts)
    data = PROGRAMS[output.suffix](network, image_size, metadata.to_json())
    write_atomically(output, lambda file: file.write(data))
    log(
        f"wrote {output}: {arch}, maps images (N, 3, {image_size}, {image_size}) to "
        f"{' and '.join(network.output_names)}. Checked: the outputs match the network's on the same images"
    )
    unknown = [name for name in ("views", "mean", "std") if getattr(metadata, name) is None]
    if unknown:
        log(f"note: {source} does not store {', '.join(unknown)}, so that the metadata lacks it")
    if network.num_classes and not metadata.class_names:
        log("note: the metadata has no names of classes, because the run did not know them")
    log("input: images resized and normalised as in the metadata. Classify: python -m imagenet_inat.predict")


def trained_size(state: dict) -> int | None:
    """Return the --image-size stored in a checkpoint, or None if the file does not contain it."""
    args = state.get("args")
    return args.get("image_size") if isinstance(args, dict) else None


if __name__ == "__main__":
    errors.run(main)
