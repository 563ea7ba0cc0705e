"""Checkpoints of other tools: the encoder is found in each layout, and its features are those of the tool's network."""

import pytest
import torch
from torch import Tensor, nn

from moco.encoders import get_encoder
from moco.pretrained import init_encoders, load_encoder
from tests.encoders.layouts import LAYOUTS, SMALL, VIT, Weights, moco, moco_v3, other, under
from tests.refusals import refusal

SIDE = 32


def network(arch: str) -> nn.Module:
    """Return a network with random weights and random batch-norm statistics, so that no two are equal."""
    network = get_encoder(arch, SIDE)(num_classes=8)
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_()
    return network.eval()


def encoder_weights(source: nn.Module) -> Weights:
    """Return the weights without `fc`, under the names of the network's library."""
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith("fc.")}
    return {name.removeprefix("backbone."): value for name, value in weights.items()}


def features(network: nn.Module) -> Tensor:
    network.fc = nn.Identity()
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return network.eval()(images)


@pytest.mark.parametrize("tool", LAYOUTS)
def test_encoder_of_each_tool_is_found(tool, tmp_path):
    """Both flags load it: --init-from and --pretrained."""
    checkpoint, arch, place = LAYOUTS[tool]
    source, stage1, stage2 = (network(arch) for _ in range(3))
    torch.save(checkpoint(encoder_weights(source)), tmp_path / "f.pth")
    count = len(encoder_weights(source))

    message = init_encoders([stage1], tmp_path / "f.pth", arch)
    assert place in message and f"{count} of {count}" in message and "random" not in message
    assert load_encoder(stage2, tmp_path / "f.pth", arch).summary() in message
    expected = features(source)
    assert torch.equal(features(stage1), expected) and torch.equal(features(stage2), expected)


@pytest.mark.parametrize(
    ("tool", "unused"),
    [
        ("MoCo v1, v2", ["encoder_k", "fc", "queue"]),
        ("MAE", ["decoder_blocks", "mask_token"]),
        ("SwAV", ["projection_head", "prototypes"]),
        ("DINO", ["head", "student"]),
        ("BCL", ["head_fc", "resnext50"]),
    ],
)
def test_unused_parts_are_named(tool, unused, tmp_path):
    checkpoint, arch, _ = LAYOUTS[tool]
    torch.save(checkpoint(encoder_weights(network(arch))), tmp_path / "f.pth")
    message = init_encoders([network(arch)], tmp_path / "f.pth", arch)
    assert all(name in message for name in unused), message


def refused(state: dict, arch: str, tmp_path, *facts: object) -> str:
    """Check that both flags refuse a file and name the facts, and that the network keeps its weights."""
    torch.save(state, tmp_path / "f.pth")
    target = network(arch)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    refusal(lambda: init_encoders([target], tmp_path / "f.pth", arch), "f.pth", *facts)
    message = refusal(lambda: load_encoder(target, tmp_path / "f.pth", arch), "f.pth", *facts)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    return message


def test_incomplete_encoder_is_refused(tmp_path):
    """The key encoder of MoCo is complete, but it is a moving average and does not replace the encoder."""
    state = moco(encoder_weights(network(SMALL)))
    del state["state_dict"]["module.encoder_q.layer2.0.bn1.bias"]
    refused(state, SMALL, tmp_path, "layer2.0.bn1.bias")


def test_counters_of_old_versions_may_be_absent(tmp_path):
    weights = encoder_weights(network(SMALL))
    torch.save({name: w for name, w in weights.items() if "num_batches" not in name}, tmp_path / "f.pth")
    load_encoder(network(SMALL), tmp_path / "f.pth", SMALL)


@pytest.mark.parametrize(
    ("stored", "arch", "facts"),
    [
        ("resnet32", "resnet20", ["-a resnet32", "layer1.3.bn1.bias"]),  # all weights of resnet20 fit, layers are left
        ("resnet20", "resnet32", ["-a resnet20", "layer1.3.bn1.bias"]),
        ("resnet18", "resnet18_small", ["-a resnet18", "conv1.weight", (64, 3, 7, 7), (64, 3, 3, 3)]),
    ],
)
def test_fitting_architecture_is_named(stored, arch, facts, tmp_path):
    torch.save(encoder_weights(network(stored)), tmp_path / "f.pth")
    refusal(lambda: load_encoder(network(arch), tmp_path / "f.pth", arch), "f.pth", *facts)


def test_other_image_size_is_named(tmp_path):
    weights = encoder_weights(get_encoder(VIT, 224)(num_classes=2))
    refused(weights, VIT, tmp_path, "pos_embed", (1, 197, 192), (1, 5, 192), "--image-size 224")


def test_several_encoders_are_refused(tmp_path):
    weights = encoder_weights(network(SMALL))
    state = under("image.", weights) | under("sketch.", other(weights))
    refused(state, SMALL, tmp_path, "image.", "sketch.")


def test_module_registered_under_two_names_is_one_encoder(tmp_path):
    weights = encoder_weights(network(SMALL))
    torch.save(under("backbone.", weights) | under("model.backbone.", weights), tmp_path / "f.pth")
    assert load_encoder(network(SMALL), tmp_path / "f.pth", SMALL).prefix == "backbone."


def test_vit_small_of_moco_v3_is_refused(tmp_path):
    """Its shapes are those of timm's, but it has 12 attention heads instead of 6."""
    arch = "timm:vit_small_patch16_224"
    state = moco_v3(encoder_weights(network(arch))) | {"arch": "vit_small"}
    refused(state, arch, tmp_path, "vit_small", 12)


def test_name_of_timm_needs_no_prefix(tmp_path):
    """The same shapes under another name of timm are another network: tf_efficientnet_b0 pads differently."""
    arch, sibling = "timm:efficientnet_b0", "tf_efficientnet_b0"
    weights = encoder_weights(network(arch))
    torch.save({"state_dict": weights, "arch": "efficientnet_b0"}, tmp_path / "f.pth")
    load_encoder(network(arch), tmp_path / "f.pth", arch)
    refused({"state_dict": weights, "arch": sibling}, arch, tmp_path, arch, sibling)
