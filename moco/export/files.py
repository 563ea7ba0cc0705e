"""Write an exported encoder: weights, or a program."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from moco.encoders import PROJECT_NETWORKS, get_encoder
from moco.encoders.library import TIMM
from moco.export.metadata import Metadata
from moco.export.programs import onnx_file, pt2_file, trained_network
from moco.pretrained import SAFETENSORS, checkpoint_file, load_encoder, read_state
from utils.distributed import log
from utils.errors import InputError
from utils.files import check_output, write_atomically

WEIGHTS = (".pth", ".pt", SAFETENSORS)
PROGRAMS = {".onnx": onnx_file, ".pt2": pt2_file}


def export(
    run: str, output: Path, library: str | None, arch: str | None, image_size: int | None, overwrite: bool
) -> None:
    """Write the encoder of a run to a file; the extension decides the format.

    Args:
        run: a run folder or a checkpoint.
        library: the library whose weight names are used; None: the network's own.
        arch, image_size: the network and its input size; None: those that the file stores.
        overwrite: whether to replace an existing file.

    Raises:
        InputError: a file cannot be read or written, or the network is unknown or not of this library.
    """
    source = checkpoint_file(run)
    check_output("OUT", output, overwrite, (*WEIGHTS, *PROGRAMS))
    state = read_state(source)
    arch = arch or state.get("arch")
    if arch is None:
        raise InputError(f"{source}: no architecture stored in the file. Name it with --arch")
    own_library = "timm" if arch.startswith(TIMM) else "torchvision"
    if library not in (None, own_library):
        raise InputError(f"--to {library}: {arch} is a {own_library} network, other names are not supported. Omit --to")
    image_size = image_size or trained_size(state) or 224
    if output.suffix in PROGRAMS:
        write_program(output, source, state, arch, image_size)
        return
    network = get_encoder(arch, image_size)(num_classes=1000)
    weights = load_encoder(network, source, arch, state).weights
    write_weights(output, weights, arch)
    home = "moco.encoders" if arch in PROJECT_NETWORKS else "timm" if own_library == "timm" else "torchvision.models"
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
