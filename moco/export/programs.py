"""A trained network as a program that runs without this project: ONNX, or PyTorch's own exported program."""

import importlib.util
import warnings
from collections.abc import Callable
from inspect import signature
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.builder import unit
from moco.encoders import get_encoder
from moco.heads.classifiers import fitted_classifier, projection_like
from moco.pretrained import QUERY, load_encoder, read_weights
from utils.errors import InputError, first_line
from utils.run import checkpoint

IMAGES, FEATURES, LOGITS, EMBEDDING = "images", "features", "logits", "embedding"
ONNX_LIMIT = 2**31 - 2**20  # bytes of one file, less the program's own
TOLERANCE = 1e-3  # between a program and its network, of outputs' largest value: the order of sums, no more


class Outputs(nn.Module):
    """Images (N, 3, S, S) to the encoder's features (N, d), and what the head makes of them, if there is one.

    The head: of stage 1 the projection, whose `embedding` (N, D) has unit length; of stage 2 the classifier, whose
    `logits` are (N, C).
    """

    def __init__(self, network: nn.Module, head: nn.Module | None, name: str):
        super().__init__()
        network.fc = nn.Identity()
        self.encoder, self.head, self.name = network, head, name

    @property
    def names(self) -> list[str]:
        return [FEATURES, self.name] if self.head else [FEATURES]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(images)
        if self.head is None:
            return (features,)
        out = self.head(features)
        return features, unit(out) if self.name == EMBEDDING else out


def trained_network(source: Path, arch: str, image_size: int) -> Outputs:
    """Of a checkpoint of either stage, or an encoder's file, on the CPU and in evaluation mode.

    Raises:
        InputError: as `get_encoder` and `load_encoder`; a head that is none of this project's.
    """
    weights, _ = read_weights(source)
    name = EMBEDDING if any(key.startswith(QUERY) for key in weights) else LOGITS
    fc = {key.removeprefix(QUERY): value for key, value in weights.items()}
    fc = {key: value for key, value in fc.items() if key.startswith("fc.")}
    network = get_encoder(arch, image_size)(num_classes=2)
    load_encoder(network, source, arch)
    head = None
    if fc:
        head = projection_like(fc) if name == EMBEDDING else fitted_classifier(fc, source)
        checkpoint.load_into(head, {key.removeprefix("fc."): value for key, value in fc.items()}, source)
    return Outputs(network, head, name).float().eval().requires_grad_(False)


def as_program(network: Outputs, image_size: int) -> torch.export.ExportedProgram:
    """For any number of images of that size.

    Raises:
        InputError: PyTorch cannot follow what the network does.
    """
    sizes = {IMAGES: {0: torch.export.Dim("batch", min=1)}}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # an operator of PyTorch's alone
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how PyTorch goes about it; what comes out is checked
            return torch.export.export(network, (_images(2, image_size),), dynamic_shapes=sizes)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"this network cannot be exported as a program ({first_line(error)})") from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def pt2_file(network: Outputs, image_size: int) -> bytes:
    """`torch.export.load(FILE).module()(images)` gives its outputs."""
    file = BytesIO()
    program = as_program(network, image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.4's own, of how it reads what is written here
        torch.export.save(program, file)
        loaded = torch.export.load(BytesIO(file.getvalue())).module()
    _check(network, loaded, image_size, "the exported program")
    return file.getvalue()


def onnx_file(network: Outputs, image_size: int) -> bytes:
    """ONNX, its input and outputs by the names above.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is missing, PyTorch is too old or the network too large; as
            `as_program`.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
        raise InputError(f".onnx: needs {', '.join(missing)}, not installed; pip install -r requirements-extra.txt")
    if "dynamic_shapes" not in signature(torch.onnx.export).parameters:
        raise InputError(f".onnx: needs PyTorch 2.5 or newer, found {torch.__version__}; .pt2 is written by this one")
    if (size := sum(weight.nbytes for weight in network.state_dict().values())) > ONNX_LIMIT:
        raise InputError(
            f".onnx: {size / 1e6:.1f} MB of weights, an ONNX file holds {ONNX_LIMIT / 1e6:.0f}; write .pt2 instead"
        )
    import onnxruntime

    program = torch.onnx.export(
        as_program(network, image_size), input_names=[IMAGES], output_names=network.names, dynamo=True, verbose=False
    )
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in session.run(None, {IMAGES: images.numpy()})]

    _check(network, run, image_size, "ONNX Runtime")
    return data


def _images(count: int, image_size: int) -> Tensor:
    return torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _check(network: Outputs, run: Callable, image_size: int, who: str) -> None:
    """Run both on the same images, more than the program was traced with.

    Raises:
        InputError: the program computes another thing.
    """
    images = _images(3, image_size)
    for name, ours, theirs in zip(network.names, network(images), run(images), strict=True):
        error = (ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-12)
        if not error < TOLERANCE:
            raise InputError(f"{who} computes other {name} than the network, by {error:.1e} of their largest value")
