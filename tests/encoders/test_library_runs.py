"""Runs on networks of torchvision and timm: train both stages, resume, export and import weights."""

import json

import pytest
import safetensors.torch
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.export import __main__ as export
from moco.pretrained import init_encoders
from tests import three
from tests.encoders.test_library import images, library_network
from tests.refusals import line_with, refusal
from tests.stopping import assert_resumes_bit_identical
from utils.run import checkpoint

# The first has dropout, the second has no batch norm.
ARCHS = ("mobilenet_v3_small", "timm:convnext_atto")
SIDE = 32


@pytest.fixture(scope="module", autouse=True)
def three_classes():
    with pytest.MonkeyPatch.context() as patch:
        three.register(patch)
        yield


@pytest.fixture(scope="module")
def data(three_classes, tmp_path_factory) -> list[str]:
    """Return flags of sixteen images in three classes: two steps per epoch."""
    return [*three.flags(three.write(tmp_path_factory.mktemp("three"))), "--image-size", str(SIDE)]


@pytest.fixture(scope="module")
def tsc_flags(data) -> list[str]:
    """Return flags of an epoch of KCL and one of TSC."""
    targets = f"{data[data.index('--data-root') + 1]}/targets.npy"
    return [*data, *f"--targeted --sep_t --moco-dim 8 --moco-k 16 --targets {targets}".split()]


@pytest.fixture(scope="module", params=ARCHS)
def run(request, tsc_flags, tmp_path_factory):
    """Train a run of an architecture; return the architecture and the run folder."""
    folder = tmp_path_factory.mktemp("library") / "run"
    stage1.main([*tsc_flags, "-a", request.param, "--run-dir", str(folder)])
    return request.param, folder


@pytest.mark.parametrize(("arch", "steps"), [(ARCHS[0], (1, 2)), (ARCHS[1], (3,))])
def test_resumed_run_is_bit_identical(arch, steps, tsc_flags, tmp_path, monkeypatch):
    """The run is stopped in KCL and in TSC. Dropout and other random layers depend only on the step.

    A loader process reads the images, because reading them in this process would change its random state.
    """
    assert_resumes_bit_identical(stage1.main, [*tsc_flags, "-a", arch, "-j", "1"], tmp_path, monkeypatch, steps)


@pytest.mark.parametrize("run", ARCHS[:1], indirect=True)
def test_resumed_fine_tuning_is_bit_identical(data, run, tmp_path, monkeypatch):
    arch, folder = run
    words = [*data, "-a", arch, "--pretrained", str(folder / "last.pth.tar"), "--finetune", "--lr", "0.01", "-j", "1"]
    assert_resumes_bit_identical(stage2.main, words, tmp_path, monkeypatch, (1,))


@pytest.mark.parametrize("run", ARCHS[1:], indirect=True)
def test_all_heads_are_fitted_to_features_of_library_network(run, data, tmp_path):
    arch, folder = run
    at = data.index("--epochs")
    words = [*data[:at], *data[at + 2 :], "-a", arch, "--compare-heads", "--pretrained", str(folder / "last.pth.tar")]
    stage2.main([*words, "--run-dir", str(tmp_path / "heads")])
    heads = json.loads((tmp_path / "heads" / "results.json").read_text())["heads"]
    assert {"logistic, post", "ncm", "target"} <= heads.keys()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_library_loads_exported_weights(ending, run, tmp_path, capsys):
    """Only the library's classifier is missing in the file. Both networks compute the same features."""
    arch, folder = run
    out = tmp_path / f"encoder.{ending}"
    export.main([str(folder), str(out)])
    weights = safetensors.torch.load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
    name, library = arch.removeprefix("timm:"), library_network(arch)
    home = "torchvision.models" if name == arch else "timm"
    line_with(capsys.readouterr().out, out, f" {len(weights)} ", home, name)
    network = get_encoder(arch, SIDE)(num_classes=8)
    result = library.load_state_dict(weights, strict=False)
    classifier = network.classifiers[0]
    assert (set(result.missing_keys), result.unexpected_keys) == ({f"{classifier}.weight", f"{classifier}.bias"}, [])
    trained = checkpoint.strip_prefix(checkpoint.read_checkpoint(folder / "last.pth.tar")["state_dict"])
    network.load_state_dict({k[10:]: v for k, v in trained.items() if k.startswith("encoder_q.")})
    parent, _, last = classifier.rpartition(".")
    setattr(library.get_submodule(parent), last, torch.nn.Identity())
    x = images(2)[0]
    torch.testing.assert_close(network.eval().backbone(x), library.eval()(x), rtol=0, atol=0)


def test_export_to_other_library_is_refused(run, tmp_path):
    arch, folder = run
    other = "torchvision" if arch.startswith("timm:") else "timm"
    words = [str(folder), str(tmp_path / "encoder.pth"), "--to", other]
    refusal(lambda: export.main(words), "--to", other, arch)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", ARCHS)
def test_training_starts_from_weights_of_library(arch, tmp_path):
    """The library's classifier is ignored, and `fc` keeps its initial weights."""
    weights = library_network(arch).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    network = get_encoder(arch, SIDE)(num_classes=16)
    before, count = network.fc.weight.clone(), len(network.state_dict()) - 2
    report = init_encoders([network], tmp_path / "weights.pth", arch)
    assert report.count(str(count)) >= 2  # loaded weights, and all weights of the encoder
    assert torch.equal(network.fc.weight, before)
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
