"""Runs on networks of torchvision and timm: both stages, resumed, their weights exported and imported."""

import json

import pytest
import safetensors.torch
import timm
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.export import __main__ as export
from moco.pretrained import start_from
from tests import three
from tests.encoders.test_library import images, of_library
from tests.refusals import line_with, refusal
from tests.stopping import assert_stops_change_nothing
from utils.run import checkpoint

# One has dropout inside, one has no batch norm.
ARCHS = ("mobilenet_v3_small", "timm:convnext_atto")
SIDE = 32


@pytest.fixture(scope="module", autouse=True)
def row():
    with pytest.MonkeyPatch.context() as patch:
        three.register(patch)
        yield


@pytest.fixture(scope="module")
def data(row, tmp_path_factory) -> list[str]:
    """Sixteen images of three classes, two steps an epoch."""
    return [*three.flags(three.write(tmp_path_factory.mktemp("three"))), "--image-size", str(SIDE)]


@pytest.fixture(scope="module")
def tsc(data) -> list[str]:
    """An epoch of KCL and one of TSC."""
    targets = f"{data[data.index('--data-root') + 1]}/targets.npy"
    return [*data, *f"--targeted --sep_t --moco-dim 8 --moco-k 16 --targets {targets}".split()]


@pytest.fixture(scope="module", params=ARCHS)
def run(request, tsc, tmp_path_factory):
    """(architecture, the folder of a run of it)"""
    folder = tmp_path_factory.mktemp("library") / "run"
    stage1.main([*tsc, "-a", request.param, "--run-dir", str(folder)])
    return request.param, folder


@pytest.mark.parametrize(("arch", "steps"), [(ARCHS[0], (1, 2)), (ARCHS[1], (3,))])
def test_a_resumed_run_is_bit_identical(arch, steps, tsc, tmp_path, monkeypatch):
    """In the epoch of KCL, and in that of TSC; what a network draws inside is a function of the step.

    Images are read elsewhere: those that are read in this process leave their own state of the generator behind.
    """
    assert_stops_change_nothing(stage1.main, [*tsc, "-a", arch, "-j", "1"], tmp_path, monkeypatch, steps)


@pytest.mark.parametrize("run", ARCHS[:1], indirect=True)
def test_resumed_fine_tuning_is_bit_identical(data, run, tmp_path, monkeypatch):
    arch, folder = run
    words = [*data, "-a", arch, "--pretrained", str(folder / "last.pth.tar"), "--finetune", "--lr", "0.01", "-j", "1"]
    assert_stops_change_nothing(stage2.main, words, tmp_path, monkeypatch, (1,))


@pytest.mark.parametrize("run", ARCHS[1:], indirect=True)
def test_all_heads_are_fitted_to_its_features(run, data, tmp_path):
    arch, folder = run
    at = data.index("--epochs")
    words = [*data[:at], *data[at + 2 :], "-a", arch, "--compare-heads", "--pretrained", str(folder / "last.pth.tar")]
    stage2.main([*words, "--run-dir", str(tmp_path / "heads")])
    heads = json.loads((tmp_path / "heads" / "results.json").read_text())["heads"]
    assert {"logistic, post", "ncm", "target"} <= heads.keys()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_library_loads_what_export_writes(ending, run, tmp_path, capsys):
    """All but its classifier; both then compute the same features."""
    arch, folder = run
    out = tmp_path / f"encoder.{ending}"
    export.main([str(folder), str(out)])
    weights = safetensors.torch.load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
    name, library = arch.removeprefix("timm:"), of_library(arch)
    home = "torchvision.models" if name == arch else "timm"
    line_with(capsys.readouterr().out, out, f" {len(weights)} ", home, name)
    network = get_encoder(arch, SIDE)(num_classes=8)
    result = library.load_state_dict(weights, strict=False)
    classifier = network.classifiers[0]
    assert (set(result.missing_keys), result.unexpected_keys) == ({f"{classifier}.weight", f"{classifier}.bias"}, [])
    trained = checkpoint.unpacked(checkpoint.load(folder / "last.pth.tar"))
    network.load_state_dict({k[10:]: v for k, v in trained.items() if k.startswith("encoder_q.")})
    parent, _, last = classifier.rpartition(".")
    setattr(library.get_submodule(parent), last, torch.nn.Identity())
    x = images(2)[0]
    torch.testing.assert_close(network.eval().backbone(x), library.eval()(x), rtol=0, atol=0)


def test_the_names_of_another_library_are_refused(run, tmp_path):
    arch, folder = run
    other = "torchvision" if arch.startswith("timm:") else "timm"
    words = [str(folder), str(tmp_path / "encoder.pth"), "--to", other]
    refusal(lambda: export.main(words), "--to", other, arch)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", ARCHS)
def test_the_librarys_own_weights_are_a_start(arch, tmp_path):
    """Whatever its classifier was for; `fc` stays as it was."""
    weights = of_library(arch).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    network = get_encoder(arch, SIDE)(num_classes=16)
    before, count = network.fc.weight.clone(), len(network.state_dict()) - 2
    report = start_from([network], tmp_path / "weights.pth", arch)
    assert report.count(str(count)) >= 2  # taken, of the encoder's
    assert torch.equal(network.fc.weight, before)
    assert_has(network, weights)


def assert_has(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """The whole backbone is that of the weights."""
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_weights_of_dino_and_of_moco_v3_are_found(tmp_path):
    """A teacher's `backbone.`, a `base_encoder.`; weights that were trained beside them are skipped."""
    arch = "timm:vit_tiny_patch16_224"
    weights = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=0).state_dict()
    dino = {"teacher": {f"backbone.{k}": v for k, v in weights.items()} | {"head.mlp.0.weight": torch.zeros(3)}}
    moco = {"state_dict": {f"module.base_encoder.{k}": v for k, v in weights.items()}}
    moco["state_dict"] |= {f"module.momentum_encoder.{k}": torch.zeros_like(v) for k, v in weights.items()}
    for number, state in enumerate((dino, moco)):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        network = get_encoder(arch, SIDE)(num_classes=16)
        start_from([network], path, arch)
        assert_has(network, weights)
