"""Image files of every kind become the RGB pixels that a viewer shows, or are refused with their mode."""

import struct

import numpy as np
import pytest
from PIL import Image

from imagenet_inat import decoding
from imagenet_inat.decoding import open_rgb
from imagenet_inat.images import LongTailDataset
from tests.refusals import assert_names, at_line, line_with, refusal

RAMP = np.linspace(0, 1, 256).repeat(4).reshape(32, 32)  # every grey level, from black to white
BYTES = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)  # the same, (32, 32)


def decode(folder, image: Image.Image, name: str, **options) -> np.ndarray:
    """Save an image as `name` with Pillow's options and return the pixels that training reads, (H, W, 3) uint8."""
    image.save(folder / name, **options)
    return np.array(open_rgb(folder, name))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_ramp_is_scaled_by_range_of_type(name, tmp_path):
    image = Image.fromarray((RAMP * 65535).astype(np.uint16))
    assert np.array_equal(decode(tmp_path, image, name), BYTES[..., None].repeat(3, 2))


def test_float_ramp_is_scaled_from_0_to_1(tmp_path):
    pixels = decode(tmp_path, Image.fromarray(RAMP.astype(np.float32)), "a.tif")
    assert np.array_equal(pixels, BYTES[..., None].repeat(3, 2))


def test_16_bit_tiff_whose_white_is_zero_is_inverted(tmp_path):
    decode(tmp_path, Image.fromarray((RAMP * 65535).astype(np.uint16)), "a.tif")
    entry = struct.pack("<HHII", 262, 3, 1, 1)  # the tag that says that black is zero
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data.replace(entry, entry[:8] + bytes(4)))
    assert np.array_equal(np.array(open_rgb(tmp_path, "a.tif"))[..., 0], 255 - BYTES)


BAD_VALUES = {
    "F": np.float32([[0, 200.5]]),
    "F with NaN": np.float32([[0, np.nan]]),
    "F below 0": np.float32([[-0.5, 1]]),
    "I": np.int32([[0, 70000]]),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_values_without_defined_range_are_refused(kind, tmp_path):
    Image.fromarray(BAD_VALUES[kind]).save(tmp_path / "a.tif")
    (tmp_path / "list.txt").write_text("a.tif 0\n")
    dataset = LongTailDataset(tmp_path, tmp_path / "list.txt", 1, transform=None)
    message = refusal(lambda: dataset[0], "a.tif", at_line("list.txt", 1), f"mode {kind[0]}")
    assert_names(message, f"{BAD_VALUES[kind].max():g}")


def test_16_bit_images_that_use_12_bits_are_noted_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decoding, "_noted", set())
    for name in ("a.png", "b.png"):
        pixels = decode(tmp_path, Image.fromarray((RAMP * 4095).astype(np.uint16)), name)
        assert pixels.max() == 16
    line_with(capsys.readouterr().out, "note", "a.png", 4095)
