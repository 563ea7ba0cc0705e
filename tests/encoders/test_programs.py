"""Networks out of a run: weights that their library loads, and programs that run without this project."""

import importlib.util
import subprocess
import sys
from inspect import signature

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from moco.builder import KCL, unit
from moco.encoders import get_encoder
from moco.encoders.small import OWN
from moco.export import __main__ as export
from moco.export import programs
from moco.heads.classifiers import CosineClassifier, Projected, linear_classifier
from tests.encoders.test_library import BATCH_NORM
from tests.tiny import release_style
from utils.errors import InputError
from utils.run import checkpoint

# torch 2.4's own, of what torch.export.load does
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
    pytest.mark.filterwarnings("ignore:Node encoder_:UserWarning"),
]
SIDE = 32
ONNX = "dynamic_shapes" in signature(torch.onnx.export).parameters  # PyTorch of today, not the oldest
needs_onnx = pytest.mark.skipif(not ONNX, reason="this PyTorch writes no ONNX, which is tested below")


def pretrained(arch: str) -> KCL:
    torch.manual_seed(0)
    return KCL(get_encoder(arch, SIDE), 16, 8, mlp=True, num_classes=3)


def written(model: KCL, arch: str, folder) -> str:
    """A checkpoint of stage 1; its path."""
    torch.save({**release_style(model, arch=arch), "args": {"image_size": SIDE}}, folder / "last.pth.tar")
    return str(folder / "last.pth.tar")


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def outputs(path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a written program, by name; of .pt2, which has no names, by number."""
    if path.suffix == ".pt2":
        return dict(enumerate(torch.export.load(path).module()(x)))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    names = [out.name for out in session.get_outputs()]
    (given,) = session.get_inputs()
    assert given.name == "images" and given.shape[1:] == [3, SIDE, SIDE]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {"images": x.numpy()})), strict=True))


@pytest.mark.parametrize("arch", BATCH_NORM)
def test_what_is_exported_computes_what_the_run_does(arch, tmp_path):
    """The library's network with the exported weights, and the program with its projection."""
    model = pretrained(arch)
    source = written(model, arch, tmp_path)
    encoder = model.encoder_q.eval()
    with torch.no_grad():
        embedding = unit(encoder(images()))
        encoder.fc = nn.Identity()
        features = encoder(images())

    export.main([source, str(tmp_path / "encoder.safetensors")])
    name = arch.removeprefix("timm:")
    if arch in OWN:
        library = OWN[arch](num_classes=2)
    elif name != arch:
        sized = {"img_size": SIDE} if "vit" in name else {}
        library = timm.create_model(name, num_classes=0, **sized)
    else:
        library = torchvision.models.get_model(name, **({"image_size": SIDE} if "vit" in name else {}))
    classifier = ("fc",) if not hasattr(encoder, "classifiers") else encoder.classifiers
    missing = library.load_state_dict(safetensors.torch.load_file(tmp_path / "encoder.safetensors"), strict=False)
    assert not missing.unexpected_keys and all(key.startswith(classifier) for key in missing.missing_keys)
    if missing.missing_keys:
        parent, _, last = classifier[0].rpartition(".")
        setattr(library.get_submodule(parent), last, nn.Identity())
    with torch.no_grad():
        torch.testing.assert_close(library.eval()(images()), features, rtol=0, atol=0)

    export.main([source, str(tmp_path / "encoder.pt2")])
    for ours, theirs in zip((features, embedding), outputs(tmp_path / "encoder.pt2", images()).values(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


HEADS = {
    "linear": lambda width: linear_classifier(torch.randn(5, width), torch.randn(5)),
    "cosine": lambda width: CosineClassifier(torch.randn(5, width), 7.0, torch.randn(5)),
    "target": lambda width: Projected(
        nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8)), CosineClassifier(torch.randn(5, 8), 10)
    ),
}


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=needs_onnx)])
@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_is_exported_with_its_head(head, ending, tmp_path, capsys):
    """Of a checkpoint of stage 2: the logits that it computes, for one image and for many."""
    torch.manual_seed(0)
    network = get_encoder("resnet20", SIDE)(num_classes=5).eval()
    network.fc = HEADS[head](network.fc.in_features)
    checkpoint.save_network(tmp_path / "best.pth.tar", network, epoch=0, arch="resnet20", args={"image_size": SIDE})
    path = tmp_path / f"classifier.{ending}"
    export.main([str(tmp_path / "best.pth.tar"), str(path)])
    assert "resnet20 of images (N, 3, 32, 32) to features and logits" in capsys.readouterr().out
    for count in (1, 4):
        features, logits = outputs(path, images(count)).values()
        assert features.shape == (count, 64)
        torch.testing.assert_close(logits, network(images(count)).detach(), rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("arch", ["efficientnet_b0", "timm:convnext_atto"])
def test_a_pretrained_encoder_as_onnx(arch, tmp_path):
    """Its outputs by name; an embedding has unit length."""
    model = pretrained(arch)
    export.main([written(model, arch, tmp_path), str(tmp_path / "encoder.onnx")])
    found = outputs(tmp_path / "encoder.onnx", images())
    assert list(found) == ["features", "embedding"]
    with torch.no_grad():
        embedding = unit(model.encoder_q.eval()(images()))
    torch.testing.assert_close(found["embedding"], embedding, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["embedding"].norm(dim=1), torch.ones(3))


def test_a_program_needs_nothing_of_this_project(tmp_path):
    """Run elsewhere, where the project cannot be imported."""
    export.main([written(pretrained("resnet20"), "resnet20", tmp_path), str(tmp_path / "encoder.pt2")])
    code = (
        "import sys, torch\n"
        "out = torch.export.load('encoder.pt2').module()(torch.zeros(2, 3, 32, 32))\n"
        "print([tuple(o.shape) for o in out], 'moco' in sys.modules)"
    )
    words = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[(2, 64), (2, 16)] False"


def test_an_encoders_file_has_features_alone(tmp_path):
    weights = {k: v for k, v in pretrained("resnet20").encoder_q.state_dict().items() if not k.startswith("fc.")}
    torch.save(weights, tmp_path / "encoder.pth")
    words = [str(tmp_path / "encoder.pth"), str(tmp_path / "encoder.pt2"), "-a", "resnet20", "--image-size", str(SIDE)]
    export.main(words)
    (features,) = outputs(tmp_path / "encoder.pt2", images()).values()
    assert features.shape == (3, 64)


def test_a_program_that_computes_another_thing_is_not_written(tmp_path, monkeypatch):
    """As a compiler's fault would have it: here a program of other weights."""
    real = torch.export.export

    def of_other_weights(network, *args, **kwargs):
        other = programs.trained_network(tmp_path / "last.pth.tar", "resnet20", SIDE)
        nn.init.normal_(other.encoder.conv1.weight)
        return real(other, *args, **kwargs)

    source = written(pretrained("resnet20"), "resnet20", tmp_path)
    monkeypatch.setattr(torch.export, "export", of_other_weights)
    with pytest.raises(InputError, match=r"the exported program computes other features than the network, by \S+ of"):
        export.main([source, str(tmp_path / "encoder.pt2")])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth.tar"]


def test_a_network_that_pytorch_cannot_follow_is_refused():
    class Branches(nn.Module):
        fc = None

        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(InputError, match=r"this network cannot be exported as a program \(.+\)"):
        programs.as_program(programs.Outputs(Branches(), None, programs.LOGITS), SIDE)


def test_where_onnx_cannot_be_written_a_line_says_why(tmp_path, monkeypatch):
    words = [written(pretrained("resnet20"), "resnet20", tmp_path), str(tmp_path / "encoder.onnx")]
    if not ONNX:
        with pytest.raises(InputError, match=r"needs PyTorch 2\.5 or newer, found 2\.4"):
            export.main(words)
    real = importlib.util.find_spec
    missing = ("onnx", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    with pytest.raises(InputError, match=r"needs onnx, onnxruntime, not installed; pip install -r requirements-extra"):
        export.main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth.tar"]


@needs_onnx
def test_a_network_too_large_for_one_onnx_file_is_refused(monkeypatch):
    monkeypatch.setattr(programs, "ONNX_LIMIT", 1000)
    network = programs.Outputs(get_encoder("resnet20", SIDE)(num_classes=2), None, programs.LOGITS)
    with pytest.raises(InputError, match=r"1\.1 MB of weights, an ONNX file holds .*; write \.pt2"):
        programs.onnx_file(network, SIDE)
