"""Store finished parts on disk, so that an interrupted benchmark can continue."""

import hashlib
import json
import re
import shutil
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
    """Return a folder name from the versions of code and PyTorch and the name of the GPU."""
    key = f"{code_version()} {torch.cuda.get_device_name()} torch {torch.__version__}"
    return re.sub(r"[^\w.+-]+", "_", key)


class PartStore:
    """Finished parts, one JSON file each with lines, metrics and seconds. `save` creates the folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self, name: str) -> dict | None:
        """Return the stored record of a part, or None.

        Raises:
            InputError: The file is damaged.
        """
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        try:
            record = json.loads(file.read_text())
            return {"lines": record["lines"], "metrics": record["metrics"], "seconds": record["seconds"]}
        except (ValueError, TypeError, KeyError) as error:
            raise errors.InputError(f"{file}: damaged ({error}). Delete it, or add --fresh") from None

    def save(self, name: str, record: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{name}.json", json.dumps(record, indent=2) + "\n")
