"""Store finished parts on disk, per code version, GPU and PyTorch version, so that a second start skips them."""

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
CODE = ("*.py", "moco/**/*.py", "imagenet_inat/**/*.py", "utils/**/*.py", "benchmarks/**/*.py", "tests/**/*.py")


def code_version(root: Path = ROOT) -> str:
    """Return the commit, if any, and a hash of the code, so that uncommitted changes are a different version."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CODE for path in root.glob(pattern)}):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "no-commit"
    return f"{commit}-{digest.hexdigest()[:8]}"


def machine_key() -> str:
    """Return a folder name made of the code version, GPU and PyTorch version."""
    words = f"{code_version()} {torch.cuda.get_device_name()} torch {torch.__version__}"
    return re.sub(r"[^\w.+-]+", "_", words)


class Kept:
    """Finished parts, one JSON file each, with lines, facts and seconds. The folder is created with the first part."""

    def __init__(self, folder: Path):
        self.folder = folder

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self, name: str) -> dict | None:
        """Return the saved record of a part, or None.

        Raises:
            InputError: the file is damaged.
        """
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        try:
            record = json.loads(file.read_text())
            return {"lines": record["lines"], "facts": record["facts"], "seconds": record["seconds"]}
        except (ValueError, TypeError, KeyError) as error:
            raise errors.InputError(f"{file}: damaged ({error}); delete it, or add --fresh") from None

    def save(self, name: str, record: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{name}.json", json.dumps(record, indent=2) + "\n")
