"""Views match torchvision for the same random draws, and are close to it when computed on the device."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch.utils.data import default_collate
from torchvision import transforms as T
from torchvision.transforms import functional as F

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from benchmarks import bench_loader
from benchmarks.bench_loader import SPEC
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from moco.loader import Normalise, TwoCropsTransform, eval_transform, to_pixels, train_transform
from moco.views import jitter
from moco.views.geometry import ResizedCrop
from moco.views.jitter import PendingJitter
from utils.randomness import Stream, derive_seed
from utils.run import checkpoint

CPU = torch.device("cpu")
ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
ORDERS = list(itertools.permutations(range(3)))


def photograph(width: int = 90, height: int = 70) -> Image.Image:
    """Return an image of coloured waves with noise and clipped black and white patches."""
    rng = np.random.default_rng(width)
    y, x = np.mgrid[:height, :width][..., None]
    waves = 128 + 110 * np.sin(x * [0.2, 0.11, 0.05] + y * [0.05, 0.12, 0.21])
    waves[: height // 8], waves[-height // 8 :] = 0, 255
    return Image.fromarray((waves + rng.normal(0, 10, waves.shape)).clip(0, 255).astype(np.uint8))


def device_view(view, spec=REGISTRY["imagenet"]):
    """Return one view as the model gets it, converted back to grey levels 0 to 255, (3, S, S) float32."""
    normalised = Normalise(spec.mean, spec.std, CPU)(default_collate([view]))[0]
    return (normalised * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]) * 255


def largest_difference(ours: torch.Tensor, theirs: Image.Image) -> int:
    return int((ours.int() - F.pil_to_tensor(theirs).int()).abs().max())


REFERENCE_TRANSFORMS = {
    "imagenet": lambda size: [T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.ColorJitter(0.4, 0.4, 0.4, 0)],
    "inat": lambda size: [T.RandomResizedCrop(size), T.RandomHorizontalFlip()],
    "digits": lambda size: [
        T.Resize(size),
        T.RandomAffine(12, translate=(0.1, 0.1), scale=(0.85, 1.15), interpolation=T.InterpolationMode.BILINEAR),
        T.ColorJitter(contrast=0.4),
    ],
}
PHOTOGRAPHS = ("places", *(name for name in REGISTRY if name.startswith("imagenet_lt")))
REFERENCE_TRANSFORMS |= dict.fromkeys(PHOTOGRAPHS, REFERENCE_TRANSFORMS["imagenet"])
REFERENCE_TRANSFORMS["glyphs"] = REFERENCE_TRANSFORMS["digits"]
REFERENCE_TRANSFORMS["fashion"] = lambda size: [T.RandomResizedCrop(size, scale=(0.4, 1)), T.RandomHorizontalFlip()]
SIMCLR = [T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), T.RandomGrayscale(p=0.2)]
REFERENCE_TRANSFORMS |= dict.fromkeys(
    ("cifar10", "cifar100"),
    lambda size: [T.RandomResizedCrop(size, scale=(0.2, 1)), T.RandomHorizontalFlip(), *SIMCLR],
)


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize(
    "shape", [(90, 70), (24, 40), (300, 20)]
)  # the last has no box of the ratio and uses the fallback
def test_views_match_torchvision_for_same_draws(name, shape):
    image, size, spec = photograph(*shape), 48, REGISTRY[name]
    if spec.view == "digit":
        image, size = image.resize((8, 8)), 16
    ours = TwoCropsTransform(train_transform(spec.view, size, colour=spec.jitter))
    reference = T.Compose(REFERENCE_TRANSFORMS[name](size))
    for seed in range(12):
        torch.manual_seed(seed)
        theirs = [reference(image), reference(image)]
        torch.manual_seed(seed)
        assert max(map(largest_difference, ours(image), theirs)) <= 1


@pytest.mark.parametrize("order", ORDERS)
def test_jitter_matches_pillow(order):
    image = photograph()
    for factors in itertools.product([0.6, 1.0, 1.37], repeat=3):
        theirs = image
        for kind in order:
            theirs = ADJUST[kind](theirs, factors[kind])
        ours = jitter.on_host(to_pixels(image), factors, order)
        assert ours.dtype == torch.uint8 and largest_difference(ours, theirs) <= 1, factors


def test_fast_resize_matches_pillow_within_one_grey_level():
    image, crop = photograph(300, 200), ResizedCrop()
    for seed in range(12):
        torch.manual_seed(seed)
        view = crop.draw(crop.prepare(image, 64, device_aug=True), 64)
        torch.manual_seed(seed)
        assert (view.int() - crop.draw(image, 64).int()).abs().max() <= 1


def crop_box(view: np.ndarray) -> list[float]:
    """Return left, top, width, height and flip of a crop of an image whose red is x and green is y."""
    red, green = view[0].astype(float), view[1].astype(float)
    return [red.min(), green.min(), np.ptp(red), np.ptp(green), float(red[0, 0] > red[0, -1])]


@pytest.mark.parametrize("device_aug", [False, True])
def test_crops_and_flips_have_torchvision_distribution(device_aug, tmp_path):
    """Our draws are seeded one by one, torchvision uses one random stream; two-sample tests compare them."""
    y, x = np.mgrid[:120, :160].astype(np.uint8)
    ramp_image = Image.fromarray(np.stack([x, y, y], axis=2))
    ramp_image.save(tmp_path / "ramps.png")
    (tmp_path / "list.txt").write_text("ramps.png 0\n")
    transform = TwoCropsTransform(train_transform("photo", 16, device_aug, colour=False))
    data = LongTailDataset(tmp_path, tmp_path / "list.txt", 1, transform, seed=5)
    ours = np.array([crop_box(view.numpy()) for draw in range(400) for view in data[(0, draw)][0]])
    reference = T.Compose([*REFERENCE_TRANSFORMS["inat"](16), T.PILToTensor()])
    theirs = np.array([crop_box(reference(ramp_image).numpy()) for _ in range(800)])
    for ours_of, theirs_of in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(ours_of, theirs_of).pvalue > 0.01
    assert abs(np.corrcoef(ours[0::2, 0], ours[1::2, 0])[0, 1]) < 0.15  # the two views are independent


def test_jitter_has_torchvision_distribution(tmp_path):
    photograph(20, 20).save(tmp_path / "image.png")
    (tmp_path / "list.txt").write_text("image.png 0\n")
    data = LongTailDataset(tmp_path, tmp_path / "list.txt", 1, train_transform("photo", 8, True), seed=5)
    views = [data[(0, draw)][0] for draw in range(600)]
    theirs = [T.ColorJitter.get_params((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), None) for _ in range(600)]
    for kind in range(3):
        ours_of = [float(view.factors[kind]) for view in views]
        assert ks_2samp(ours_of, [draw[1 + kind] for draw in theirs]).pvalue > 0.01
    counts = np.unique([ORDERS.index(tuple(view.order.tolist())) for view in views], return_counts=True)[1]
    assert len(counts) == 6 and counts.min() > 70  # of 100 expected


@pytest.mark.parametrize("order", ORDERS)
def test_device_jitter_is_one_affine_map(order):
    """The map is compared with three successive blends in float64, on an image without clipping."""
    pixels = (to_pixels(photograph()) // 6 + 70).contiguous()
    factors = [1.3, 0.7, 1.2]
    x, luma = pixels.double(), torch.tensor(jitter.LUMA, dtype=torch.float64)
    for kind in order:
        grey = torch.tensordot(luma, x, 1)
        x = torch.lerp((torch.zeros_like(grey), grey.mean().expand_as(grey), grey)[kind].expand_as(x), x, factors[kind])
    view = PendingJitter(pixels, torch.tensor(factors), torch.tensor(order))
    torch.testing.assert_close(device_view(view).double(), x, rtol=0, atol=1e-3)


def test_each_image_of_a_batch_gets_its_own_jitter():
    spec, image = REGISTRY["imagenet"], photograph()
    views = [train_transform(spec.view, 32, True)(image) for _ in range(4)]
    together = Normalise(spec.mean, spec.std, CPU)(default_collate(views))
    one_by_one = torch.cat([Normalise(spec.mean, spec.std, CPU)(default_collate([view])) for view in views])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)


def test_device_jitter_is_close_to_pillow():
    """Pillow rounds down three times, so its images are darker. Clipping between steps affects extreme values."""
    image, differences = photograph(200, 150), []
    for seed in range(40):
        torch.manual_seed(seed)
        view = train_transform("photo", 64, device_aug=True)(image)
        ours = device_view(view)
        assert ours.min() > -0.01 and ours.max() < 255.01
        differences.append((ours - jitter.on_host(view.pixels, view.factors.tolist(), view.order.tolist())).abs())
    differences = torch.stack(differences)
    assert differences.mean() < 2.5 and differences.flatten()[::7].quantile(0.99) < 15


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_device_normalisation_matches_torchvision(name):
    spec = REGISTRY[name]
    image = photograph().resize((70, 70))
    evaluation_crop = [T.Resize(round(56 * 256 / 224)), T.CenterCrop(56)] if spec.view == "photo" else [T.Resize(56)]
    theirs = T.Compose([*evaluation_crop, T.ToTensor(), T.Normalize(spec.mean, spec.std)])(image)
    pixels = eval_transform(spec.view, 56)(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(Normalise(spec.mean, spec.std, CPU)(pixels[None])[0], theirs)


def first_losses(*runs) -> list[float]:
    """Return the training loss of each run's first epoch."""
    records = [json.loads((run / "log.jsonl").read_text().splitlines()[0]) for run in runs]
    return [record.get("train", record)["loss"] for record in records]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker:UserWarning")
def test_resumed_run_with_device_jitter_is_bit_identical(flags, tsc_run, tmp_path):
    """One run without workers and a resumed run with three workers have the same weights."""
    flags = [*(flag for flag in flags if flag != "--cos"), "--device-aug", "--cache", "off"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stage1.main([*flags, "--epochs", "2", "--run-dir", str(whole)])
    stage1.main([*flags, "--epochs", "1", "--run-dir", str(parts)])
    stage1.main([*flags, "--epochs", "2", "-j", "3", "--run-dir", str(parts), "--resume", "auto", "--override"])
    ours, theirs = (checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"] for run in (parts, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    device, host = first_losses(whole, tsc_run)
    assert device != host and device == pytest.approx(host, rel=0.02)


def test_probe_supports_device_jitter(probe_flags, tsc_run, probe_run, tmp_path):
    options = ["--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "1", "--run-dir", str(tmp_path / "probe")]
    stage2.main([*probe_flags, "--device-aug", "--cache", "off", *options])
    device, host = first_losses(tmp_path / "probe", probe_run)
    assert device != host and device == pytest.approx(host, rel=0.1)


def test_benchmark_times_every_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_loader, "IMAGES", 2)
    monkeypatch.setattr(bench_loader, "TURNS", 1)
    bench_loader.write_photographs(tmp_path)
    times = bench_loader.time_worker(tmp_path)
    assert len(times) == 5 and all(0 < made <= collated for made, collated in times.values())
    assert set(bench_loader.time_device(tmp_path, CPU)) == {"default", "--device-aug"}


def test_benchmark_reference_matches_our_views(tmp_path):
    bench_loader.write_photographs(tmp_path)
    pipelines = bench_loader.pipelines(tmp_path)
    ours, _ = default_collate([pipelines["default"](3)])
    torch.manual_seed(derive_seed(0, Stream.AUGMENT, 3))
    reference, _ = pipelines["textbook torchvision"](3)
    for view, expected in zip(ours, reference, strict=True):
        grey_level = 1 / 255 / min(SPEC.std)
        torch.testing.assert_close(
            Normalise(SPEC.mean, SPEC.std, CPU)(view)[0], expected, rtol=0, atol=1.01 * grey_level
        )
