"""Networks of torchvision and timm: found by name, their classifier replaced, others refused."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from moco.builder import KCL
from moco.encoders import get_encoder, has_batch_norm
from moco.encoders.library import Backbone, to_encoder_names
from moco.heads.networks import freeze_and_replace_classifier
from tests.refusals import refusal
from tests.tiny import unit_vectors

# googlenet and inception_v3 warn about a change of their initialisation, which does not matter here
pytestmark = pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
TIMM = ("timm:resnet10t", "timm:convnext_atto", "timm:vit_tiny_patch16_224")
# The most likely choices of architecture, and whether they have batch norm, so that shuffle-BN has an effect.
BATCH_NORM = {
    **dict.fromkeys(("resnet50", "resnet18_small", "efficientnet_b0", "timm:resnet10t"), True),
    **dict.fromkeys(("vit_b_16", "swin_t", *TIMM[1:]), False),
}


def images(count: int) -> tuple[torch.Tensor, ...]:
    """Return two views at 32 px and labels of 3 classes."""
    return *torch.randn(2, count, 3, 32, 32), torch.arange(count) % 3


def library_network(arch: str, **options) -> nn.Module:
    """Return the network as its own library builds it."""
    name = arch.removeprefix("timm:")
    return timm.create_model(name, **options) if name != arch else torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("arch", BATCH_NORM)
def test_kcl_tsc_and_probe_train_on_each_network(arch):
    """A step changes weights of the first and last layer of the query encoder, and only the last layer in the probe."""
    torch.manual_seed(0)
    build = get_encoder(arch, 32)
    model = KCL(build, 16, 8, mlp=True, num_classes=3, targets=unit_vectors(3, 16).float(), sep_t=True).train()
    assert (model.uses_shuffle_bn, has_batch_norm(model.encoder_q)) == (BATCH_NORM[arch],) * 2
    assert model.encoder_q(images(4)[0]).norm(dim=1).min() > 0.01  # a zero projection cannot be normalised
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [weight.detach().clone() for weight in model.encoder_q.parameters()]
    for targeted in (False, True):
        model.targeted = targeted
        loss = model(*images(4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    moved = [not torch.equal(old, weight) for old, weight in zip(before, model.encoder_q.parameters(), strict=True)]
    assert moved[0] and moved[-1] and sum(moved) > 0.8 * len(moved)  # a step may be too small to change a number near 1

    network = freeze_and_replace_classifier(build(num_classes=3)).train()
    loss = nn.functional.cross_entropy(network(images(4)[0]), images(4)[2])
    loss.backward()
    assert {name for name, weight in network.named_parameters() if weight.grad is not None} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d", "regnet_x_400mf", "timm:resnet10t"])
def test_network_that_ends_in_fc_is_used_unchanged(arch):
    """Its state dict keeps the usual names. Not on the meta device: regnets need numbers to initialise."""
    network = get_encoder(arch, 64)(num_classes=7)
    assert not isinstance(network, Backbone) and network.fc.out_features == 7


@pytest.mark.parametrize(
    ("arch", "width", "classifier"),
    [
        ("convnext_tiny", 768, ("classifier.2",)),
        ("vit_b_16", 768, ("heads.head",)),
        ("swin_t", 768, ("head",)),
        ("efficientnet_b0", 1280, ("classifier.1",)),
        ("densenet121", 1024, ("classifier",)),
        ("timm:vit_tiny_patch16_224", 192, ("head",)),
        ("timm:deit_tiny_distilled_patch16_224", 192, ("head", "head_dist")),
        ("timm:dla46_c", 256, ("fc",)),
    ],
)
def test_classifier_of_other_networks_is_found(arch, width, classifier):
    with torch.device("meta"):
        network = get_encoder(arch, 64)(num_classes=7)
    assert (network.fc.in_features, network.fc.out_features, network.classifiers) == (width, 7, classifier)
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone", "fc"}


@pytest.mark.parametrize("arch", ["efficientnet_b0", "timm:convnext_atto"])
def test_network_with_library_weights_matches_library(arch):
    """`fc` takes the place of the library's classifier."""
    library = library_network(arch)
    network = get_encoder(arch, 32)(num_classes=1000).eval()
    network.load_state_dict(to_encoder_names(network, library.state_dict()), strict=False)
    network.fc.load_state_dict(library.get_submodule(network.classifiers[0]).state_dict())
    x = images(2)[0]
    torch.testing.assert_close(network(x), library.eval()(x))


def test_resnet18_of_timm_matches_resnet18_of_torchvision():
    ours, theirs = (get_encoder(arch, 64)(num_classes=7) for arch in ("timm:resnet18", "resnet18"))
    theirs.load_state_dict(ours.state_dict())
    x = images(2)[0]
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    ("arch", "near"),
    [
        ("resnet51", "resnet56, resnet50, resnet18"),
        ("convnext_tin", "convnext_tiny,"),
        ("vit_b16", "vit_b_16,"),
        ("timm:convnext_ato", "timm:convnext_atto,"),
        ("squeezenet1_0", ""),  # the last layer is not linear
        ("googlenet", ""),  # more than one vector per image
    ],
)
def test_unsupported_networks_are_refused(arch, near):
    refusal(lambda: get_encoder(arch, 224), "--arch", arch, near)


@pytest.mark.parametrize(("arch", "side"), [("inception_v3", 8), ("vit_b_16", 20), ("timm:crossvit_tiny_240", 32)])
def test_unsupported_image_size_is_refused(arch, side):
    refusal(lambda: get_encoder(arch, side), "--arch", arch, 2, side)


def test_missing_timm_is_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refusal(lambda: get_encoder("timm:resnet18", 32), "--arch", "timm", "requirements-extra.txt")
