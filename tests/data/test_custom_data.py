"""Any folder of images: `make`, `verify`, then both stages; and which lists the data flags select."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import options
from imagenet_inat.datasets import get_spec
from imagenet_inat.splits import __main__ as splits
from moco.targets.generation import generate_file
from tests.refusals import at_line, refusal
from utils.run import checkpoint

COLOURS = {"blau (blue)": (40, 60, 200), "grün": (50, 190, 60), "red": (200, 40, 40)}
TINY = ["--image-size", "8", "-a", "resnet20", "-b", "16", "-j", "0", "--seed", "0", "--device", "cpu", "-p", "0"]
TINY_STAGE_1 = [*TINY, "--moco-k", "32", "--moco-dim", "8", "--mlp", "--epochs", "2", "--targeted", "--sep_t"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Write 40 noisy pictures of each of three colours to photos/<colour>/, in several shapes, and make lists/."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(40):
            noise = rng.integers(-30, 30, (12 + i % 3, 16, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"photo {i}.png")
    splits.main(f"make {folder}/photos --imbalance 6 --val 4 --test 6 --output {folder}/lists".split())
    return folder


def data_flags(folder: Path) -> list[str]:
    return ["--dataset", "custom", "--data-root", str(folder / "photos"), "--splits", str(folder / "lists")]


@pytest.fixture(scope="module")
def custom_run(photos) -> Path:
    """Train TSC on the photos and a probe of it, in folders that the scripts name; return the run folder."""
    runs = photos / "runs"
    targets = ["--targets", str(photos / "optimal_3_8.npy")]
    splits.main(f"verify custom --data-root {photos}/photos --splits {photos}/lists".split())
    generate_file(photos / "optimal_3_8.npy", 3, 8)
    stage1.main([*data_flags(photos), *TINY_STAGE_1, *targets, "--save-folder", str(runs)])
    (run,) = runs.iterdir()
    probe = ["--pretrained", str(run / "last.pth.tar"), "--epochs", "4", "--schedule", "--lr", "1"]
    stage2.main([*data_flags(photos), *TINY, *probe])
    return run


def test_folder_of_images_trains_through_both_stages(custom_run, photos):
    (file,) = custom_run.glob("custom-photos_linear_*/results.json")
    results = json.loads(file.read_text())
    assert results["train_counts"] == [30, 12, 5] and len(results["last"]["per_class"]) == 3
    assert results["last"]["medium"] is not None and results["last"]["many"] is None
    assert results["best_on_test"]["acc1"] > 60, "three plain colours should be separable"
    weights = checkpoint.read_checkpoint(custom_run / "last.pth.tar")["state_dict"]
    assert weights["module.class_centroid"].shape == (3, 8)


def test_run_is_named_after_images(custom_run):
    assert custom_run.name.startswith("custom-photosLT_resnet20_")
    args = json.loads((custom_run / "args.json").read_text())["args"]
    assert args["num_classes"] == 3


def test_resume_refuses_other_number_of_classes(custom_run, photos, tmp_path):
    lines = (photos / "lists" / "custom_train.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "two.txt").write_text("".join(f"{line}\n" for line in lines if not line.endswith("2")), "utf-8")
    resume = ["--resume", "auto", "--run-dir", str(custom_run), "--train-txt", str(tmp_path / "two.txt")]
    flags = [flag for flag in TINY_STAGE_1 if flag not in ("--targeted", "--sep_t")]
    refusal(lambda: stage1.main([*data_flags(photos), *flags, *resume]), "num_classes", 3, 2)


def test_old_run_resumes_only_with_override_since_images_are_decoded_as_shown(custom_run, photos, tmp_path):
    state = checkpoint.read_checkpoint(custom_run / "last.pth.tar")
    del state["args"]["images_as_shown"]
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run" / "last.pth.tar")
    targets = ["--targets", str(photos / "optimal_3_8.npy")]
    words = [*data_flags(photos), *TINY_STAGE_1, *targets, "--epochs", "3", "--run-dir", str(tmp_path / "run")]
    words += ["--resume", "auto"]
    refusal(lambda: stage1.main(words), "images_as_shown", "False", "True", "--override")
    stage1.main([*words, "--override"])


def lists_of(*flags: str) -> dict[str, str]:
    flags = options.DataFlags.from_args(stage1.get_args_parser().parse_args(list(flags))).resolved()
    lists = options.find_lists(get_spec(flags.dataset), flags)
    return {split: str(path) for split, path in lists.files.items()}


def test_lists_are_found_by_name_or_flag():
    named = {split: f"d/custom_{split}.txt" for split in ("train", "val", "test")}
    assert lists_of("--dataset", "custom", "--splits", "d") == named
    assert lists_of("--dataset", "custom", "--splits", "d", "--val-txt", "v") == named | {"val": "v"}
    given = lists_of("--dataset", "inat", "--train-txt", "t", "--val-txt", "v")
    assert given == {"train": "t", "val": "v", "test": "v"}, "one list should serve as both"
    assert lists_of("--dataset", "cifar100", "--train-txt", "t", "--test-txt", "v") == given
    assert lists_of("--dataset", "cifar10", "--data-root", "d", "--imbalance", "10") == {
        "train": "d/CIFAR10_LT/imbalance_10/CIFAR10_LT_train.txt",
        "val": "d/CIFAR10_LT/imbalance_10/CIFAR10_LT_test.txt",
        "test": "d/CIFAR10_LT/imbalance_10/CIFAR10_LT_test.txt",
    }


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a.png 0\nb.png 2\nc.png 2\n", ["label 1", "2"]),
        ("a.png 0\nb.png 7\n", [at_line("custom_train.txt", 2), "7"]),
        ("../a.png 0\n", [at_line("custom_train.txt", 1), "../a.png"]),
        (None, ["python -m imagenet_inat.splits make"]),
    ],
)
def test_custom_lists_are_checked_before_anything_is_written(text, facts, photos, tmp_path):
    if text is not None:
        (tmp_path / "custom_train.txt").write_text(text)
    flags = ["--dataset", "custom", "--data-root", str(photos / "photos"), "--splits", str(tmp_path)]
    words = [*flags, *TINY, "--moco-k", "32", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "custom_train.txt", *facts)
    assert not (tmp_path / "run").exists()


def test_imbalance_is_accepted_only_for_generated_splits():
    made = ("imagenet", "cifar10", "cifar100", "digits")
    refusal(lambda: stage1.main(["--imbalance", "10"]), "--imbalance", 10, *made)
    refusal(lambda: stage1.main(["--dataset", "cifar100", "--imbalance", "600"]), "--imbalance", 600, 500)
    words = ["--dataset", "cifar10", "--data-root", "nowhere", *TINY, "--moco-k", "32"]
    refusal(lambda: stage1.main(words), "make cifar10 --imbalance 100 --output nowhere")
