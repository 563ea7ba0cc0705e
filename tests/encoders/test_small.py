"""Networks for small images: their size and structure."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moco.encoders import get_encoder
from moco.encoders.small import BasicBlock
from moco.in_batch import InBatchKCL
from tests.refusals import refusal

SIZES = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962}


@pytest.mark.parametrize(("arch", "parameters"), SIZES.items())
def test_cifar_resnets_have_published_size(arch, parameters):
    """He et al., table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 M for 10 classes. Shortcuts of option A have no weights."""
    network = get_encoder(arch, 32)(num_classes=10)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_shortcut_skips_pixels_and_pads_channels_with_zeros():
    """Option A takes every second pixel and puts the 16 input channels in the middle of 32."""
    block = BasicBlock(16, 32, stride=2)
    torch.nn.init.zeros_(block.bn2.weight)  # only the shortcut contributes
    x = torch.rand(2, 16, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


@pytest.mark.parametrize(("arch", "width"), [("resnet18_small", 512), ("wide_resnet50_2_small", 2048)])
def test_small_variants_process_images_at_full_resolution(arch, width):
    """They equal torchvision's, except for the first convolution, 3×3 with stride 1, and no pooling after it."""
    with torch.device("meta"):
        small, full = get_encoder(arch, 32)(num_classes=7), get_encoder(arch.removesuffix("_small"), 224)(num_classes=7)
        maps = torch.nn.Sequential(*list(small.children())[:5])(torch.empty(2, 3, 32, 32))
    assert maps.shape[2:] == (32, 32) and small.fc.in_features == width
    ours, theirs = ({name: tuple(p.shape) for name, p in network.named_parameters()} for network in (small, full))
    assert ours.pop("conv1.weight") == (64, 3, 3, 3) and theirs.pop("conv1.weight") == (64, 3, 7, 7) and ours == theirs


def test_mlp_gives_head_of_authors_code_on_cifar():
    """On ResNet-32 the head maps 64 → 64 → D."""
    head = InBatchKCL(get_encoder("resnet32", 32), dim=10, mlp=True, num_classes=10).encoder_q.fc
    assert [tuple(p.shape) for p in head.parameters()] == [(64, 64), (64,), (10, 64), (10,)]


def test_one_image_per_process_is_refused_for_1x1_feature_maps():
    refusal(lambda: get_encoder("resnet20", 4, batch=1), "--arch", "resnet20", 1, 4)
    get_encoder("resnet20", 8, batch=1)


@pytest.mark.parametrize("side", [12, 16, 28, 32])
def test_lenet_pools_to_3x3_for_any_image_size(side):
    network = get_encoder("lenet", side)(num_classes=7)
    assert network(torch.randn(2, 3, side, side)).shape == (2, 7) and network.hidden.in_features == 64 * 3 * 3


@pytest.mark.parametrize("side", [25, 28, 32, 64, 71])
def test_strided_lenet_reduces_any_image_size_to_4x4(side):
    network = get_encoder("lenet_strided", side)(num_classes=7)
    assert network(torch.randn(2, 3, side, side)).shape == (2, 7) and network.hidden.in_features == 64 * 4 * 4


@pytest.mark.parametrize(("arch", "weights", "products"), [("lenet", 204_448, 6.2), ("lenet_strided", 319_136, 1.9)])
def test_size_and_cost_of_the_lenets(arch, weights, products):
    """Million multiply-adds per 28-px image, which the docstring of StridedLeNet gives. fc counts in neither number."""
    network = get_encoder(arch, 28)(num_classes=1)
    assert sum(p.numel() for name, p in network.named_parameters() if not name.startswith("fc.")) == weights
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.randn(1, 3, 28, 28))
    assert round(counter.get_total_flops() / 2e6, 1) == products


@pytest.mark.parametrize(("arch", "stride"), [("lenet", 1), ("lenet_strided", 2)])
def test_lenet_output_depends_on_position(arch, stride):
    """The same spot lies in two corners. A network with global average pooling would hardly distinguish them."""
    torch.manual_seed(0)
    network = get_encoder(arch, 28)(num_classes=7).eval()
    corners = torch.zeros(2, 3, 28, 28)
    corners[0, :, 4:8, 4:8] = corners[1, :, 20:24, 20:24] = 1
    maps = network.conv1(corners)
    first, second = (slice(start // stride, (start + 4) // stride) for start in (4, 20))
    assert torch.allclose(maps[0, :, first, first], maps[1, :, second, second], atol=1e-6)
    assert (network(corners)[0] - network(corners)[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("arch", "side"), [("lenet", 8), ("lenet_strided", 24)])
def test_image_too_small_for_lenet_is_refused(arch, side):
    refusal(lambda: get_encoder(arch, side), "--arch", arch, 2, side)
