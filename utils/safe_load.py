"""Checks for files from untrusted sources, before they are loaded and before their values are used."""

import _codecs
import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import InputError
from utils.files import check_regular

MAX_COUNT = 2**31  # upper bound of counts: epochs, steps, images of a class
MAX_NUMBER = 1e100  # upper bound of numbers, which can still be plotted
MAX_DEPTH = 20  # maximum nesting of plain data
# Objects that other tools store beside the weights: arguments, NumPy numbers, and the log of mmengine.
IGNORED = (
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib._local.PosixPath"),
    *("numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    "mmengine.logging.history_buffer.HistoryBuffer",
)


class Ignored:
    """The place of an object in a checkpoint. It accepts any arguments and keeps nothing, so that no code runs."""

    def __new__(cls, *args: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _placeholder(name: str) -> type[Ignored]:
    """Return a class that the unpickler of torch uses instead of the class or function of this name."""
    module, _, own_name = name.rpartition(".")
    return type(own_name, (Ignored,), {"__module__": module})


# Python 2's way to store bytes, which NumPy uses. PyTorch 2.4 does not allow it by itself; it only encodes a text.
PLACEHOLDERS = [*(_placeholder(name) for name in IGNORED), _codecs.encode]


@contextmanager
def placeholders_allowed() -> Iterator[None]:
    """Let torch.load(weights_only=True) replace the objects of IGNORED by placeholders."""
    import torch  # here, so that a command line is read without PyTorch, which takes seconds to import

    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(PLACEHOLDERS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float of moderate size."""
    return type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER


def are_texts(value: object) -> bool:
    """Whether a value is a list of strings, such as the names of classes."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def is_plain(value: object) -> bool:
    """Whether a value can be an argument: None, a bool, a number, a string, or a list of these."""
    if isinstance(value, list):
        return all(not isinstance(entry, list) and is_plain(entry) for entry in value)
    return (
        value is None or isinstance(value, bool) or is_number(value) or (isinstance(value, str) and "\0" not in value)
    )


def parse_json(text: str | bytes) -> object:
    """Parse JSON; NaN and infinities become None. Raise ValueError if the text is not JSON."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, otherwise: str = "not readable") -> dict:
    """Return the object in a JSON file.

    Args:
        otherwise: beginning of the message if the file does not exist.

    Raises:
        InputError: the file cannot be read, or does not contain a JSON object.
    """
    check_regular(path)
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{otherwise}: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: contains a {type(content).__name__}, expected a JSON object")
    return content


def archive_problem(path: str | Path) -> str | None:
    """Return why an archive (.npz or torch.save) is invalid, if it claims to contain more bytes than it has, else None.

    Both formats are written without compression, so the contents cannot be larger than the file.
    """
    with suppress(zipfile.BadZipFile, OSError):  # the caller reports these when it reads the file
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                claimed, size = sum(entry.file_size for entry in archive.infolist()), Path(path).stat().st_size
            if claimed > size:
                return f"claims to contain {claimed} bytes but has {size}; it was not written by this project"
    return None


def size_problem(state: object, size: int) -> str | None:
    """Return why data cannot come from a file of `size` bytes, or None if it can.

    In a malicious file, a tensor may claim more elements than it stores, and lists may contain each other.
    """
    import torch  # see placeholders_allowed

    level, seen = [state], set()
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if torch.is_tensor(value) and value.numel() * value.element_size() > size:
                return f"a tensor of shape {tuple(value.shape)} is larger than the file"
            inner += _children(value)
        level = inner
    return f"its entries are nested more than {MAX_DEPTH} deep" if level else None


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple | set | frozenset) else ()
