"""--init-from: stage 1 starts from given weights."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.pretrained import init_encoders
from tests.refusals import line_with, refusal
from utils.run import checkpoint

ONE_EPOCH = "--epochs 1 --schedule"


@pytest.fixture
def encoder():
    return get_encoder("resnet20", 8)(num_classes=16)


def backbone(network) -> dict:
    return {name: weight for name, weight in network.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("kind", ["state dict", "safetensors", "stage 1"])
def test_both_encoders_start_from_the_file(kind, encoder, flags, tsc_run, tmp_path, capsys):
    """The backbones of both encoders equal the file. With a tiny learning rate a run keeps them."""
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "state dict":
        torch.save(encoder.state_dict(), path)
    if kind == "safetensors":
        save_file(encoder.state_dict(), path)
    if kind == "stage 1":
        path = tsc_run / "last.pth.tar"
        encoder.load_state_dict({
            name.removeprefix("module.encoder_q."): weight
            for name, weight in checkpoint.read_file(path)["state_dict"].items() if name.startswith("module.encoder_q.")
        }, strict=False)  # fmt: skip
    start, fresh = (get_encoder("resnet20", 8)(num_classes=16) for _ in range(2))
    copies = [start, fresh]
    message = init_encoders(copies, path, "resnet20")
    expected = backbone(encoder)
    message = message.replace(str(path), "")
    assert message.count(str(len(expected))) == 2 and not any(
        name in message for name in expected
    )  # all weights are used
    assert all(torch.equal(backbone(copy)[name], weight) for copy in copies for name, weight in expected.items())
    run = tmp_path / "run"
    stage1.main(
        [*flags, *ONE_EPOCH.split(), "--lr", "1e-30", "--wd", "0", "--init-from", str(path), "--run-dir", str(run)]
    )
    line_with(capsys.readouterr().out, path, len(expected))
    written = checkpoint.strip_prefix(checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"])
    assert torch.equal(written["encoder_q.layer3.2.conv2.weight"], expected["layer3.2.conv2.weight"])
    torch.testing.assert_close(written["encoder_k.layer3.2.conv2.weight"], expected["layer3.2.conv2.weight"])


def test_small_stem_stays_random(tmp_path):
    source = torchvision.models.resnet18(weights=None)
    network = get_encoder("resnet18_small", 32)(num_classes=8)
    before = network.conv1.weight.clone()
    path = tmp_path / "w.pth"
    torch.save(backbone(source), path)
    message = init_encoders([network], path, "resnet18_small")
    assert message.count("conv1.weight") == 1 and "119 of 120" in message
    assert torch.equal(network.conv1.weight, before)
    assert torch.equal(network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_resumed_run_does_not_read_the_file(encoder, flags, tmp_path):
    """The file may even be damaged after the first start."""
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    words = [*flags, "--init-from", str(tmp_path / "w.pth"), "--resume", "auto", "--run-dir", str(tmp_path / "run")]
    stage1.main([*words, "--epochs", "1"])
    (tmp_path / "w.pth").write_bytes(b"broken")
    stage1.main([*words, "--epochs", "2", "--override"])


@pytest.mark.parametrize(
    ("weights", "facts"),
    [
        ({"other.weight": torch.ones(3)}, ["--arch resnet20", "other.weight"]),
        ({"conv1.weight": torch.ones(2, 2)}, ["--arch resnet20", "conv1.weight"]),
        ({"bn1.num_batches_tracked": torch.tensor(3)}, ["--arch resnet20", "bn1.num_batches_tracked"]),
        (
            get_encoder("resnet20", 8)(num_classes=2).state_dict()
            | {"conv1.weight": torch.full((16, 3, 3, 3), torch.nan)},
            ["conv1.weight"],
        ),
        ({"state_dict": {"conv1.weight": torch.ones(16, 3, 3, 3)}, "arch": "resnet32"}, ["resnet32", "resnet20"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, facts, flags, tmp_path):
    torch.save(weights, tmp_path / "w.pth")
    words = [*flags, "--init-from", str(tmp_path / "w.pth"), "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "w.pth", *facts)
    assert not (tmp_path / "run" / "last.pth.tar").exists()


def test_run_folder_without_checkpoint_is_refused_with_the_name_of_the_missing_file(flags, tmp_path):
    words = [*flags, "--init-from", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), tmp_path / "last.pth.tar")


def test_missing_file_is_refused_before_start(flags, tmp_path):
    words = [*flags, "--init-from", "absent.pth", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--init-from absent.pth")
    assert not (tmp_path / "run").exists()


def test_torchvision_weights_are_loaded_from_cache(flags, tmp_path, monkeypatch, capsys):
    """The first layer of a small stem differs from torchvision's: it stays random and is listed in the output."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    source = torchvision.models.resnet18(weights=None)
    file = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(source.state_dict(), tmp_path / "hub" / "checkpoints" / file)
    words = [*ONE_EPOCH.split(), "--lr", "1e-30", "--wd", "0", "-a", "resnet18_small", "--init-from", "torchvision"]
    stage1.main([*flags, *words, "--run-dir", str(tmp_path / "run")])
    line_with(capsys.readouterr().out, "torchvision", 119, 120, "conv1.weight")
    written = checkpoint.strip_prefix(checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["state_dict"])
    assert torch.equal(written["encoder_q.layer4.1.conv2.weight"], source.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("arch", "library", "facts"),
    [
        ("resnet18", "torchvision", ["resnet18"]),
        ("timm:resnet10t", "timm", ["resnet10t"]),
        ("resnet20", "torchvision", ["resnet20"]),
        ("timm:resnet10t", "torchvision", ["--init-from torchvision", "timm:resnet10t"]),
        ("resnet18", "timm", ["--init-from timm", "resnet18", "torchvision"]),
    ],
)
def test_unavailable_library_weights_are_refused(arch, library, facts, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # a port on which nothing listens
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = tmp_path / "run"
    words = ["--image-size", "32", "-a", arch, "--init-from", library, "--run-dir", str(run)]
    refusal(lambda: stage1.main([*flags, *words]), *facts)
    assert not run.exists()
