"""Export of a trained network as a program that runs without this project: ONNX, or PyTorch's torch.export."""

import importlib.util
import warnings
from collections.abc import Callable
from inspect import signature
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.builder import l2_normalise
from moco.encoders import get_encoder
from moco.export.metadata import KEY
from moco.heads.classifiers import fitted_classifier, projection_like
from moco.pretrained import QUERY_PREFIX, is_stage1, largest_state_dict, load_encoder
from utils.errors import InputError, first_line
from utils.run import checkpoint

IMAGES, FEATURES, LOGITS, EMBEDDING = "images", "features", "logits", "embedding"
ONNX_LIMIT = 2**31 - 2**20  # bytes of weights: the 2 GiB of an ONNX file, minus 1 MiB for the graph
TOLERANCE = 1e-3  # largest allowed difference, relative to the largest output; sums may be in another order


class ExportNetwork(nn.Module):
    """Network that maps images (N, 3, S, S) to the encoder's features (N, d) and to the output of its head, if any.

    For stage 1, the head is the projection and its output `embedding` (N, D) has unit length. For stage 2, the head is
    the classifier and its output is `logits` (N, C).
    """

    def __init__(self, network: nn.Module, head: nn.Module | None, head_output: str):
        super().__init__()
        network.fc = nn.Identity()
        self.encoder, self.head, self.head_output = network, head, head_output

    @property
    def output_names(self) -> list[str]:
        return [FEATURES, self.head_output] if self.head else [FEATURES]

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the classifier, or None if the head is not a classifier."""
        # A classifier on the projected features contains the classifier proper.
        return (
            len(getattr(self.head, "classifier", self.head).bias) if self.head_output == LOGITS and self.head else None
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(images)
        if self.head is None:
            return (features,)
        out = self.head(features)
        return features, l2_normalise(out) if self.head_output == EMBEDDING else out


def trained_network(source: Path, state: dict, arch: str, image_size: int) -> ExportNetwork:
    """Return the network of a checkpoint of either stage, or of an encoder file, on the CPU and in evaluation mode.

    Args:
        source: The file. state: Its entries.

    Raises:
        InputError: See `get_encoder` and `load_encoder`; or the head is not one of this project's.
    """
    weights = largest_state_dict(state, source)
    head_output = EMBEDDING if is_stage1(weights) else LOGITS
    fc = {key.removeprefix(QUERY_PREFIX): value for key, value in weights.items()}
    fc = {key: value for key, value in fc.items() if key.startswith("fc.")}
    network = get_encoder(arch, image_size)(num_classes=2)
    load_encoder(network, source, arch, state)
    head = None
    if fc:
        head = projection_like(fc) if head_output == EMBEDDING else fitted_classifier(fc, source)
        checkpoint.load_weights(head, {key.removeprefix("fc."): value for key, value in fc.items()}, source)
    return ExportNetwork(network, head, head_output).float().eval().requires_grad_(False)


def as_program(network: ExportNetwork, image_size: int) -> torch.export.ExportedProgram:
    """Export the network for batches of any size, with images of this size.

    Raises:
        InputError: PyTorch cannot trace the network.
    """
    sizes = {IMAGES: {0: torch.export.Dim("batch", min=1)}}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path is an operator that other runtimes lack
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the tracing; the result is checked later
            return torch.export.export(network, (_images(2, image_size),), dynamic_shapes=sizes)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"PyTorch cannot export this network ({first_line(error)}). Write weights instead, such as .pth"
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def pt2_file(network: ExportNetwork, image_size: int, metadata: str = "") -> bytes:
    """Return the content of a .pt2 file. `torch.export.load(FILE).module()(images)` computes the outputs.

    metadata: see `Metadata.to_json`.

    Raises:
        InputError: See `as_program` and `_check`.
    """
    file = BytesIO()
    program = as_program(network, image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.4 warns about its own file format
        torch.export.save(program, file, extra_files={f"{KEY}.json": metadata})
        loaded = torch.export.load(BytesIO(file.getvalue())).module()
    _check(network, loaded, image_size, "the exported program")
    return file.getvalue()


def onnx_file(network: ExportNetwork, image_size: int, metadata: str = "") -> bytes:
    """Return the content of an ONNX file, with inputs and outputs named as IMAGES and `network.output_names`.

    metadata: see `Metadata.to_json`.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is missing, PyTorch is too old, or the network is too large. See
            also `as_program` and `_check`.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
        raise InputError(f".onnx: {', '.join(missing)} not installed. Run pip install -r requirements-extra.txt")
    if "dynamic_shapes" not in signature(torch.onnx.export).parameters:
        raise InputError(f".onnx: found PyTorch {torch.__version__}, expected 2.5 or newer. Write .pt2 instead")
    if (size := sum(weight.nbytes for weight in network.state_dict().values())) > ONNX_LIMIT:
        raise InputError(
            f".onnx: found {size / 1e6:.1f} MB of weights, expected at most {ONNX_LIMIT / 1e6:.0f}. Write .pt2 instead"
        )
    import onnxruntime

    program = torch.onnx.export(
        as_program(network, image_size),
        input_names=[IMAGES],
        output_names=network.output_names,
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, metadata
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in session.run(None, {IMAGES: images.numpy()})]

    _check(network, run, image_size, "ONNX Runtime")
    return data


def _images(count: int, image_size: int) -> Tensor:
    return torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _check(network: ExportNetwork, run: Callable, image_size: int, program_name: str) -> None:
    """Compare the program with the network on the same images. The batch is larger than the traced one.

    Raises:
        InputError: The outputs differ by more than TOLERANCE.
    """
    images = _images(3, image_size)
    for name, ours, theirs in zip(network.output_names, network(images), run(images), strict=True):
        error = (ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-12)
        if not error < TOLERANCE:
            raise InputError(
                f"{program_name}: its {name} differ from the network's by {error:.1e} of the largest value. "
                "Nothing was written"
            )
