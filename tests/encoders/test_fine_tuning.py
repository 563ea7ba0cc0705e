"""--freeze and --lr-backbone: stage 1 from given weights, on few images."""

import pytest
import torch

import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.encoders.frozen import freeze_parts
from tests.refusals import refusal
from tests.stopping import QUEUE, STEPS, assert_stops_change_nothing
from utils.run import checkpoint

PARTS = ("conv1", "bn1", "layer1")


@pytest.fixture
def start(flags, tmp_path) -> list[str]:
    """Flags of two epochs, one of KCL and one of TSC, from an encoder of which they know all."""
    encoder = get_encoder("resnet20", 8)(num_classes=16)
    encoder.train()(torch.randn(16, 3, 8, 8))  # its batch norm has seen something
    torch.save(encoder.state_dict(), tmp_path / "start.pth")
    return [*flags, *["--targeted", "--sep_t", "--epochs", "2", "--init-from"], str(tmp_path / "start.pth")]


def encoders(folder) -> dict[str, torch.Tensor]:
    state = checkpoint.unpacked(checkpoint.load(folder / "last.pth.tar"))
    return {name: tensor for name, tensor in state.items() if name.startswith("encoder_")}


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(contrast, start, tmp_path):
    """Of both encoders, with the running statistics of batch norm."""
    queue = {"batch": {"--moco-k", str(QUEUE), "--sep_t"}, "queue": set()}  # flags that the other has
    words = [word for word in start if word not in queue[contrast]]
    run = tmp_path / "run"
    stage1.main([*words, "--contrast", contrast, "--freeze", *PARTS, "--run-dir", str(run)])
    given, moved = torch.load(tmp_path / "start.pth", weights_only=True), set()
    for name, tensor in encoders(run).items():
        own = name.split(".", 1)[1]
        if own in given and not own.startswith("fc") and not torch.equal(tensor, given[own]):
            moved.add(own.split(".")[0])
    assert moved == {"layer2", "layer3"}


def test_a_resumed_run_with_frozen_parts_and_two_rates_is_bit_identical(start, tmp_path, monkeypatch):
    """Stopped once in the epoch of KCL and once in that of TSC."""
    words = [*start, "--freeze", *PARTS, "--lr-backbone", "0.1"]
    assert_stops_change_nothing(stage1.main, words, tmp_path, monkeypatch, (1, STEPS))


def test_the_encoder_moves_by_its_share(start, tmp_path):
    """A step of plain SGD from the same weights: a tenth as far; the head as far as ever."""
    once = "--epochs 1 --kcl-epochs 0 -b 64 --moco-k 64 --momentum 0 --wd 0"
    words = [*start, *once.split()]
    steps = {}
    for factor in ("1", "0.1"):
        run = tmp_path / factor
        stage1.main([*words, "--lr-backbone", factor, "--run-dir", str(run)])
        steps[factor] = encoders(run)
    given = torch.load(tmp_path / "start.pth", weights_only=True)["layer2.0.conv1.weight"]
    whole, tenth = (steps[factor]["encoder_q.layer2.0.conv1.weight"] - given for factor in ("1", "0.1"))
    torch.testing.assert_close(tenth, 0.1 * whole, rtol=1e-3, atol=1e-7)
    assert torch.equal(steps["1"]["encoder_q.fc.2.weight"], steps["0.1"]["encoder_q.fc.2.weight"])


def test_parts_of_a_librarys_network_have_the_librarys_names():
    network = get_encoder("efficientnet_b0", 32)(num_classes=4)
    freeze_parts(network, ["features.0", "features.1.0"], "efficientnet_b0")
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert {name.split(".block")[0].rsplit(".", 2)[0] for name in frozen} <= {
        "backbone.features",
        "backbone.features.0",
        "backbone.features.1.0",
    }
    network.train()
    modes = {name: module.training for name, module in network.named_modules()}
    assert not modes["backbone.features.0.1"] and not modes["backbone.features.1.0"] and modes["backbone.features.2"]


@pytest.mark.parametrize("part", ["layer9", "fc", "encoder_q.conv1"])
def test_an_unknown_part_is_refused_with_the_names_of_the_parts(part, start, tmp_path):
    words = [*start, "--freeze", part, "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--freeze", part, "resnet20", "conv1, bn1, layer1, layer2, layer3")
    assert not (tmp_path / "run").exists()


def test_random_weights_are_not_frozen(flags, tmp_path):
    words = [*flags, "--freeze", "conv1", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--freeze", "--init-from")
    assert not (tmp_path / "run").exists()
