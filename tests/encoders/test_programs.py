"""Exported networks: weights that the network's library loads, and programs that run without this project."""

import importlib.util
import subprocess
import sys
from inspect import signature

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from moco.builder import KCL, l2_normalise
from moco.encoders import get_encoder
from moco.encoders.small import PROJECT_NETWORKS
from moco.export import __main__ as export
from moco.export import programs
from moco.heads.classifiers import CosineClassifier, ProjectedClassifier, linear_classifier
from tests.encoders.test_library import library_network
from tests.refusals import line_with, refusal
from tests.tiny import release_style
from utils.run import checkpoint

# warnings of torch 2.4 in torch.export.load
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
    pytest.mark.filterwarnings("ignore:Node encoder_:UserWarning"),
]
SIDE = 32
ONNX = "dynamic_shapes" in signature(torch.onnx.export).parameters  # not in the oldest supported PyTorch
needs_onnx = pytest.mark.skipif(not ONNX, reason="this PyTorch cannot write ONNX; its error is tested below")
# The format to export for each architecture. PyTorch exports both formats alike and then converts to ONNX.
PROGRAMS = dict.fromkeys(("resnet18_small", "timm:resnet10t", "timm:vit_tiny_patch16_224"), ".pt2")
PROGRAMS |= {"timm:convnext_atto": ".onnx" if ONNX else ".pt2"}


def pretrained_model(arch: str) -> KCL:
    torch.manual_seed(0)
    return KCL(get_encoder(arch, SIDE), 16, 8, mlp=True, num_classes=3)


def save_checkpoint(model: KCL, arch: str, folder) -> str:
    """Save a stage-1 checkpoint and return its path."""
    torch.save({**release_style(model, arch=arch), "args": {"image_size": SIDE}}, folder / "last.pth.tar")
    return str(folder / "last.pth.tar")


def images(count: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def outputs(path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the outputs of a program by name, or by number for .pt2, which has no names."""
    if path.suffix == ".pt2":
        return dict(enumerate(torch.export.load(path).module()(x)))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    names = [out.name for out in session.get_outputs()]
    (given,) = session.get_inputs()
    assert given.name == "images" and given.shape[1:] == [*x.shape[1:]]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {"images": x.numpy()})), strict=True))


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_b0", *PROGRAMS])
def test_library_with_exported_weights_matches_encoder(arch, tmp_path):
    model = pretrained_model(arch)
    export.main([save_checkpoint(model, arch, tmp_path), str(tmp_path / "encoder.safetensors")])
    weights = safetensors.torch.load_file(tmp_path / "encoder.safetensors")
    sized = {"img_size": SIDE} if "vit" in arch else {}
    library = PROJECT_NETWORKS[arch](num_classes=2) if arch in PROJECT_NETWORKS else library_network(arch, **sized)
    encoder = model.encoder_q
    classifier = getattr(encoder, "classifiers", ("fc",))[0]
    missing = library.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) == {f"{classifier}.weight", f"{classifier}.bias"}
    parent, _, last = classifier.rpartition(".")
    setattr(library.get_submodule(parent), last, nn.Identity())
    encoder.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(library.eval()(images()), encoder.eval()(images()), rtol=0, atol=0)


@pytest.mark.parametrize("arch", PROGRAMS)
def test_program_matches_pretrained_encoder(arch, tmp_path):
    """Compares the features and the embedding, which have names in ONNX. An embedding has unit length."""
    model, path = pretrained_model(arch), tmp_path / f"encoder{PROGRAMS[arch]}"
    export.main([save_checkpoint(model, arch, tmp_path), str(path)])
    found, encoder = outputs(path, images()), model.encoder_q.eval()
    assert list(found) == (["features", "embedding"] if path.suffix == ".onnx" else [0, 1])
    with torch.no_grad():
        embedding = l2_normalise(encoder(images()))
        encoder.fc = nn.Identity()
        features = encoder(images())
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if path.suffix == ".onnx" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close([*found.values()], [features, embedding], **tolerance)
    torch.testing.assert_close([*found.values()][1].norm(dim=1), torch.ones(3))


TRANSFORMERS = {  # small networks with every kind of layer of the large ones
    "vit": lambda: VisionTransformer(SIDE, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16),
    "swin": lambda: SwinTransformer([4, 4], 8, depths=[2], num_heads=[2], window_size=[2, 2]),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_of_torchvision_are_exported(name, tmp_path):
    network = TRANSFORMERS[name]()
    network.heads = network.head = nn.Identity()  # the head of a new ViT is 0
    small = programs.ExportNetwork(network, None, programs.LOGITS).eval().requires_grad_(False)
    (tmp_path / "encoder.pt2").write_bytes(programs.pt2_file(small, SIDE))
    (features,) = outputs(tmp_path / "encoder.pt2", images()).values()
    assert features.std() > 0.1
    torch.testing.assert_close(features, network(images()), rtol=1e-4, atol=1e-5)


HEADS = {
    "linear": lambda width: linear_classifier(torch.randn(5, width), torch.randn(5)),
    "cosine": lambda width: CosineClassifier(torch.randn(5, width), 7.0, torch.randn(5)),
    "target": lambda width: ProjectedClassifier(
        nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8)), CosineClassifier(torch.randn(5, 8), 10)
    ),
}


@pytest.mark.parametrize(
    ("head", "ending"), [*((head, "pt2") for head in HEADS), pytest.param("target", "onnx", marks=needs_onnx)]
)
def test_classifier_is_exported_with_its_head(head, ending, tmp_path, capsys):
    """Exports a stage-2 checkpoint and compares its logits with the network's, for one image and for several."""
    torch.manual_seed(0)
    network = get_encoder("lenet", 12)(num_classes=5).eval()
    network.fc = HEADS[head](network.fc.in_features)
    checkpoint.save_network(tmp_path / "best.pth.tar", network, epoch=0, arch="lenet", args={"image_size": 12})
    path = tmp_path / f"classifier.{ending}"
    export.main([str(tmp_path / "best.pth.tar"), str(path)])
    line_with(capsys.readouterr().out, path, "lenet", "(N, 3, 12, 12)", "features", "logits")
    for count in (1, 4):
        x = images(count, 12)
        features, logits = outputs(path, x).values()
        assert features.shape == (count, 256)
        torch.testing.assert_close(logits, network(x).detach(), rtol=1e-4, atol=1e-4)


def test_program_runs_without_this_project(tmp_path):
    """Runs in a folder from which the project cannot be imported."""
    export.main([save_checkpoint(pretrained_model("lenet"), "lenet", tmp_path), str(tmp_path / "encoder.pt2")])
    code = (
        "import sys, torch\n"
        "out = torch.export.load('encoder.pt2').module()(torch.zeros(2, 3, 32, 32))\n"
        "print([tuple(o.shape) for o in out], 'moco' in sys.modules)"
    )
    words = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[(2, 256), (2, 16)] False"


def test_program_of_encoder_file_outputs_only_features(tmp_path):
    weights = {k: v for k, v in pretrained_model("lenet").encoder_q.state_dict().items() if not k.startswith("fc.")}
    torch.save(weights, tmp_path / "encoder.pth")
    words = [str(tmp_path / "encoder.pth"), str(tmp_path / "encoder.pt2"), "-a", "lenet", "--image-size", str(SIDE)]
    export.main(words)
    (features,) = outputs(tmp_path / "encoder.pt2", images()).values()
    assert features.shape == (3, 256)


def test_program_with_wrong_outputs_is_not_written(tmp_path, monkeypatch):
    """Imitates a bug of the compiler: the program has other weights."""
    real = torch.export.export

    def export_other_weights(network, *args, **kwargs):
        other = programs.trained_network(source, checkpoint.read_file(source), "lenet", SIDE)
        nn.init.normal_(other.encoder.conv1.weight)
        return real(other, *args, **kwargs)

    source = save_checkpoint(pretrained_model("lenet"), "lenet", tmp_path)
    monkeypatch.setattr(torch.export, "export", export_other_weights)
    refusal(lambda: export.main([source, str(tmp_path / "encoder.pt2")]), "features")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth.tar"]


def test_network_that_cannot_be_traced_is_refused():
    class Branches(nn.Module):
        fc = None

        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    refusal(lambda: programs.as_program(programs.ExportNetwork(Branches(), None, programs.LOGITS), SIDE))


def test_missing_onnx_packages_are_named(tmp_path, monkeypatch):
    words = [save_checkpoint(pretrained_model("lenet"), "lenet", tmp_path), str(tmp_path / "encoder.onnx")]
    if not ONNX:
        refusal(lambda: export.main(words), "onnx", "2.5", "2.4")
    real = importlib.util.find_spec
    missing = ("onnx", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    refusal(lambda: export.main(words), "onnx, onnxruntime", "requirements-extra.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth.tar"]


@needs_onnx
def test_network_too_large_for_onnx_file_is_refused(monkeypatch):
    monkeypatch.setattr(programs, "ONNX_LIMIT", 1000)
    network = programs.ExportNetwork(get_encoder("resnet20", SIDE)(num_classes=2), None, programs.LOGITS)
    refusal(lambda: programs.onnx_file(network, SIDE), "1.1 MB", ".pt2")
