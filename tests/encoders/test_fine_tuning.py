"""--freeze and --lr-backbone: stage 1 from pre-trained weights, on few images."""

import pytest
import torch
import torchvision

import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.encoders.frozen import freeze_modules
from moco.pretrained import init_encoders
from tests.refusals import refusal
from tests.stopping import QUEUE, STEPS, assert_resumes_bit_identical
from utils.run import checkpoint

PARTS = ("conv1", "bn1", "layer1")


@pytest.fixture
def start_flags(flags, tmp_path) -> list[str]:
    """Return flags of two epochs, one of KCL and one of TSC, that start from the encoder in start.pth."""
    encoder = get_encoder("resnet20", 8)(num_classes=16)
    encoder.train()(torch.randn(16, 3, 8, 8))  # gives batch norm running statistics
    torch.save(encoder.state_dict(), tmp_path / "start.pth")
    return [*flags, *["--targeted", "--sep_t", "--epochs", "2", "--init-from"], str(tmp_path / "start.pth")]


def encoder_weights(folder) -> dict[str, torch.Tensor]:
    state = checkpoint.strip_prefix(checkpoint.read_checkpoint(folder / "last.pth.tar")["state_dict"])
    return {name: tensor for name, tensor in state.items() if name.startswith("encoder_")}


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_frozen_parts_stay_bit_identical_and_the_rest_trains(contrast, start_flags, tmp_path):
    """Checks both encoders, with the running statistics of batch norm."""
    queue = {"batch": {"--moco-k", str(QUEUE), "--sep_t"}, "queue": set()}  # flags of the other contrast
    words = [word for word in start_flags if word not in queue[contrast]]
    run = tmp_path / "run"
    stage1.main([*words, "--contrast", contrast, "--freeze", *PARTS, "--run-dir", str(run)])
    initial, changed = torch.load(tmp_path / "start.pth", weights_only=True), set()
    for name, tensor in encoder_weights(run).items():
        own = name.split(".", 1)[1]
        if own in initial and not own.startswith("fc") and not torch.equal(tensor, initial[own]):
            changed.add(own.split(".")[0])
    assert changed == {"layer2", "layer3"}


def test_resumed_run_with_frozen_parts_and_two_rates_is_bit_identical(start_flags, tmp_path, monkeypatch):
    """The run is stopped once in the KCL epoch and once in the TSC epoch."""
    words = [*start_flags, "--freeze", *PARTS, "--lr-backbone", "0.1"]
    assert_resumes_bit_identical(stage1.main, words, tmp_path, monkeypatch, (1, STEPS))


def test_lr_backbone_scales_step_of_encoder(start_flags, tmp_path):
    """With --lr-backbone 0.1, a step of plain SGD moves the encoder a tenth as far and the head equally far."""
    once = "--epochs 1 --kcl-epochs 0 -b 64 --moco-k 64 --momentum 0 --wd 0"
    words = [*start_flags, *once.split()]
    steps = {}
    for factor in ("1", "0.1"):
        run = tmp_path / factor
        stage1.main([*words, "--lr-backbone", factor, "--run-dir", str(run)])
        steps[factor] = encoder_weights(run)
    initial = torch.load(tmp_path / "start.pth", weights_only=True)["layer2.0.conv1.weight"]
    whole, tenth = (steps[factor]["encoder_q.layer2.0.conv1.weight"] - initial for factor in ("1", "0.1"))
    torch.testing.assert_close(tenth, 0.1 * whole, rtol=1e-3, atol=1e-7)
    assert torch.equal(steps["1"]["encoder_q.fc.2.weight"], steps["0.1"]["encoder_q.fc.2.weight"])


def test_freeze_uses_module_names_of_library():
    network = get_encoder("efficientnet_b0", 32)(num_classes=4)
    freeze_modules(network, ["features.0", "features.1.0"], "efficientnet_b0")
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert {name.split(".block")[0].rsplit(".", 2)[0] for name in frozen} <= {
        "backbone.features",
        "backbone.features.0",
        "backbone.features.1.0",
    }
    network.train()
    modes = {name: module.training for name, module in network.named_modules()}
    assert not modes["backbone.features.0.1"] and not modes["backbone.features.1.0"] and modes["backbone.features.2"]


@pytest.mark.parametrize("part", ["layer9", "fc", "fc.0", "encoder_q.conv1"])
def test_freeze_refuses_unknown_part_and_lists_known_parts(part, start_flags, tmp_path):
    words = [*start_flags, "--freeze", part, "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--freeze", part, "resnet20", "conv1, bn1, layer1, layer2, layer3")
    assert not (tmp_path / "run").exists()


def test_freeze_needs_init_from(flags, tmp_path):
    words = [*flags, "--freeze", "conv1", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--freeze", "--init-from")
    assert not (tmp_path / "run").exists()


def test_freeze_refuses_a_part_that_the_file_leaves_random(tmp_path):
    """The file has the stem for large images, so resnet18_small keeps its own random stem."""
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    network = get_encoder("resnet18_small", 32)(num_classes=8)
    init_encoders([network], tmp_path / "w.pth", "resnet18_small", ["layer1"])
    refusal(lambda: init_encoders([network], tmp_path / "w.pth", "resnet18_small", ["layer1", "conv1"]), "conv1")
