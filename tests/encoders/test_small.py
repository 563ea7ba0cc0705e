"""Networks for small images: what they look like."""

import pytest
import torch

from moco.encoders import get_encoder
from moco.encoders.small import BasicBlock
from moco.in_batch import InBatch
from tests.refusals import refusal

SIZES = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962}


@pytest.mark.parametrize(("arch", "parameters"), SIZES.items())
def test_cifar_resnets_have_the_published_size(arch, parameters):
    """0.27, 0.46, 0.66, 0.85 and 1.7 M for 10 classes (He et al., table 6), option A: none in the shortcuts."""
    network = get_encoder(arch, 32)(num_classes=10)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_the_shortcut_skips_pixels_and_pads_channels_with_zeros():
    """Option A: every second pixel; of 32 channels the 16 old ones in the middle."""
    block = BasicBlock(16, 32, stride=2)
    torch.nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    x = torch.rand(2, 16, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


@pytest.mark.parametrize(("arch", "width"), [("resnet18_small", 512), ("wide_resnet50_2_small", 2048)])
def test_small_ones_see_small_images_at_full_size(arch, width):
    """As torchvision's, but for the first convolution, 3×3 of stride 1, and no pooling after it."""
    with torch.device("meta"):
        small, full = get_encoder(arch, 32)(num_classes=7), get_encoder(arch.removesuffix("_small"), 224)(num_classes=7)
        maps = torch.nn.Sequential(*list(small.children())[:5])(torch.empty(2, 3, 32, 32))
    assert maps.shape[2:] == (32, 32) and small.fc.in_features == width
    ours, theirs = ({name: tuple(p.shape) for name, p in network.named_parameters()} for network in (small, full))
    assert ours.pop("conv1.weight") == (64, 3, 3, 3) and theirs.pop("conv1.weight") == (64, 3, 7, 7) and ours == theirs


def test_mlp_gives_the_releases_head_on_cifar():
    """64 → 64 → D on ResNet-32."""
    head = InBatch(get_encoder("resnet32", 32), dim=10, mlp=True, num_classes=10).encoder_q.fc
    assert [tuple(p.shape) for p in head.parameters()] == [(64, 64), (64,), (10, 64), (10,)]


def test_one_image_a_process_is_too_few_where_batch_norm_sees_one_number():
    refusal(lambda: get_encoder("resnet20", 4, batch=1), "--arch", "resnet20", 1, 4)
    get_encoder("resnet20", 8, batch=1)


@pytest.mark.parametrize("side", [12, 16, 28, 32])
def test_lenet_keeps_a_grid_of_three_whatever_the_image(side):
    network = get_encoder("lenet", side)(num_classes=7)
    assert network(torch.randn(2, 3, side, side)).shape == (2, 7) and network.hidden.in_features == 64 * 3 * 3


def test_lenet_tells_where_something_is():
    """The same spot in two corners; a network that ends in a mean over places would hardly tell them apart."""
    torch.manual_seed(0)
    network = get_encoder("lenet", 28)(num_classes=7).eval()
    corners = torch.zeros(2, 3, 28, 28)
    corners[0, :, 4:8, 4:8] = corners[1, :, 20:24, 20:24] = 1
    maps = network.conv1(corners)
    assert torch.allclose(maps[0, :, 4:8, 4:8], maps[1, :, 20:24, 20:24], atol=1e-6)
    assert (network(corners)[0] - network(corners)[1]).abs().max() > 1e-3


def test_an_image_too_small_for_lenet_is_refused():
    refusal(lambda: get_encoder("lenet", 8), "--arch", "lenet", 2, 8)
