"""Find image files at any depth of a folder. Hidden, foreign and other files are skipped and counted."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from imagenet_inat.decoding import UNREADABLE
from utils.errors import InputError

# Files and folders of operating systems and storage boxes, in lower case. Some of them contain previews of the images.
FOREIGN = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("lost+found", "__pycache__", "@eadir", "#recycle"),
}
# Formats that Pillow recognises, but that are not pictures, or need another program.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Formats of files without extension: those that are recognised reliably by their first bytes.
BY_CONTENT = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


def is_hidden_or_system(name: str) -> bool:
    """Return whether a file or folder of this name is hidden (`._x.jpg`, `.ipynb_checkpoints`) or a system's."""
    return (name.startswith(".") and name != ".") or name.casefold() in FOREIGN


def image_suffixes() -> set[str]:
    """Return the extensions of the pictures that Pillow can open, in lower case."""
    Image.init()
    formats = {*Image.OPEN, "MPO"} - NOT_PICTURES  # Pillow opens MPO as JPEG
    return {suffix for suffix, name in Image.registered_extensions().items() if name in formats}


class ImageSearch:
    """A search below a root. Links are followed, but a folder is read once per class, so that links cannot loop.

    Attributes:
        skipped: number of skipped files and folders by reason.
    """

    def __init__(self, root: Path):
        self.root, self.skipped, self.suffixes = root, Counter(), image_suffixes()
        real = Path(os.path.realpath(root))
        self.outer = {_identity(folder) for folder in (real, *real.parents) if folder.is_dir()}

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of the visible subfolders, sorted. Raise InputError if the folder cannot be read."""
        names = []
        for entry in self._visible_entries(folder):
            if _holds(entry.is_dir):
                names.append(entry.name)
            else:
                reason = self._reason_to_skip(entry)
                self.skipped[reason or "outside class folders"] += 1
        return names

    def images_below(self, folder: str) -> list[str]:
        """Return the images at any depth below root/folder, sorted, as paths below the root.

        The folder may not exist. Raise InputError if it, or a folder below it, cannot be read.
        """
        if not (self.root / folder).is_dir():
            return []
        parents = {_identity(self.root / parent) for parent in Path(folder).parents}
        return list(self._walk(folder, {*self.outer, *parents, _identity(self.root / folder)}))

    def summary(self) -> str:
        """Return how many files and folders were skipped, and why, such as "3 (2 .txt, 1 hidden or system)"."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.most_common())
        return f"{self.skipped.total():,} ({reasons})" if reasons else "0"

    def _walk(self, folder: str, visited: set[tuple[int, int]]) -> Iterator[str]:
        for entry in self._visible_entries(folder):
            path = f"{folder}/{entry.name}"
            if not _holds(entry.is_dir):
                if reason := self._reason_to_skip(entry):
                    self.skipped[reason] += 1
                else:
                    yield path
            elif (identity := _identity(self.root / path)) in visited:
                self.skipped["links to a folder that was already read"] += 1
            else:
                visited.add(identity)
                yield from self._walk(path, visited)

    def _visible_entries(self, folder: str) -> list[os.DirEntry]:
        """Return the entries that are not hidden or foreign, sorted by name."""
        try:
            with os.scandir(self.root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"{self.root / folder}: cannot be read ({error.strerror}); expected a folder of class folders"
            ) from None
        visible = [entry for entry in found if not is_hidden_or_system(entry.name)]
        self.skipped += Counter({"hidden or system": len(found) - len(visible)})
        return visible

    def _reason_to_skip(self, entry: os.DirEntry) -> str:
        """Return why a file is not used as an image, or ""."""
        if not _holds(entry.is_file):
            return "broken links" if entry.is_symlink() else "special files"
        suffix = Path(entry.name).suffix.lower()
        if suffix in self.suffixes or (not suffix and _opens(entry.path)):
            return ""
        return suffix or "without extension"


def _holds(is_kind: Callable[[], bool]) -> bool:
    """Return is_kind(), a method of os.DirEntry; False for a link that leads back to itself, which has no kind."""
    try:
        return is_kind()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    """Return what identifies a folder, whatever the links that lead to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _opens(path: str) -> bool:
    """Return whether a file has the header of a picture."""
    try:
        with Image.open(path, formats=BY_CONTENT):
            return True
    except UNREADABLE:
        return False
