"""--classifier-view of BCL and PaCo: the classifier's view differs from the other views."""

import numpy as np
import pytest
import torch
from PIL import Image

import main_moco_supcon_imba as stage1
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.options import DataConfig
from moco.loader import Normalise, train_transform
from moco.views.colour import Colours
from tests.refusals import exit_message, refusal
from tests.stopping import log_of
from tests.views.test_loader import photograph

SMALL = "--image-size 12 -a lenet -b 32 --epochs 1 --moco-dim 8 --lr 0.02 --seed 1 -j 0 -p 0 --device cpu"
BCL, PACO = f"--contrast bcl {SMALL}", f"--contrast paco --moco-k 64 {SMALL}"


def test_first_view_has_its_own_augmentation():
    data = DataConfig(REGISTRY["cifar10"], None, 32, device_aug=False, skip_bad=False, classifier_view="autoaugment")
    transform, image = data.train_views(3), photograph(32, 32)
    cutout = train_transform("autoaugment", 32, fill=data.spec.mean)
    torch.manual_seed(0)
    views = transform(image)
    torch.manual_seed(0)
    assert torch.equal(views[0], cutout(image))
    contrast = train_transform("cifar", 32)
    assert torch.equal(torch.stack(views[1:]), torch.stack([contrast(image) for _ in range(2)]))


def test_device_augments_first_view_differently():
    """`padded` does not change colours, and `cifar`, the default of CIFAR-10, does."""
    data = DataConfig(REGISTRY["cifar10"], None, 8, device_aug=True, skip_bad=False, classifier_view="padded")
    first, *others = data.device_views(3, torch.device("cpu"))
    assert first.colour is None and first.cutout == 0
    assert len(others) == 2 and all(isinstance(view.colour, Colours) for view in others)


@pytest.mark.parametrize("method", [BCL, PACO], ids=["bcl", "paco"])
@pytest.mark.parametrize("device", [[], ["--device-aug"]], ids=["host", "device"])
def test_classifier_view_changes_training(device, method, data_flags, tmp_path):
    losses = {}
    for view in ("", "digit", "grey"):
        words = [*data_flags, *method.split(), *device, *(["--classifier-view", view] if view else [])]
        stage1.main([*words, "--run-dir", str(tmp_path / f"run_{view}")])
        losses[view] = log_of(tmp_path / f"run_{view}")[0]["loss"]
    assert losses["digit"] == losses[""] != losses["grey"]  # digit is the --views of these data


def test_randaugment_is_kept_without_colour_jitter():
    """iNaturalist's row turns the jitter off. It must not turn off an augmentation that was asked for by name."""
    view = DataConfig(REGISTRY["inat"], None, 32, device_aug=False, skip_bad=False).train_views(1)
    assert view.view.view.colour is None
    random = train_transform("randaugment", 32, colour=False)
    white = Image.fromarray(np.full((32, 32, 3), 255, dtype=np.uint8))
    assert any(len(random(white).unique()) > 1 for _ in range(20))  # a border of the mean colour


def test_views_of_a_batch_may_differ_in_kind():
    """With --device-aug, the view `photo` leaves its jitter to the device, and `plain` has none."""
    data = DataConfig(REGISTRY["imagenet"], None, 16, device_aug=True, skip_bad=False, classifier_view="plain")
    views = torch.utils.data.default_collate([data.train_views(3)(photograph(40, 30)) for _ in range(2)])
    normalise = Normalise(data.spec.mean, data.spec.std, torch.device("cpu"))
    assert [normalise(view).shape for view in views] == [(2, 3, 16, 16)] * 3


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--classifier-view randaugment --device-aug", ["--device-aug", "--classifier-view randaugment"]),
        ("--views randaugment --device-aug", ["--device-aug", "--views randaugment"]),
        ("--views cifar --classifier-view autoaugment --device-aug", ["--classifier-view autoaugment", "AutoAugment"]),
    ],
    ids=str,
)
def test_device_refuses_views_that_it_cannot_compute(flags, facts, data_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(lambda: stage1.main([*data_flags, *BCL.split(), *flags.split()]), *facts)
    assert list(tmp_path.iterdir()) == []


def test_methods_without_such_a_view_refuse_the_flag(data_flags, capsys):
    words = [*data_flags, "--contrast", "batch", "--classifier-view", "photo"]
    exit_message(lambda: stage1.main(words), capsys, "--classifier-view", "--contrast batch")
