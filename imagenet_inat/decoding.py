"""Decode an image file to RGB pixels of 8 bits."""

import stat
import warnings
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

from imagenet_inat.sets import idx
from utils.distributed import log

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for a bad image
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about tags, which training does not read
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # open_rgb logs a note with the file's name
# An RGB image is shown as it is stored unless its Image.info has one of these keys. (Pillow turns TIFF files itself.)
CHANGES_DISPLAY = frozenset(("transparency", "exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"))
# EXIF orientation -> how to turn the stored pixels upright. Pillow's ImageOps.exif_transpose also encodes the EXIF data
# again, which costs time and fails on damaged data.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# Whether a note of each kind has been logged, in memory that forked loader processes share.
_noted = {kind: RawValue("b", False) for kind in ("huge", "dark")}


def open_rgb(root: Path, path: str, as_shown: bool = False) -> Image.Image:
    """Decode the RGB image at a list's path, which is an image file or leads into an IDX file.

    Args:
        as_shown: turn the image upright by its EXIF orientation, and lay transparent parts over white, as viewers do.
            The authors' code ignores both.

    Raises:
        InputError: the IDX file is invalid, or does not hold this image.
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: Pillow cannot read the file, or the range of its
            values is not known (see `scale_to_bytes`).
    """
    if idx.is_inside(path):
        return Image.fromarray(idx.image(root, path)).convert("RGB")
    with _open_file(root / path) as image:
        return _load_rgb(image, as_shown)


def open_rgb_and_kinds(root: Path, path: str, as_shown: bool = False) -> tuple[Image.Image, list[str]]:
    """Decode an image once, and also return what distinguishes it from an ordinary RGB or grey one: ["16-bit"], …

    For the arguments and errors, see `open_rgb`.
    """
    if idx.is_inside(path):
        return open_rgb(root, path), []
    with _open_file(root / path) as image:
        kinds = _kinds(image)
        return _load_rgb(image, as_shown), kinds


def _open_file(file: Path) -> Image.Image:
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError("not a regular file")  # reading a pipe or /dev/zero might never end
    return Image.open(file)


def _load_rgb(image: Image.Image, as_shown: bool) -> Image.Image:
    if _is_huge(image):
        size = f"{image.width} × {image.height} pixels"
        _note_once("huge", f"{image.filename}: {size}, slow to read and large in memory; make such images smaller")
    image.load()
    if image.mode == "RGB" and (not as_shown or CHANGES_DISPLAY.isdisjoint(image.info)):
        return image
    rgb = _over_white(image) if as_shown and image.has_transparency_data else _to_rgb(image)
    turn = UPRIGHT.get(_orientation(image)) if as_shown else None
    return rgb if turn is None else rgb.transpose(turn)


def _kinds(image: Image.Image) -> list[str]:
    """Return the kinds of an image before it is loaded, because loading removes some facts about the file."""
    names = {"F": "floating-point", "1": "1-bit", "P": "palette", "PA": "palette"}
    found = {
        "16-bit": image.mode[0] == "I" or ";16" in str(image.tile),  # Pillow reads the high bytes of 16-bit RGB
        names.get(image.mode, image.mode): image.mode not in ("RGB", "RGBA", "L", "LA") and image.mode[0] != "I",
        "transparent": image.has_transparency_data,
        "EXIF-rotated": _orientation(image) in UPRIGHT,
        f"above {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels": _is_huge(image),
        "animated or with several pages": getattr(image, "is_animated", False),
    }
    return [kind for kind, present in found.items() if present]


def _is_huge(image: Image.Image) -> bool:
    """Return whether Pillow warns of the image's size. It refuses images of twice this size."""
    return image.width * image.height > Image.MAX_IMAGE_PIXELS


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image  # convert would copy it
    if image.mode[0] in "IF":  # convert("RGB") would clip the values at 255
        image = Image.fromarray(scale_to_bytes(image))
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Lay a transparent image over white. convert("RGB") would show the colours below the transparent parts."""
    if image.mode[0] == "I":  # a grey PNG of 16 bits, in which one value is transparent
        transparent = np.asarray(image) == image.info["transparency"]
        return Image.fromarray(np.where(transparent, np.uint8(255), scale_to_bytes(image))).convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if the image has none or its EXIF data is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises errors of many types; viewers ignore damaged EXIF data
        return 1


def scale_to_bytes(image: Image.Image) -> np.ndarray:
    """Scale a grey image of 16-bit or 32-bit values by the range of their type, (H, W) uint8.

    White is 65535 for 16 bits (4095 if a TIFF file declares 12 bits), and 1 for floating point.

    Raises:
        ValueError: 32-bit integers, or floating-point values outside [0, 1], for which no range is defined.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    low, high = values.min(), values.max()
    span = f"mode {image.mode}, values from {low:g} to {high:g}"
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # as which Pillow reads 16 bits of these formats
        raise ValueError(f"{span}; 32-bit integers have no defined white; save as 8-bit or unsigned 16-bit")
    white = 1 if image.mode == "F" else 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535
    if not (low >= 0 and high <= white):  # also if a value is not a number
        raise ValueError(f"{span}, expected 0 to {white}")
    if white == 65535 and 0 < high <= 4095:
        _note_once(
            "dark",
            f"{image.filename}: 16-bit image, almost black: {span}; if it has 12 bits, multiply its values by 16",
        )
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    return np.rint(values / (white / 255)).astype(np.uint8)


def _note_once(kind: str, text: str) -> None:
    """Log a note about an image, unless this run has already logged a note of the same kind."""
    if not _noted[kind].value:
        _noted[kind].value = True
        log(f"note: {text}")
