"""An encoder's weights out of the files the field exchanges: ours, the release's, MoCo's, torchvision's."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from utils.errors import InputError
from utils.run import checkpoint

QUERY = "encoder_q."
SAFETENSORS = ".safetensors"


def read_encoder(path: str | Path) -> tuple[dict[str, Tensor], str | None]:
    """The encoder in a file, without its head, and the file's own word for the architecture, if it says one:

    - a stage-1 checkpoint of this project, of the release, or of MoCo v1 and v2: the
      query encoder, `encoder_q.*`, with or without the `module.` prefix;
    - a plain state dict (torchvision's, `moco.export`'s), bare, under `state_dict`,
      or as .safetensors; a stage-2 checkpoint is one too.

    The head, `fc.*`, is the projection, or another data set's classifier.

    Raises:
        InputError: as `checkpoint.read`; no encoder inside.
    """
    state = _read_safetensors(Path(path)) if Path(path).suffix == SAFETENSORS else checkpoint.read(path)
    if "state_dict" not in state:
        state = {"state_dict": state}
    checkpoint.check_tensors(state["state_dict"], path)
    weights = checkpoint.unpacked(state)
    if any(key.startswith(QUERY) for key in weights):
        weights = {key.removeprefix(QUERY): value for key, value in weights.items() if key.startswith(QUERY)}
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    if not weights:
        raise InputError(f"checkpoint {path}: has no encoder, expected encoder_q.* or a network's plain state dict")
    return weights, state.get("arch")


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            return {"state_dict": weights, **(file.metadata() or {})}
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise InputError(f"checkpoint {path}: not a safetensors file ({error})") from None


def load_encoder(model: nn.Module, path: str | Path, arch: str) -> None:
    """Load the encoder in a file, all but its head, into a network with a new `fc`.

    Raises:
        InputError: as `read_encoder` and `checkpoint.load_into`; another architecture.
    """
    weights, found = read_encoder(path)
    if found not in (None, arch):
        raise InputError(f"checkpoint {path}: trained with --arch {found}, found --arch {arch}")
    checkpoint.load_into(model, weights, path, missing={"fc.weight", "fc.bias"})
