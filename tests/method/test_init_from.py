"""--init-from: stage 1 from given weights, key by key."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.pretrained import start_from
from tests.refusals import line_with, refusal
from utils.run import checkpoint

ONE = "--epochs 1 --schedule"


@pytest.fixture
def encoder():
    return get_encoder("resnet20", 8)(num_classes=16)


def backbone(network) -> dict:
    return {name: weight for name, weight in network.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("kind", ["state dict", "safetensors", "stage 1"])
def test_both_encoders_start_there(kind, encoder, flags, tsc_run, tmp_path, capsys):
    """Before the first step; the heads are those of any run of the seed."""
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "state dict":
        torch.save(encoder.state_dict(), path)
    if kind == "safetensors":
        save_file(encoder.state_dict(), path)
    if kind == "stage 1":
        path = tsc_run / "last.pth.tar"
        encoder.load_state_dict({
            name.removeprefix("module.encoder_q."): weight
            for name, weight in checkpoint.read(path)["state_dict"].items() if name.startswith("module.encoder_q.")
        }, strict=False)  # fmt: skip
    start, fresh = (get_encoder("resnet20", 8)(num_classes=16) for _ in range(2))
    copies = [start, fresh]
    said = start_from(copies, path, "resnet20")
    expected = backbone(encoder)
    said = said.replace(str(path), "")
    assert said.count(str(len(expected))) == 2 and not any(name in said for name in expected)  # all are taken
    assert all(torch.equal(backbone(copy)[name], weight) for copy in copies for name, weight in expected.items())
    run = tmp_path / "run"
    stage1.main([*flags, *ONE.split(), "--lr", "1e-30", "--wd", "0", "--init-from", str(path), "--run-dir", str(run)])
    line_with(capsys.readouterr().out, path, len(expected))
    written = checkpoint.unpacked(checkpoint.load(run / "last.pth.tar"))
    assert torch.equal(written["encoder_q.layer3.2.conv2.weight"], expected["layer3.2.conv2.weight"])
    torch.testing.assert_close(written["encoder_k.layer3.2.conv2.weight"], expected["layer3.2.conv2.weight"])


def test_torchvisions_own_weights_and_a_small_stem_that_stays_random():
    source = torchvision.models.resnet18(weights=None)
    network = get_encoder("resnet18_small", 32)(num_classes=8)
    before = network.conv1.weight.clone()
    path = "w.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moco.pretrained.read_encoder", lambda _: (backbone(source), None))
        said = start_from([network], path, "resnet18_small")
    assert said.count("conv1.weight") == 2  # left in the file, and still random in the network
    assert torch.equal(network.conv1.weight, before)
    assert torch.equal(network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_a_resumed_run_has_its_own_weights(encoder, flags, tmp_path):
    """The file is not read again."""
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
        ({"conv1.weight": torch.full((16, 3, 3, 3), torch.nan)}, ["conv1.weight"]),
        ({"state_dict": {"conv1.weight": torch.ones(16, 3, 3, 3)}, "arch": "resnet32"}, ["resnet32", "resnet20"]),
    ],
)
def test_what_fits_in_nothing_is_refused(weights, facts, flags, tmp_path):
    torch.save(weights, tmp_path / "w.pth")
    words = [*flags, "--init-from", str(tmp_path / "w.pth"), "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "w.pth", *facts)
    assert not (tmp_path / "run" / "last.pth.tar").exists()


def test_a_file_that_is_not_there_is_said_before_the_start(flags, tmp_path):
    words = [*flags, "--init-from", "absent.pth", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--init-from absent.pth")
    assert not (tmp_path / "run").exists()


def test_the_weights_that_the_library_publishes(flags, tmp_path, monkeypatch, capsys):
    """From its cache, here; a small stem has another first layer, which stays random, and is said to."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    source = torchvision.models.resnet18(weights=None)
    file = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(source.state_dict(), tmp_path / "hub" / "checkpoints" / file)
    words = [*ONE.split(), "--lr", "1e-30", "--wd", "0", "-a", "resnet18_small", "--init-from", "torchvision"]
    stage1.main([*flags, *words, "--run-dir", str(tmp_path / "run")])
    line_with(capsys.readouterr().out, "torchvision", 119, 120, "conv1.weight")
    written = checkpoint.unpacked(checkpoint.load(tmp_path / "run" / "last.pth.tar"))
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
def test_weights_that_cannot_be_had_are_named_in_a_line(arch, library, facts, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = tmp_path / "run"
    words = ["--image-size", "32", "-a", arch, "--init-from", library, "--run-dir", str(run)]
    refusal(lambda: stage1.main([*flags, *words]), *facts)
    assert not run.exists()
