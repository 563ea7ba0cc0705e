"""The built-in views and the flags that select them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.datasets import REGISTRY
from moco.loader import Normalise, eval_transform, to_pixels, train_transform, view_named
from moco.views.colour import cut_out
from moco.views.rows import VIEWS
from tests.refusals import refusal
from tests.views.test_loader import SIMCLR, photograph

FLIP = T.RandomHorizontalFlip()


class Blur:
    """The Gaussian blur of MoCo v2, with a standard deviation of 0.1 to 2 pixels."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))


RANDAUGMENT = T.RandAugment(1, 10, 11, interpolation=T.InterpolationMode.BILINEAR, fill=[124, 116, 104])
PUBLISHED = {
    "simaugment": [T.RandomResizedCrop(32), FLIP, *SIMCLR],
    "randaugment": [
        *(T.RandomResizedCrop(32), FLIP, T.ColorJitter(0.4, 0.4, 0.4)),
        *[T.RandomApply([RANDAUGMENT], p=0.5)] * 2,
    ],
    "cifar": [T.RandomResizedCrop(32, scale=(0.2, 1)), FLIP, *SIMCLR],
    "simclr": [T.RandomResizedCrop(32, scale=(0.2, 1)), FLIP, *SIMCLR, T.RandomApply([Blur()], p=0.5)],
    "padded": [T.Resize((32, 32)), T.RandomCrop(32, padding=4), FLIP],
    "grey": [T.RandomResizedCrop(32, scale=(0.4, 1)), FLIP],
    "autoaugment": [T.Resize((32, 32)), T.RandomCrop(32, padding=4), FLIP, T.AutoAugment(T.AutoAugmentPolicy.CIFAR10)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_view_matches_published_transform_byte_for_byte(name):
    """Both use the same draws. The Cutout of the autoaugment view is drawn last."""
    image, ours, reference = photograph(40, 36), train_transform(name, 32), T.Compose(PUBLISHED[name])
    for seed in range(60):
        torch.manual_seed(seed)
        theirs = to_pixels(reference(image))
        if name == "autoaugment":
            theirs = cut_out(theirs, 0.5, (0.5, 0.5, 0.5))
        torch.manual_seed(seed)
        assert torch.equal(ours(image), theirs)


def test_cutout_is_a_square_clipped_at_the_border():
    """The square has half the image side and the mean colour, which normalises to 0 up to rounding to bytes."""
    seen = np.zeros((8, 8))
    spec = REGISTRY["cifar10"]
    for _ in range(2000):
        cut_image = cut_out(torch.zeros(3, 8, 8, dtype=torch.uint8), 0.5, spec.mean)
        (rows, columns) = (torch.where(cut_image[0].any(dim=axis))[0] for axis in (1, 0))
        for positions in (rows, columns):
            assert 2 <= len(positions) <= 4 and len(positions) == positions[-1] - positions[0] + 1
        seen += cut_image[0].numpy() > 0
    assert seen[4, 4] == pytest.approx(2000 / 4, rel=0.15)  # 16 of 64 centres cover it
    assert seen[0, 0] == pytest.approx(2000 * 9 / 64, rel=0.2)
    normalised = Normalise(spec.mean, spec.std, torch.device("cpu"))(cut_image[None])[0]
    assert normalised[:, cut_image[0] > 0].abs().max() < 0.5 / 255 / min(spec.std)


def test_evaluation_uses_whole_image_or_centre_crop():
    small, large = photograph(32, 32), photograph(90, 70)
    for name in ("cifar", "padded", "autoaugment", "thumbnail", "grey"):
        assert torch.equal(eval_transform(name, 32)(small), to_pixels(small))
    for name in ("photo", "plain", "simclr", "simaugment", "randaugment"):
        theirs = T.Compose([T.Resize(round(32 * 256 / 224)), T.CenterCrop(32)])(large)
        assert torch.equal(eval_transform(name, 32)(large), to_pixels(theirs))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("sides", [(40, 20), (20, 40), (32, 32)])
def test_views_of_any_image_shape_are_square(name, sides):
    """Only images of one shape can be collated into a batch."""
    image = photograph(*sides)
    assert train_transform(name, 32)(image).shape == eval_transform(name, 32)(image).shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["photo", "thumbnail", "simclr", "cifar"])
def test_crop_scale_is_the_area_fraction(name):
    """A crop with scale 1 is the whole image. A crop with scale 0.01 is smaller than one of the 8 × 8 pixels."""
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB")
    whole = train_transform(name, 8, colour=False, crop_scale=(1.0, 1.0))
    tiny = train_transform(name, 8, colour=False, crop_scale=(0.01, 0.01))
    torch.manual_seed(0)
    views = [whole(image) for _ in range(20)]
    assert any(torch.equal(view, to_pixels(image)) for view in views)
    assert all(int(tiny(image).float().std()) <= 8 for _ in range(20))
    assert view_named(name, (0.3, 0.4)).geometry.scale == (0.3, 0.4)


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--crop-scale 1 0.2", ["--crop-scale 1 0.2", "LO", "HI"]),
        ("--crop-scale 0 1", ["--crop-scale 0 1", "LO", "HI"]),
        ("--crop-scale 0.5 nan", ["--crop-scale 0.5 nan"]),
        ("--views autoaugment --crop-scale 0.2 1", ["--views autoaugment", "--crop-scale", "photo", "cifar"]),
        ("--crop-scale 0.2 1", ["--views digit", "--crop-scale"]),
    ],
)
@pytest.mark.parametrize("main", [stage1.main, stage2.main])
def test_invalid_or_unsupported_crop_scale_is_refused(flags, facts, main, monkeypatch, tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    (folder := tmp_path / "folder").mkdir()
    monkeypatch.chdir(folder)
    pretrained = ["--pretrained", "../weights.pth"] if main is stage2.main else []
    refusal(lambda: main(["--dataset", "digits", *pretrained, *flags.split()]), *facts)
    assert list(folder.iterdir()) == []


def test_both_stages_accept_and_record_view_flags(batch_flags, probe_flags, tmp_path):
    view_flags = ["--views", "cifar", "--crop-scale", "0.5", "1", "--statistics", "cifar10"]
    words = ["--contrast", "batch", "--epochs", "1", *view_flags]
    stage1.main([*batch_flags, *words, "--run-dir", str(tmp_path / "run")])
    pretrained = ["--pretrained", str(tmp_path / "run" / "last.pth.tar"), "--epochs", "1"]
    stage2.main([*probe_flags, *view_flags, *pretrained, "--run-dir", str(tmp_path / "probe")])
    for name in ("run", "probe"):
        args = json.loads((tmp_path / name / "args.json").read_text())["args"]
        assert (args["views"], args["crop_scale"], args["statistics"]) == ("cifar", [0.5, 1.0], "cifar10")


@pytest.mark.parametrize(("change", "same"), [("--views cifar", False), ("--views digit", True)])
def test_views_flag_changes_training(change, same, batch_flags, tmp_path):
    weights = []
    for name, flags in {"base": "", "changed": change}.items():
        words = f"--contrast batch --epochs 1 --run-dir {tmp_path / name} {flags}"
        stage1.main([*batch_flags, *words.split()])
        weights.append(torch.load(tmp_path / name / "last.pth.tar", weights_only=True)["state_dict"])
    name = "module.encoder_q.conv1.weight"
    assert torch.equal(weights[0][name], weights[1][name]) == same


def test_every_view_has_a_help_text():
    assert all(view.help for view in VIEWS.values())
