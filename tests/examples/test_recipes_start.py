"""Every recipe starts to train on images of noise, unchanged except for sizes."""

import numpy as np
import pytest
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.lists.format import generated_folders
from moco.targets.generation import generate
from tests import ROOT
from tests.idx_files import write_fashion_mnist
from tests.stopping import log_of

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.txt"))
FASHION = ("fashion_kcl", "fashion_tsc")  # these recipes make their own lists
TRAIN = [name for name in RECIPES if name.endswith(("kcl", "tsc", "100", "50", "10", "release", "authors"))]
TRAIN = [name for name in TRAIN if name not in FASHION and not ("bcl" in name or "paco" in name)]
BCL, PACO = (
    [f"imagenet_{method}", *(f"cifar{classes}_{method}_{ratio}" for classes in (10, 100) for ratio in (100, 50, 10))]
    for method in ("bcl", "paco")
)
PROBES = {"imagenet_probe": "imagenet_kcl", "inat_probe": "inat_kcl", "cifar_probe": "cifar10_kcl_100"}
PROBES |= {"cifar_ldam_drw": "cifar10_tsc_100", "imagenet_kcl_authors_probe": "imagenet_kcl_authors"}
# Added after the recipe's own flags: a small network, small images and two batches of eight per epoch.
SMALL = "-a resnet20 --image-size 8 -b 8 --epochs 2 --device cpu -j 0 -p 0"
WITHOUT_WARM_UP = "--warmup-epochs 0"  # the recipes warm up for ten epochs, more than the tests train
CLASSES = {"imagenet": 1000, "inat": 8142, "cifar10": 10, "cifar100": 100}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write sixteen 32-px images of noise and a list of them; return the folder."""
    folder = tmp_path_factory.mktemp("stand-in")
    rng = np.random.default_rng(0)
    folders = {folder} | {
        generated_folders(REGISTRY[name].set_name, folder, 100)[0] for name in ("cifar10", "cifar100")
    }
    for number in range(16):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for target in folders:
            target.mkdir(exist_ok=True)
            image.save(target / f"{number}.png")
    (folder / "list.txt").write_text("".join(f"{number}.png {number % 8}\n" for number in range(16)))
    return folder


def words(recipe: str, root, data: str, run: str) -> list[str]:
    lists = [word for split in ("train", "val", "test") for word in (f"--{split}-txt", str(root / "list.txt"))]
    return [f"@{ROOT / 'recipes' / recipe}.txt", "--data-root", str(root), *lists, *SMALL.split(), "--run-dir", run]


def pretrain(recipe: str, root, run: str) -> list[dict]:
    data, dim = recipe.split("_")[0], 10 if recipe.endswith("release") else 16
    targets = root / f"{data}_{dim}.npy"
    if not targets.exists():
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((CLASSES[data], dim))
        np.save(targets, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    more = ["--moco-dim", str(dim), "--targets", str(targets)]
    more += WITHOUT_WARM_UP.split() if data.startswith("cifar") else ["--moco-k", "16"]
    stage1.main([*words(recipe, root, data, run), *more])
    return log_of(root / run)


@pytest.mark.parametrize("recipe", TRAIN)
def test_stage_1_recipe_starts(recipe, root, tmp_path):
    log = pretrain(recipe, root, str(tmp_path / "run"))
    second = "TSC" if "tsc" in recipe else "KCL"
    first = "TSC" if recipe.endswith("release") else "KCL"
    assert [line["phase"] for line in log] == [first, second]
    assert all(np.isfinite(line["loss"]) for line in log)


@pytest.mark.parametrize("recipe", BCL)
def test_bcl_recipe_starts(recipe, root, tmp_path):
    size = ["--image-size", "12", *WITHOUT_WARM_UP.split()]
    stage1.main([*words(recipe, root, recipe.split("_")[0], str(tmp_path / "run")), *size])
    log = log_of(tmp_path / "run")
    assert [line["phase"] for line in log] == ["bcl"] * 2
    assert all(np.isfinite(line["loss"]) and line["loss_contrast"] > 0 for line in log)


@pytest.mark.parametrize("recipe", PACO)
def test_paco_recipe_starts(recipe, root, tmp_path):
    size = ["--image-size", "12", "--moco-k", "16", *WITHOUT_WARM_UP.split()]
    stage1.main([*words(recipe, root, recipe.split("_")[0], str(tmp_path / "run")), *size])
    log = log_of(tmp_path / "run")
    assert [line["phase"] for line in log] == ["paco"] * 2
    assert all(np.isfinite(line["loss"]) and "classifier_top1" in line["val"] for line in log)


@pytest.mark.parametrize("recipe", PROBES)
def test_stage_2_recipe_starts(recipe, root, tmp_path):
    pretrain(PROBES[recipe], root, str(tmp_path / "run"))
    data = PROBES[recipe].split("_")[0]
    flags = [*words(recipe, root, data, str(tmp_path / "probe")), "--dataset", data, "--lr", "1"]
    stage2.main([*flags, "--pretrained", str(tmp_path / "run" / "last.pth.tar")])
    assert (tmp_path / "probe" / "results.json").exists()


@pytest.mark.parametrize("recipe", FASHION)
def test_fashion_recipe_starts(recipe, tmp_path):
    """Uses files of noise and the recipe's own network."""
    write_fashion_mnist(tmp_path, 120, 1)
    small = f"--largest 20 --imbalance 2 --epochs 2 --device cpu -j 0 -p 0 --targets {tmp_path}/targets.npy"
    if recipe == "fashion_tsc":
        np.save(tmp_path / "targets.npy", generate(10, 128).numpy())
    else:
        small = small.rsplit(" ", 2)[0]
    words = [f"@{ROOT / 'recipes' / recipe}.txt", "--data-root", str(tmp_path), *small.split()]
    stage1.main([*words, "--run-dir", str(tmp_path / "run")])
    assert [line["phase"] for line in log_of(tmp_path / "run")] == ["KCL", "TSC" if "tsc" in recipe else "KCL"]


def test_every_recipe_is_tested():
    assert set(RECIPES) == {
        *TRAIN,
        *PROBES,
        *FASHION,
        *BCL,
        *PACO,
        "fashion",
        "imagenet",
        "cifar",
        "cifar_bcl",
        "cifar_paco",
        "cifar_targeted",
    }  # the last ones are included by other recipes
