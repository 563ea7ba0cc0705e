"""`make` looks at the images and writes a recipe of stage 1 that starts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.splits import __main__ as splits
from imagenet_inat.splits.recipe import ImageFacts, data_flags, training_flags
from moco.encoders import get_encoder
from tests.refusals import line_with
from utils.cli.parser import parse


def make_pictures(tmp_path, counts: list[int], size: tuple[int, int], mode: str = "RGB") -> list[str]:
    """Write pictures of noise and make lists of them; return the flags that use the recipe."""
    rng = np.random.default_rng(0)
    for label, count in enumerate(counts):
        (tmp_path / "my images" / f"c{label}").mkdir(parents=True)
        for number in range(count):
            pixels = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3)).astype(np.uint8))
            pixels.convert(mode).save(tmp_path / "my images" / f"c{label}" / f"{number}.png")
    splits.main(["make", str(tmp_path / "my images"), "--output", str(tmp_path / "lists")])
    return [f"@{tmp_path}/lists/recipe.txt"]


def arguments(words: list[str]):
    return parse(stage1.get_args_parser(), words)


@pytest.mark.parametrize(("counts", "contrast"), [([40, 12, 5], "batch"), ([6] * 10, "queue")])
def test_recipe_starts_and_stage_2_uses_its_data_flags(counts, contrast, tmp_path, capsys):
    """One epoch of each stage, on the CPU."""
    words = make_pictures(tmp_path, counts, (12, 14))
    line_with(capsys.readouterr().out, "images:", f"{len(counts)} classes", "12 × 14")
    assert arguments(words).contrast == contrast
    tiny, run = ["--epochs", "1", "-j", "0", "-p", "0", "--device", "cpu", "--seed", "0"], tmp_path / "run"
    stage1.main([*words, *tiny, "--run-dir", str(run)])
    args = json.loads((run / "args.json").read_text())["args"]
    assert (args["image_size"], args["arch"], args["views"]) == (16, "lenet", "cifar") and args["device_aug"]
    data = f"@{tmp_path}/lists/data.txt"
    stage2.main([data, *tiny[2:], "--pretrained", str(run / "last.pth.tar"), "--compare-heads"])
    assert (run / "heads" / "results.json").exists()


def test_recipe_fits_photos(tmp_path):
    args = arguments(make_pictures(tmp_path, [9, 9], (130, 150)))
    assert (args.image_size, args.arch, args.views) == (128, "resnet18", "simclr")


@pytest.mark.parametrize(
    ("has_gpu", "side", "arch"),
    [(False, 24, "lenet"), (False, 28, "lenet_strided"), (False, 40, "lenet_strided"), (True, 28, "resnet32")],
)
def test_network_fits_the_size_of_the_images_and_the_machine(has_gpu, side, arch, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    facts = ImageFacts(np.array([9, 9]), [(side, side)], is_grey=True)
    flags = dict(flag.split(" ", 1) for flag, _ in data_flags(facts) if " " in flag)
    assert flags["-a"] == arch
    network = get_encoder(arch, int(flags["--image-size"]))(num_classes=2).eval()
    assert network(torch.zeros(1, 3, side, side)).shape == (1, 2)


def test_grey_images_get_views_without_colours(tmp_path):
    assert arguments(make_pictures(tmp_path, [9, 9], (28, 28), "L")).views == "grey"


def test_grey_images_stored_in_colour_get_them_too(tmp_path):
    words = make_pictures(tmp_path, [9, 9], (28, 28), "L")
    for file in (tmp_path / "my images").rglob("*.png"):
        Image.open(file).convert("RGB").save(file)
    for recipe in (tmp_path / "lists").glob("*.txt"):
        recipe.unlink()
    splits.main(["make", str(tmp_path / "my images"), "--output", str(tmp_path / "lists")])
    assert arguments(words).views == "grey"


@pytest.mark.parametrize(
    ("bright", "count", "views"),
    [("above or below", 40, "grey"), ("left or right", 40, "digit"), ("left or right", 9, "grey")],
    ids=["other direction", "mirrored", "too few images"],
)
def test_images_are_not_flipped_if_mirroring_changes_their_class(bright, count, views, tmp_path):
    gradient = np.linspace(0, 200, 16)
    gradient = np.tile(gradient, (16, 1)) if bright == "left or right" else np.tile(gradient[:, None], (1, 16))
    for label, pixels in enumerate((gradient, 200 - gradient)):
        (tmp_path / "images" / f"c{label}").mkdir(parents=True)
        for number in range(count):
            noisy = pixels + np.random.default_rng(number).integers(0, 50, (16, 16))
            Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / "images" / f"c{label}" / f"{number}.png")
    splits.main(["make", str(tmp_path / "images"), "--output", str(tmp_path / "lists")])
    assert arguments([f"@{tmp_path}/lists/recipe.txt"]).views == views


@pytest.mark.parametrize("num_classes", [2, 20, 200])
@pytest.mark.parametrize("count", [400, 3_000, 40_000])
def test_epochs_give_enough_steps_and_queue_is_at_most_two_epochs_long(count, num_classes):
    counts = np.full(num_classes, count // num_classes)
    facts = ImageFacts(counts, [(32, 32)], is_grey=False)
    words = " ".join(flags for flags, _ in [*data_flags(facts), *training_flags(facts)]).split()
    args = arguments(["--dataset", "custom", *words])
    assert args.epochs * (count // args.batch_size) >= 4000
    assert args.contrast == "batch" or (args.moco_k <= 2 * count and args.moco_k % args.batch_size == 0)


def test_changed_recipe_is_kept(tmp_path, capsys):
    make_pictures(tmp_path, [9, 9], (8, 8))
    recipe = tmp_path / "lists" / "recipe.txt"
    recipe.write_text("--epochs 3\n")
    splits.main(["make", str(tmp_path / "my images"), "--output", str(tmp_path / "lists")])
    assert recipe.read_text() == "--epochs 3\n"
    line_with(capsys.readouterr().out, recipe, "already exists")
