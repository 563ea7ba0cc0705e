"""The cache of decoded images gives the same results as reading files, and views are made from it in whole batches."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import cache
from imagenet_inat.images import LongTailDataset
from imagenet_inat.loaders import DeviceViews
from imagenet_inat.samplers import ShuffledBatches
from moco.loader import Normalise, view_named
from moco.views.batch_views import BatchViews
from tests.refusals import at_line, line_with, refusal
from tests.stopping import assert_resumes_bit_identical, assert_same_checkpoint
from utils import distributed
from utils.errors import InputError

CPU = torch.device("cpu")
SIZES = {"one size": [(9, 8)] * 12, "several": [(9, 8), (8, 8), (30, 7)] * 4}


def write_images(folder, sizes: list[tuple[int, int]]) -> LongTailDataset:
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "list.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(len(sizes))))
    return open_dataset(folder)


def open_dataset(folder, **options) -> LongTailDataset:
    return LongTailDataset(folder, folder / "list.txt", 2, lambda image: np.array(image), **options)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_cached_images_equal_decoded_files(sizes, tmp_path):
    images = write_images(tmp_path, sizes)
    before = [images[number][0] for number in range(len(images))]
    images.cache_decoded()
    for file in tmp_path.glob("*.png"):
        file.unlink()
    for number, expected in enumerate(before):
        assert np.array_equal(images[number][0], expected)


def test_list_is_decoded_once_per_process_while_in_use(tmp_path):
    one = write_images(tmp_path, SIZES["one size"])
    other = open_dataset(tmp_path)
    for images in (one, other):
        images.cache_decoded()
    key = (str(tmp_path.resolve()), one.digest, one.as_shown)
    assert other.pixels is one.pixels is cache._LIVE[key]
    del one, other, images
    assert key not in cache._LIVE


def test_dataset_above_limit_is_not_decoded(tmp_path, monkeypatch, capsys):
    """Its images are 216 bytes each. With three processes, each may use a third of the limit."""
    images = write_images(tmp_path, SIZES["one size"])
    monkeypatch.setattr(cache, "LIMIT", 12 * 216)
    assert images.estimate_size().fits(1) and not images.estimate_size().fits(3)
    monkeypatch.setattr(cache, "LIMIT", 12 * 216 - 1)
    images.cache_decoded()
    assert images.pixels is None and not capsys.readouterr().out


def test_decoding_stops_with_note_when_limit_is_exceeded(tmp_path, monkeypatch, capsys):
    """The sample for the size estimate contains only the small images."""
    images = write_images(tmp_path, [(4, 4)] * 9 + [(40, 40)] * 9)
    monkeypatch.setattr(cache, "SAMPLE_SIZE", 1)
    monkeypatch.setattr(cache, "LIMIT", 10_000)
    images.cache_decoded()
    out = capsys.readouterr().out
    assert images.pixels is None and images[17][0].shape == (40, 40, 3)
    assert line_with(out, "note", "list.txt", "9.3e-06", 11, 18) == out.strip()


def test_each_process_decodes_up_to_its_share_of_limit(tmp_path, monkeypatch, capsys):
    read, total = write_images(tmp_path, SIZES["one size"])._read_file, 12 * 216
    for processes, fits in {1: True, 2: False}.items():
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        monkeypatch.setattr(cache, "LIMIT", total)
        assert (cache.decode(12, read, "list.txt") is not None) == fits
    line_with(capsys.readouterr().out, "list.txt", 7, 12)


WIDE, HIGH = (4, 2), (2, 4)


def reader(*sizes: tuple[int, int] | None):
    """Return a function that reads black images of these sizes by their number; None is an unreadable image."""

    def read(number: int) -> Image.Image:
        if sizes[number] is None:
            raise InputError("unreadable")
        return Image.new("RGB", sizes[number])

    return read


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([None, WIDE, WIDE], (3 * 24, WIDE)),
        ([WIDE], (24, WIDE)),
        ([HIGH, *[WIDE] * 99], (100 * 24, None)),
        ([*[WIDE] * 99, HIGH], (100 * 24, None)),
        ([None, None], (float("inf"), None)),
    ],
)
def test_memory_is_estimated_from_readable_images(sizes, expected):
    """The sample includes both ends of the list, because lists are often sorted by source."""
    assert cache.estimate_size(len(sizes), reader(*sizes)) == expected


def test_all_have_size_ignores_unreadable_images():
    assert cache.all_have_size(WIDE, 3, reader(WIDE, None, WIDE), "list.txt")
    assert not cache.all_have_size(WIDE, 3, reader(WIDE, None, HIGH), "list.txt")


def test_copied_images_are_freed():
    """Otherwise decoding needs twice the memory."""
    images = [np.zeros((2, 4, 3), np.uint8), None]
    cache.DecodedImages(images)
    assert images == [None, None]


def test_unreadable_image_is_reported_when_accessed(tmp_path):
    images = write_images(tmp_path, SIZES["one size"])
    (tmp_path / "5.png").write_bytes(b"no image")
    images.cache_decoded()
    assert images[4][0].shape == (8, 9, 3)
    for access in (lambda: images[5], images.stacked_pixels):
        refusal(access, "5.png", at_line("list.txt", 6))
    skipping = open_dataset(tmp_path, skip_bad=True)
    skipping.cache_decoded()
    assert np.array_equal(skipping.stacked_pixels()[5], images[7][0]) and skipping.skipped.nonzero().tolist() == [[5]]


def test_images_of_several_sizes_are_refused_for_batch_views(tmp_path):
    images = write_images(tmp_path, SIZES["several"])
    images.cache_decoded()
    refusal(images.stacked_pixels, "list.txt")


def batches_of(images, rank: int, world: int, monkeypatch, epoch: int, first_step: int = 0) -> list:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    view = view_named("cifar")
    batch_views = BatchViews(view.geometry, view.colour, 0.0, 8, (0.5,) * 3, CPU)
    sampler = ShuffledBatches(len(images), 1, 4, seed=3)
    loader = DeviceViews(images, Normalise((0.5,) * 3, (0.5,) * 3, CPU), sampler, [batch_views] * 2)
    loader.start_at(epoch, first_step)
    return list(loader)


def test_batch_views_do_not_depend_on_processes_or_first_step(tmp_path, monkeypatch):
    images = write_images(tmp_path, SIZES["one size"])
    images.cache_decoded()
    single = batches_of(images, 0, 1, monkeypatch, epoch=2)
    assert [tuple(views[0].shape) for views, _ in single] == [(4, 3, 8, 8)] * 3
    (rest,) = batches_of(images, 0, 1, monkeypatch, epoch=2, first_step=2)
    torch.testing.assert_close(rest, single[2], rtol=0, atol=0)
    shares = [batches_of(images, rank, 2, monkeypatch, epoch=2) for rank in (0, 1)]
    for (views, labels), *parts in zip(single, *shares, strict=True):
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        for number, view in enumerate(views):  # matrix products of another batch size may round differently
            torch.testing.assert_close(torch.cat([part[0][number] for part in parts]), view, rtol=0, atol=1e-5)
    other = batches_of(images, 0, 1, monkeypatch, epoch=3)
    assert not torch.equal(other[0][0][0], single[0][0][0]) and not torch.equal(single[0][0][0], single[0][0][1])


def test_batch_views_change_with_epoch_and_seed(tmp_path, monkeypatch):
    """All images are copies of one, so that their order has no effect."""
    write_images(tmp_path, SIZES["one size"])
    for number in range(1, 12):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / "0.png").read_bytes())
    first = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        images = open_dataset(tmp_path, seed=seed)
        images.cache_decoded()
        first[seed, epoch] = batches_of(images, 0, 1, monkeypatch, epoch)[0][0][0]
    for other in ((0, 1), (1, 0)):
        assert not torch.allclose(first[0, 0], first[other], atol=0.01)


CONTRASTS = {"queue": [], "batch": ["--contrast", "batch"]}


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_resumed_run_with_batch_views_is_bit_identical(contrast, flags, batch_flags, tmp_path, monkeypatch):
    """The run is stopped once in KCL and once in TSC. An epoch has 5 steps."""
    words = [*(flags if contrast == "queue" else batch_flags), *CONTRASTS[contrast], "--device-aug", "--epochs", "2"]
    assert_resumes_bit_identical(stage1.main, [*words, "--targeted"], tmp_path, monkeypatch, (3, 4))
    assert batch_views_of(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "args.json").read_text())["args"]["workers"] == 0


def test_resumed_probe_with_batch_views_is_bit_identical(tsc_run, probe_flags, tmp_path, monkeypatch):
    probe = [*probe_flags, "--device-aug", "--epochs", "2", "--pretrained", str(tsc_run / "last.pth.tar")]
    assert_resumes_bit_identical(stage2.main, probe, tmp_path, monkeypatch, (3, 4))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_run_is_bit_identical_with_and_without_cache(contrast, flags, batch_flags, tmp_path):
    words = [*(flags if contrast == "queue" else batch_flags), *CONTRASTS[contrast], "--epochs", "1"]
    for name, choice in {"auto": [], "off": ["--cache", "off", "-j", "2"]}.items():
        stage1.main([*words, *choice, "--run-dir", str(tmp_path / name)])
    assert_same_checkpoint(tmp_path / "auto", tmp_path / "off")


def batch_views_of(run) -> bool:
    return json.loads((run / "args.json").read_text())["args"]["batch_views"]


def test_batch_views_are_reported_and_not_mixed_with_single_views(batch_flags, tmp_path, capsys):
    words = [*batch_flags, "--contrast", "batch", "--device-aug", "--epochs", "1"]
    stage1.main([*words, "--run-dir", str(tmp_path / "whole")])
    line_with(capsys.readouterr().out, "views: ", "cpu", 89)
    stage1.main([*words, "--cache", "off", "--run-dir", str(tmp_path / "each")])
    assert "views: " not in capsys.readouterr().out
    assert batch_views_of(tmp_path / "whole") and not batch_views_of(tmp_path / "each")
    words += ["--cache", "off", "--run-dir", str(tmp_path / "whole"), "--epochs", "2", "--resume", "auto"]
    refusal(lambda: stage1.main(words), "batch_views", "True", "False")


def test_checkpoint_without_view_flags_gets_legacy_defaults(digits_flags, tmp_path):
    batch_flags = [word for word in digits_flags if word not in ("--moco-k", "1024")]
    options = f"-a lenet --image-size 16 --contrast batch --device-aug --run-dir {tmp_path / 'run'}"
    words = [*batch_flags, *options.split()]
    words += ["--epochs", "1", "--resume", "auto"]
    stage1.main([*words, "--cache", "off"])
    state = torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)
    for name in ("batch_views", "views", "crop_scale", "statistics"):
        del state["args"][name]
    torch.save(state, tmp_path / "run" / "last.pth.tar")
    refusal(lambda: stage1.main(words), "batch_views", "False", "True")
    words += ["--cache", "off"]
    facts = ("statistics", "None", "cifar10", "views", "digit", "thumbnail")
    refusal(lambda: stage1.main([*words, "--views", "thumbnail", "--statistics", "cifar10"]), *facts)
    stage1.main(words)
