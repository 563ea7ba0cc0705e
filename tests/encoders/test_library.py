"""Networks of the libraries: found by name, their classifier found, refused in a line."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from moco.builder import KCL
from moco.encoders import get_encoder, has_batch_norm
from moco.encoders.library import Backbone, own_names
from moco.heads import freeze
from tests.refusals import refusal
from tests.tiny import unit

# googlenet and inception_v3 announce a change of their initialisation, which is no matter here
pytestmark = pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
TIMM = ("timm:resnet10t", "timm:convnext_atto", "timm:vit_tiny_patch16_224")
# What a user would try first, and whether shuffling between processes does anything for it.
BATCH_NORM = {
    **dict.fromkeys(("resnet50", "resnet18_small", "efficientnet_b0", "timm:resnet10t"), True),
    **dict.fromkeys(("vit_b_16", "swin_t", *TIMM[1:]), False),
}


def images(count: int) -> tuple[torch.Tensor, ...]:
    """Two views at 32 px and labels of 3 classes."""
    return *torch.randn(2, count, 3, 32, 32), torch.arange(count) % 3


def of_library(arch: str, **options) -> nn.Module:
    """The network as its own library makes it."""
    name = arch.removeprefix("timm:")
    return timm.create_model(name, **options) if name != arch else torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("arch", BATCH_NORM)
def test_kcl_tsc_and_a_probe_train_on_it(arch):
    """A step of each; weights of the query encoder's first and last layer move, in the probe the last alone."""
    torch.manual_seed(0)
    build = get_encoder(arch, 32)
    model = KCL(build, 16, 8, mlp=True, num_classes=3, targets=unit(3, 16).float(), sep_t=True).train()
    assert (model.shuffles, has_batch_norm(model.encoder_q)) == (BATCH_NORM[arch],) * 2
    assert model.encoder_q(images(4)[0]).norm(dim=1).min() > 0.01  # a projection that begins at 0 has no direction
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
    assert moved[0] and moved[-1] and sum(moved) > 0.8 * len(moved)  # a step may be too small for a number near 1

    network = freeze(build(num_classes=3)).train()
    loss = nn.functional.cross_entropy(network(images(4)[0]), images(4)[2])
    loss.backward()
    assert {name for name, weight in network.named_parameters() if weight.grad is not None} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d", "regnet_x_400mf", "timm:resnet10t"])
def test_a_network_that_ends_in_fc_is_taken_as_it_is(arch):
    """Its state dict is the one that the field exchanges; regnets want numbers to start with."""
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
def test_the_classifier_of_any_other_is_found(arch, width, classifier):
    with torch.device("meta"):
        network = get_encoder(arch, 64)(num_classes=7)
    assert (network.fc.in_features, network.fc.out_features, network.classifiers) == (width, 7, classifier)
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone", "fc"}


@pytest.mark.parametrize("arch", ["efficientnet_b0", "timm:convnext_atto"])
def test_with_the_librarys_weights_it_computes_what_the_library_computes(arch):
    """But for the classifier, whose place `fc` has taken."""
    library = of_library(arch)
    network = get_encoder(arch, 32)(num_classes=1000).eval()
    network.load_state_dict(own_names(network, library.state_dict()), strict=False)
    network.fc.load_state_dict(library.get_submodule(network.classifiers[0]).state_dict())
    x = images(2)[0]
    torch.testing.assert_close(network(x), library.eval()(x))


def test_timms_and_torchvisions_resnet_of_a_name_are_one():
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
def test_other_networks_are_refused(arch, near):
    refusal(lambda: get_encoder(arch, 224), "--arch", arch, near)


@pytest.mark.parametrize(("arch", "side"), [("inception_v3", 8), ("vit_b_16", 20), ("timm:crossvit_tiny_240", 32)])
def test_an_image_of_a_size_that_it_does_not_take_is_refused(arch, side):
    refusal(lambda: get_encoder(arch, side), "--arch", arch, 2, side)


def test_where_timm_is_missing_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refusal(lambda: get_encoder("timm:resnet18", 32), "--arch", "timm", "requirements-extra.txt")
