"""Image files of every kind become the RGB pixels that a viewer shows, or are refused with their mode."""

import struct
import subprocess
import sys
from multiprocessing.sharedctypes import RawValue

import numpy as np
import pytest
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

import main_moco_supcon_imba as stage1
from imagenet_inat import decoding, options
from imagenet_inat.decoding import open_rgb
from imagenet_inat.images import LongTailDataset
from tests import ROOT
from tests.refusals import assert_names, at_line, line_with, refusal

RAMP = np.linspace(0, 1, 256).repeat(4).reshape(32, 32)  # every grey level, from black to white
BYTES = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)  # the same, (32, 32)


def decode(folder, image: Image.Image, name: str, **options) -> np.ndarray:
    """Save an image as `name` with Pillow's options and return the pixels that training reads, (H, W, 3) uint8."""
    image.save(folder / name, **options)
    return np.array(open_rgb(folder, name))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_ramp_is_scaled_by_range_of_type(name, tmp_path):
    image = Image.fromarray((RAMP * 65535).astype(np.uint16))
    assert np.array_equal(decode(tmp_path, image, name), BYTES[..., None].repeat(3, 2))


def test_16_bit_pgm_is_scaled_by_range_of_type(tmp_path):
    """Written by hand, because older versions of Pillow read such files but do not write them."""
    pixels = (RAMP * 65535).astype(">u2")
    header = f"P5 {pixels.shape[1]} {pixels.shape[0]} 65535\n".encode()
    (tmp_path / "a.pgm").write_bytes(header + pixels.tobytes())
    assert np.array_equal(np.array(open_rgb(tmp_path, "a.pgm")), BYTES[..., None].repeat(3, 2))


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
    monkeypatch.setitem(decoding._noted, "dark", RawValue("b", False))
    for name in ("a.png", "b.png"):
        pixels = decode(tmp_path, Image.fromarray((RAMP * 4095).astype(np.uint16)), name)
        assert pixels.max() == 16
    line_with(capsys.readouterr().out, "note", "a.png", 4095)


def test_loader_processes_share_one_note(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(decoding._noted, "dark", RawValue("b", False))
    dark = Image.fromarray((RAMP * 4095).astype(np.uint16))
    for number in range(4):
        dark.save(tmp_path / f"{number}.png")
    (tmp_path / "list.txt").write_text("".join(f"{number}.png 0\n" for number in range(4)))
    dataset = LongTailDataset(tmp_path, tmp_path / "list.txt", 1, transform=np.array)
    for _ in range(2):  # each pass starts new processes
        list(DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="fork"))
    assert capfd.readouterr().out.count("note: ") == 1


COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_image_is_turned_upright_by_exif_orientation(name, orientation, tmp_path):
    COLOURS.save(tmp_path / name, exif=with_orientation(orientation))
    shown = np.array(open_rgb(tmp_path, name, as_shown=True))
    assert np.array_equal(shown, np.array(ImageOps.exif_transpose(Image.open(tmp_path / name))))
    assert shown.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))


def test_damaged_exif_data_is_ignored(tmp_path):
    COLOURS.save(tmp_path / "a.png", exif=b"Exif\0\0no TIFF header")
    assert np.array_equal(np.array(open_rgb(tmp_path, "a.png", as_shown=True)), np.array(COLOURS))


@pytest.mark.parametrize(("name", "shape"), [("custom", (6, 4, 3)), ("places", (4, 6, 3))])
def test_orientation_is_applied_to_custom_images_only(name, shape, tmp_path):
    """The published data sets are read as the authors' code reads them."""
    COLOURS.save(tmp_path / "a.png", exif=with_orientation(6))
    (tmp_path / "list.txt").write_text("a.png 0\n")
    lists = [f"--{split}-txt={tmp_path}/list.txt" for split in ("train", "val", "test")]
    args = stage1.get_args_parser().parse_args([f"--dataset={name}", f"--data-root={tmp_path}", *lists])
    assert (
        options.build_data_config(options.DataFlags.from_args(args).resolved()).open("train", np.array)[0][0].shape
        == shape
    )


HALF_TRANSPARENT = {"RGBA": (200, 0, 0, 128), "LA": (100, 128)}


@pytest.mark.parametrize("mode", HALF_TRANSPARENT)
def test_alpha_channel_is_laid_over_white(mode, tmp_path):
    """A pixel whose alpha is 128 is half its colour, half white. One whose alpha is 0 is white."""
    image = Image.new(mode, (2, 1), HALF_TRANSPARENT[mode])
    image.putpixel((1, 0), (*HALF_TRANSPARENT[mode][:-1], 0))
    image.save(tmp_path / "a.png")
    (half, empty) = np.array(open_rgb(tmp_path, "a.png", as_shown=True))[0]
    colour = np.array(image.convert("RGB"))[0, 0]
    np.testing.assert_allclose(half, (colour + 255.0) / 2, atol=1)
    assert empty.tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_transparent_palette_entry_is_white(name, tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / name, transparency=0)
    assert np.array(open_rgb(tmp_path, name, as_shown=True)).tolist() == [[[255, 255, 255], [200, 100, 0]]]


@pytest.mark.parametrize("values", [np.array([[7, 255]], np.uint8), np.array([[7, 65535]], np.uint16)])
def test_transparent_grey_value_is_white(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.png", transparency=7)
    assert (np.array(open_rgb(tmp_path, "a.png", as_shown=True)) == 255).all()


def test_transparency_of_published_sets_is_ignored_as_in_the_authors_code(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8))
    assert np.array_equal(decode(tmp_path, image, "a.png"), np.array(image.convert("RGB")))


PLAIN = {"P": "a.png", "1": "a.png", "CMYK": "a.tif", "YCbCr": "a.jpg", "L": "a.png"}


@pytest.mark.parametrize("mode", PLAIN)
def test_other_modes_are_converted_to_rgb(mode, tmp_path):
    COLOURS.convert(mode).save(tmp_path / PLAIN[mode])
    expected = np.array(Image.open(tmp_path / PLAIN[mode]).convert("RGB"))
    assert np.array_equal(np.array(open_rgb(tmp_path, PLAIN[mode], as_shown=True)), expected)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png"])
def test_first_frame_of_an_animation_is_read(name, tmp_path):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert np.array(open_rgb(tmp_path, name, as_shown=True))[0, 0].tolist() == [255, 0, 0]


def test_huge_image_is_named_in_one_line_and_refused_at_twice_the_limit(tmp_path, monkeypatch):
    """The program runs on its own, because pytest replaces the filters of warnings."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (7, 7)).save(tmp_path / name)
    limit, read = "from PIL import Image; Image.MAX_IMAGE_PIXELS = 40", "from imagenet_inat.decoding import open_rgb"
    program = f"{limit}; {read}; open_rgb({tmp_path!r}, 'a.png'); open_rgb({tmp_path!r}, 'b.png')"
    program = f"from pathlib import PosixPath; {program}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert line_with(done.stdout, "note", "a.png", "7 × 7") == done.stdout.strip()

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    (tmp_path / "list.txt").write_text("a.png 0\n")
    dataset = LongTailDataset(tmp_path, tmp_path / "list.txt", 1, transform=None)
    refusal(lambda: dataset[0], "a.png", at_line("list.txt", 1))


def test_12_bits_declared_in_a_tiff_are_scaled_by_4095(tmp_path):
    """Two pixels, 0 and 4095, of 12 bits each."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 12) + b"\x00\x0f\xff\0" + directory)
    assert np.array(open_rgb(tmp_path, "a.tif"))[0, :, 0].tolist() == [0, 255]
