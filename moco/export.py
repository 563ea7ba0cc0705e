"""The encoder of a run alone, as a plain state dict that torchvision's or timm's network of that name loads.

    python -m moco.export RUN encoder.pth
    python -m moco.export RUN/checkpoint_0200.pth.tar encoder.safetensors

The key encoder, the queue, the head and the optimiser stay behind; only the classifier is missing in
what is written, whose names are the library's:
    model.load_state_dict(torch.load("encoder.pth", weights_only=True), strict=False)
"""

from pathlib import Path

import safetensors.torch
import torch

from moco.encoders import OWN, get_encoder
from moco.encoders.library import TIMM
from moco.pretrained import SAFETENSORS, load_encoder, read_encoder
from utils import errors
from utils.distributed import say
from utils.files import write_whole
from utils.parser import Parser, positive_int
from utils.run import checkpoint

FORMATS = (".pth", ".pt", SAFETENSORS)


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder (its last.pth.tar) or a checkpoint of either stage")
    parser.add_argument("output", metavar="OUT", help="the file to write: .safetensors, .pth or .pt")
    parser.add_argument(
        "--to",
        choices=["torchvision", "timm"],
        help="whose names (default, and so far alone: where the network is from)",
    )
    parser.add_argument("-a", "--arch", help="the architecture, where the file does not name it")
    parser.add_argument(
        "--image-size", type=positive_int, help="that a ViT was trained with, where the file does not say it (224)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    source = Path(args.run) / checkpoint.LAST if Path(args.run).is_dir() else Path(args.run)
    output = Path(args.output)
    if output.suffix not in FORMATS:
        raise errors.InputError(f"{output}: unknown ending, expected one of {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise errors.InputError(f"{output.parent}: no such folder")
    if output.exists() and not args.overwrite:
        raise errors.InputError(f"{output}: is there already; --overwrite replaces it")
    weights, arch = read_encoder(source)
    arch = args.arch or arch
    if arch is None:
        raise errors.InputError(f"{source}: does not name its architecture; give it with --arch")
    library = "timm" if arch.startswith(TIMM) else "torchvision"
    if args.to not in (None, library):
        raise errors.InputError(f"--to {args.to}: {arch} is {library}'s, and has no other names; leave --to out")
    # Only to see whether it fits: nothing may be left over, only `fc` be missing.
    load_encoder(get_encoder(arch, args.image_size or trained_size(source) or 224)(num_classes=1000), source, arch)
    weights = {key: value.contiguous() for key, value in weights.items()}
    if output.suffix == SAFETENSORS:
        data = safetensors.torch.save(weights, metadata={"arch": arch, "format": "pt"})
        write_whole(output, lambda file: file.write(data))
    else:
        write_whole(output, lambda file: torch.save(weights, file))
    home = "moco.encoders" if arch in OWN else {"torchvision": "torchvision.models", "timm": "timm"}[library]
    say(f"wrote {output}: all {len(weights)} tensors of {home}' {arch.removeprefix(TIMM)} but its classifier's")
    say(f"next, for example: python main_lincls_imba.py --arch {arch} --pretrained {output}")


def trained_size(source: Path) -> int | None:
    """The --image-size of a run's checkpoint; None where it is none, or of before that was kept."""
    state = {} if source.suffix == SAFETENSORS else checkpoint.read(source)
    about = state.get("args")
    return about.get("image_size") if isinstance(about, dict) else None


if __name__ == "__main__":
    errors.run(main)
