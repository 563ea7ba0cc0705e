"""Store finished parts in a file, so that a benchmark can continue after an interruption or on another machine."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import torch

from utils import errors
from utils.files import write_text

ROOT = Path(__file__).parent.parent.parent
CODE_PATTERNS = (
    "*.py",
    "moco/**/*.py",
    "imagenet_inat/**/*.py",
    "utils/**/*.py",
    "benchmarks/**/*.py",
    "tests/**/*.py",
)


def code_version(root: Path = ROOT) -> str:
    """Return the commit, if there is one, and a hash of the code. Uncommitted changes give a different version."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CODE_PATTERNS for path in root.glob(pattern)}):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "no-commit"
    return f"{commit}-{digest.hexdigest()[:8]}"


def machine_key() -> str:
    """Return a key from a hash of the code, the name of the GPU and the version of PyTorch.

    The commit is not part of the key, so that the results can be committed between two runs.
    """
    code = code_version().rpartition("-")[2]
    return re.sub(r"[^\w.+-]+", "_", f"{code} {torch.cuda.get_device_name()} torch {torch.__version__}")


class PartStore:
    """Finished parts in one JSON file, which maps a machine key to the lines, metrics and seconds of each part.

    Raises:
        InputError: The file is damaged.
    """

    def __init__(self, file: Path, key: str):
        self.file, self.key, self._content = file, key, {}
        try:
            self._content = json.loads(file.read_text()) if file.exists() else {}
            records = self._content.setdefault(key, {})
            self.records = {
                name: {"lines": record["lines"], "metrics": record["metrics"], "seconds": record["seconds"]}
                for name, record in records.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise errors.InputError(f"{file}: damaged ({error}). Delete it") from None

    def clear(self) -> None:
        """Forget the parts of this key."""
        self.records = {}

    def save(self, name: str, record: dict) -> None:
        """Add the record of a part and write the file."""
        self.records[name] = record
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(self._content | {self.key: self.records}, indent=2) + "\n")
