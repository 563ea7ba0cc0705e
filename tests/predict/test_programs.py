"""Exported classifiers: what they store for other programs, and predictions that equal PyTorch's."""

import csv
import importlib.util
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from imagenet_inat.predict import __main__ as predict
from moco.export import __main__ as export
from moco.loader import describe_eval_view, view_named
from moco.views.rows import VIEWS
from tests import ROOT
from tests.predict.conftest import NAMES
from tests.refusals import line_with, refusal
from utils.run import checkpoint

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
ENDINGS = [
    "pt2",
    pytest.param("onnx", marks=pytest.mark.skipif(not ONNX, reason="onnx, onnxscript, onnxruntime not installed")),
]


def metadata_of(path) -> dict:
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["metadata.json"])
    import onnxruntime

    return json.loads(onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map["metadata"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_program_predicts_as_its_checkpoint(ending, classifiers, named_flags, tmp_path, capsys):
    program, source = tmp_path / f"classifier.{ending}", classifiers["logistic"] / "model_best.pth.tar"
    export.main([str(source), str(program)])
    stored = metadata_of(program)
    assert stored["class_names"] == NAMES and stored["num_classes"] == 10
    assert stored["image_size"] == 8 and stored["mean"] == [0.305] * 3 and stored["std"] == [0.376] * 3
    assert stored["evaluation_view"]["resize"] == [8, 8] and stored["outputs"] == ["features", "logits"]
    at = {name: named_flags[named_flags.index(name) + 1] for name in ("--test-txt", "--data-root")}
    images = ["--list", at["--test-txt"], "--data-root", at["--data-root"]]
    found, accuracies = [], []
    for classifier in (source, program):
        capsys.readouterr()
        predict.main([str(classifier), *images])
        out, err = capsys.readouterr()
        found.append(list(csv.DictReader(io.StringIO(out))))
        accuracies.append(err.splitlines()[-1])
    assert accuracies[0] == accuracies[1] and "accuracy" in accuracies[0]
    for ours, theirs in zip(*found, strict=True):
        assert [ours[name] for name in ("path", "label", "class_name")] == [
            theirs[name] for name in ("path", "label", "class_name")
        ]
        assert float(ours["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-4)


def test_statistics_of_older_checkpoint_are_those_of_its_data_set(classifiers, named_flags, tmp_path, capsys):
    """An older checkpoint stores only the name of the data set whose mean and std it uses."""
    state = checkpoint.read_file(classifiers["logistic"] / "model_best.pth.tar")
    torch.save({k: v for k, v in state.items() if k not in ("statistics", "class_names")}, tmp_path / "old.pth.tar")
    export.main([str(tmp_path / "old.pth.tar"), str(tmp_path / "old.pt2")])
    line_with(capsys.readouterr().out, "note", "mean, std")
    at = {name: named_flags[named_flags.index(name) + 1] for name in ("--test-txt", "--data-root")}
    images = ["--list", at["--test-txt"], "--data-root", at["--data-root"]]
    lines = []
    for source in (classifiers["logistic"], tmp_path / "old.pth.tar", tmp_path / "old.pt2"):
        predict.main([str(source), *images])
        lines.append(capsys.readouterr().err.splitlines()[-1])
    assert lines[0] == lines[1] == lines[2]


def test_program_without_classifier_or_metadata_is_refused(tsc_run, tmp_path):
    export.main([str(tsc_run), str(tmp_path / "encoder.pt2")])
    refusal(lambda: predict.main([str(tmp_path / "encoder.pt2"), str(tmp_path)]), "encoder.pt2", "classifier")
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    refusal(lambda: predict.main([str(tmp_path / "other.pt2"), str(tmp_path)]), "other.pt2", "moco.export")
    (tmp_path / "bad.pt2").write_bytes(b"bad")
    refusal(lambda: predict.main([str(tmp_path / "bad.pt2"), str(tmp_path)]), "bad.pt2")


@pytest.mark.parametrize("view", VIEWS)
def test_description_of_evaluation_view_gives_its_pixels(view):
    """Resizes and crops an image by the description alone."""
    image = Image.effect_noise((50, 40), 80)
    said = describe_eval_view(view, 28)
    resized = F.resize(image, said["resize"], F.InterpolationMode(said["interpolation"]))
    ours = F.center_crop(resized, said["crop"]) if said["crop"] else resized
    assert np.array_equal(np.array(ours), np.array(view_named(view).eval_transform(28)(image)))


@pytest.mark.parametrize("ending", ENDINGS)
def test_code_of_the_page_classifies_as_the_command(ending, classifiers, tmp_path, monkeypatch, capsys):
    """Runs the code of docs/using.md on two images, in a folder with the exported classifier."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "using.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name, size in (("cat.jpg", (40, 30)), ("dog.jpg", (9, 21))):
        Image.effect_noise(size, 90).save(name)
    for needed in {"pt2", ending}:
        export.main([str(classifiers["logistic"] / "model_best.pth.tar"), f"classifier.{needed}"])
    capsys.readouterr()
    found: dict = {}
    exec(blocks[0] if ending == "pt2" else "".join(blocks[:2]), found)
    printed = capsys.readouterr().out.split()
    predict.main([str(classifiers["logistic"]), "cat.jpg", "dog.jpg"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert printed == [row["class_name"] for row in rows]
    labels = torch.as_tensor(found["logits"]).argmax(dim=1).tolist()
    assert labels == [int(row["label"]) for row in rows]
