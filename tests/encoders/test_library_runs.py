"""Runs on networks of the libraries: both stages, stopped and gone on, their weights out and in."""

import json

import pytest
import safetensors.torch
import timm
import torch
import torchvision

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.export import __main__ as export
from moco.pretrained import start_from
from tests import three
from tests.encoders.test_library import images
from tests.stopping import assert_stops_change_nothing
from utils.errors import InputError
from utils.run import checkpoint

# One draws inside (dropout, and blocks that are skipped at random), one has no batch norm.
ARCHS = ("efficientnet_b0", "timm:convnext_atto")
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


@pytest.mark.parametrize("arch", ARCHS)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(arch, tsc, tmp_path, monkeypatch):
    """In the epoch of KCL, and in that of TSC; what a network draws inside is a function of the step.

    Images are read elsewhere: those that are read in this process leave their own state of the generator behind.
    """
    assert_stops_change_nothing(stage1.main, [*tsc, "-a", arch, "-j", "1"], tmp_path, monkeypatch, (1, 2))


def test_fine_tuning_goes_on_to_the_same_bits_too(data, run, tmp_path, monkeypatch):
    arch, folder = run
    words = [*data, "-a", arch, "--pretrained", str(folder / "last.pth.tar"), "--finetune", "--lr", "0.01", "-j", "1"]
    assert_stops_change_nothing(stage2.main, words, tmp_path, monkeypatch, (1, 2))


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
    name = arch.removeprefix("timm:")
    said = f"tensors of {'timm' if name != arch else 'torchvision.models'}' {name} but its classifier's"
    assert said in capsys.readouterr().out

    weights = safetensors.torch.load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
    library = timm.create_model(name) if name != arch else torchvision.models.get_model(name)
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


def test_export_says_whose_names_there_are(run, tmp_path):
    arch, folder = run
    other = "torchvision" if arch.startswith("timm:") else "timm"
    with pytest.raises(InputError, match=rf"--to {other}: {arch} is \w+'s, and has no other names; leave --to out"):
        export.main([str(folder), str(tmp_path / "encoder.pth"), "--to", other])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", ARCHS)
def test_the_librarys_own_weights_are_a_start(arch, tmp_path):
    """Whatever its classifier was for; `fc` stays as it was."""
    name = arch.removeprefix("timm:")
    library = timm.create_model(name) if name != arch else torchvision.models.get_model(name)
    torch.save(library.state_dict(), tmp_path / "weights.pth")
    network = get_encoder(arch, SIDE)(num_classes=16)
    before, count = network.fc.weight.clone(), len(network.state_dict()) - 2
    said = start_from([network], tmp_path / "weights.pth", arch)
    assert f"{count} of the encoder's {count} tensors; left in it: nothing; random still: nothing" in said
    assert torch.equal(network.fc.weight, before)
    first = next(iter(library.state_dict()))
    assert torch.equal(network.state_dict()[f"backbone.{first}"], library.state_dict()[first])


def test_weights_of_dino_and_of_moco_v3_are_found(tmp_path):
    """A teacher's `backbone.`, a `base_encoder.`; what was trained beside them is left."""
    arch = "timm:vit_tiny_patch16_224"
    weights = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=0).state_dict()
    dino = {"teacher": {f"backbone.{k}": v for k, v in weights.items()} | {"head.mlp.0.weight": torch.zeros(3)}}
    moco = {"state_dict": {f"module.base_encoder.{k}": v for k, v in weights.items()}}
    moco["state_dict"] |= {f"module.momentum_encoder.{k}": torch.zeros_like(v) for k, v in weights.items()}
    for number, state in enumerate((dino, moco)):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        network = get_encoder(arch, SIDE)(num_classes=16)
        assert "random still: nothing" in start_from([network], path, arch)
        assert torch.equal(network.backbone.pos_embed, weights["pos_embed"])
