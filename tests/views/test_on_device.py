"""Views of a batch on the device match torchvision's views of single images, in float32."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch.nn.functional import interpolate
from torchvision import transforms as T
from torchvision.transforms import functional as F

from moco.loader import to_pixels, view_named
from moco.views import on_device
from moco.views.batch_views import COL_FLIP, NUM_RANDOM, BatchViews
from moco.views.geometry import BILINEAR, Affine, ResizedCrop
from moco.views.on_device import ORDERS, TRIES
from moco.views.rows import VIEWS
from tests.views.test_loader import photograph

CPU = torch.device("cpu")


@pytest.fixture
def images() -> torch.Tensor:
    """Return six different images, (6, 3, 20, 26), with values from 0 to 1."""
    return torch.stack([to_pixels(photograph(26, 20).rotate(9 * i)) for i in range(6)]).float() / 255


@pytest.mark.parametrize("size", [8, 20, 48])
def test_crop_resize_matches_torch_antialiased_interpolation(images, size):
    boxes = torch.tensor([[0, 0, 20, 26], [3, 5, 10, 7], [0, 25, 20, 1], [19, 0, 1, 26], [2, 2, 16, 16], [7, 9, 3, 17]])
    flip = torch.tensor([0, 1, 0, 1, 0, 1]).bool()
    ours = on_device.crop_resize(images, boxes.float(), flip, size)
    for image, (top, left, box_height, box_width), mirrored, result in zip(
        images, boxes.tolist(), flip, ours, strict=True
    ):
        box = image[None, :, top : top + box_height, left : left + box_width]
        expected = interpolate(box, (size, size), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(result, expected.flip(2) if mirrored else expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width", "scale"), [(32, 32, (0.2, 1)), (20, 26, (0.08, 1)), (40, 8, (0.9, 1))])
def test_crop_boxes_have_torchvision_distribution(height, width, scale):
    """Two-sample tests compare the four numbers. The last size uses the fallback, a central crop."""
    torch.manual_seed(1)
    ours = on_device.crop_boxes(ResizedCrop(scale), height, width, torch.rand(4000, 2 * TRIES + 2))
    image = torch.empty(3, height, width)
    theirs = [T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(4000)]
    for mine, other in zip(ours.numpy().T, np.array(theirs).T, strict=True):
        assert ks_2samp(mine, other).pvalue > 0.01
    top, left, box_height, box_width = ours.T
    assert (
        (top >= 0).all()
        and (left >= 0).all()
        and (top + box_height <= height).all()
        and (left + box_width <= width).all()
    )


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_crop_boxes_of_extreme_draws_stay_inside(uniform):
    (top, left, box_height, box_width) = on_device.crop_boxes(
        ResizedCrop(), 32, 32, torch.full((1, 2 * TRIES + 2), uniform)
    )[0].tolist()
    assert min(top, left) >= 0 and min(box_height, box_width) >= 1 and max(top + box_height, left + box_width) <= 32


def test_shift_matches_torchvision_on_pillow_images(images):
    """Also at the border: every image is bright there."""
    square = 0.5 + 0.5 * images[:, :, :20, :20]
    uniform = torch.rand(6, 4)
    ours = on_device.apply_affine(square, Affine(), uniform)
    for image, row, result in zip(square, uniform.tolist(), ours, strict=True):
        angle, right, down = (2 * row[0] - 1) * 12, round((2 * row[1] - 1) * 2), round((2 * row[2] - 1) * 2)
        scale = 0.85 + 0.3 * row[3]
        rgb = F.to_pil_image((255 * image).byte())
        expected = to_pixels(F.affine(rgb, angle, [right, down], scale, [0.0], interpolation=BILINEAR)) / 255
        torch.testing.assert_close(result, expected, rtol=0, atol=2.5 / 255)  # Pillow rounds


ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


@pytest.mark.parametrize("order", ORDERS[::5])
def test_jitter_matches_torchvision_without_clipping(images, order):
    mild = 0.3 + 0.4 * images
    for factors in itertools.product([0.9, 1.1], [0.9, 1.0], [0.8, 1.2], [-0.1, 0.0, 0.07]):
        rows = torch.tensor([factors] * 6)
        ours = on_device.apply_jitter(mild, rows, torch.tensor([order] * 6), hue=True)
        theirs = mild
        for kind in order:
            theirs = torch.stack([ADJUST[kind](image, factors[kind]) for image in theirs])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # torchvision rounds the luma


def test_jitter_of_batch_matches_single_images(images):
    factors, order = torch.rand(6, 4) * 0.2 + 0.9, torch.tensor(ORDERS[:6])
    factors[:, 3] -= 1
    together = on_device.apply_jitter(images, factors, order, hue=True)
    one_by_one = [
        on_device.apply_jitter(images[i : i + 1], factors[i : i + 1], order[i : i + 1], hue=True)[0] for i in range(6)
    ]
    torch.testing.assert_close(together, torch.stack(one_by_one))


def test_hue_matches_torchvision_for_grey_and_pure_colours():
    colours = torch.tensor(list(itertools.product([0.0, 0.5, 1.0], repeat=3))).T[None, :, :, None]  # (1, 3, 27, 1)
    for shift in (-0.5, -0.1, 0.0, 0.25):
        ours = on_device.rotate_hue(colours, torch.tensor([shift]))
        torch.testing.assert_close(ours[0], F.adjust_hue(colours[0], shift), rtol=0, atol=1e-5)


def test_grey_converts_only_selected_images(images):
    ours = on_device.to_grey(images, torch.tensor([True, False] * 3))
    torch.testing.assert_close(ours[::2], F.rgb_to_grayscale(images[::2], 3), rtol=0, atol=1e-3)
    assert torch.equal(ours[1::2], images[1::2])


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_blur_matches_torchvision_gaussian(images, sigma):
    square = images[:, :, :20, :20].contiguous()
    ours = on_device.blur(square, torch.full((6,), sigma))
    expected = F.gaussian_blur(square, [13, 13], [sigma, sigma])
    inner = slice(6, -6)  # torchvision mirrors at the border
    torch.testing.assert_close(ours[:, :, inner, inner], expected[:, :, inner, inner], rtol=0, atol=1e-5)
    assert torch.equal(on_device.blur(torch.ones(1, 3, 20, 20), torch.tensor([0.0])), torch.ones(1, 3, 20, 20))
    torch.testing.assert_close(on_device.blur(square[:1], torch.tensor([0.0])), square[:1])


def test_cutout_matches_the_host(images):
    square = images[:, :, :20, :20].contiguous()
    centre = torch.tensor([[0.0, 0.0], [0.99, 0.99], [0.5, 0.2], [0.31, 0.77], [0.1, 0.9], [0.6, 0.6]])
    ours = on_device.cut_out(square, 0.5, centre, torch.tensor([0.1, 0.2, 0.3]))
    for image, (down, right), result in zip(square, (centre * 20).int().tolist(), ours, strict=True):
        expected = image.clone()
        hole = expected[:, max(down - 5, 0) : down + 5, max(right - 5, 0) : right + 5]
        hole.copy_(torch.tensor([0.1, 0.2, 0.3])[:, None, None])
        assert torch.equal(result, expected)


@pytest.mark.parametrize(
    "name", [name for name in VIEWS if BatchViews.supports(view_named(name).geometry, view_named(name).colour)]
)
def test_device_views_have_the_distribution_of_host_views(name):
    """Two-sample tests compare mean, standard deviation, colourfulness and edges of many views of one image."""
    view, size, count = view_named(name), 16, 600
    image = photograph(16, 16)
    batch = BatchViews(view.geometry, view.colour, view.cutout, size, (0.5, 0.5, 0.5), CPU)
    pixels = to_pixels(image)[None].expand(count, -1, -1, -1)
    torch.manual_seed(0)
    ours = batch(pixels, torch.rand(count, NUM_RANDOM))
    prepared = view.geometry.prepare(image, size, False)
    colour = view.colour or (lambda pixels, device_aug: pixels)
    theirs = torch.stack([colour(view.geometry.draw(prepared, size), False) for _ in range(count)]).float() / 255
    assert ours.shape == (count, 3, size, size) and ours.min() >= -1e-6 and ours.max() <= 1 + 1e-6
    for statistic in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: x.std(1).mean((1, 2)),
        lambda x: x.diff(dim=3).abs().mean((1, 2, 3)),
    ):
        assert ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 0.001


@pytest.mark.parametrize(("name", "mirrored"), [("cifar", True), ("photo", True), ("digit", False)])
def test_half_of_views_are_mirrored_except_digits(name, mirrored, images):
    view, rows = view_named(name), torch.rand(6, NUM_RANDOM)
    batch = BatchViews(view.geometry, view.colour, 0.0, 12, (0.4, 0.5, 0.6), CPU)
    pixels = (images * 255).to(torch.uint8)[:, :, :20, :20]
    views = []
    for number in (0.49, 0.5):
        rows[:, COL_FLIP] = number
        views.append(batch(pixels, rows))
    torch.testing.assert_close(views[0].flip(3) if mirrored else views[0], views[1])
    assert not torch.allclose(views[1].flip(3), views[1])


def test_view_depends_only_on_its_row_of_draws(images):
    view = view_named("cifar")
    batch = BatchViews(view.geometry, view.colour, 0.5, 12, (0.4, 0.5, 0.6), CPU)
    pixels, rows = (images * 255).to(torch.uint8), torch.rand(6, NUM_RANDOM)
    whole = batch(pixels, rows)
    torch.testing.assert_close(batch(pixels[3:5], rows[3:5]), whole[3:5])
    assert not torch.allclose(batch(pixels, rows.flip(0)), whole)
