"""features.npz of a run folder: its content, when it is written, and errors for damaged files."""

import io
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import main_moco_supcon_imba as stage1
from imagenet_inat import options
from imagenet_inat.loaders import build_eval_loaders
from moco.methods.loading import load_method
from tests.refusals import refusal
from tests.stopping import assert_same_features
from utils.distributed.launch import ProcessInfo
from utils.measure.feature_file import NAME, RunFeatures, read_features, write_features
from utils.run import checkpoint


def test_feature_file_holds_validation_features(monitored):
    state = checkpoint.read_checkpoint(monitored / checkpoint.LAST)
    weights = checkpoint.strip_prefix(state["state_dict"])
    method = load_method(monitored / checkpoint.LAST, torch.device("cpu"))
    data = options.build_data_config(options.DataFlags.from_args(method.settings))
    images, labels = zip(
        *build_eval_loaders(data, ("val",), 100, ProcessInfo(torch.device("cpu"), 0))["val"], strict=True
    )
    with torch.no_grad():
        features = normalize(method.model.encoder_q.eval()(torch.cat(images)), dim=1)
    targets = weights["optimal_target"][state["assignment"]]  # row y is the target of class y

    stored = read_features(monitored)
    torch.testing.assert_close(stored.features, features)
    assert torch.equal(stored.labels, torch.cat(labels)) and stored.epoch == 4
    assert stored.class_counts.tolist() == data.open("train").class_counts.tolist()
    assert torch.equal(stored.targets, targets)
    torch.testing.assert_close(stored.centroid_cosines, (weights["class_centroid"] * targets).sum(dim=1))


def test_probe_checkpoint_is_refused_as_trained_method(probe_run):
    refusal(
        lambda: load_method(probe_run / checkpoint.LAST, torch.device("cpu")), checkpoint.LAST, "--loss", "--contrast"
    )


def test_feature_file_is_written_after_last_epoch(monitored, few_images_flags, tmp_path):
    stage1.main([*few_images_flags, "--monitor-freq", "3", "--run-dir", str(tmp_path)])
    assert_same_features(tmp_path, monitored)


def test_finished_run_gets_feature_file_without_training(monitored, unmonitored, few_images_flags, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(unmonitored, run)
    assert not (run / NAME).exists()
    capsys.readouterr()
    stage1.main([*few_images_flags, "--run-dir", str(run), "--resume", "auto", "--monitor-freq", "1"])
    assert "Epoch:" not in capsys.readouterr().out
    assert_same_features(run, monitored)
    for name in (checkpoint.LAST, "log.jsonl"):
        assert (run / name).read_bytes() == (unmonitored / name).read_bytes()


GOOD = {
    "features": np.eye(3, 2, dtype=np.float32),
    "labels": np.array([0, 1, 1]),
    "class_counts": np.array([5, 1]),
    "epoch": np.array(4),
    "targets": np.eye(2, dtype=np.float32),
    "centroid_cosines": np.ones(2, dtype=np.float32),
}


@pytest.mark.parametrize("with_targets", [True, False])
def test_feature_file_round_trip(with_targets, tmp_path):
    tensors = {name: torch.from_numpy(array) for name, array in GOOD.items()} | {"epoch": 4}
    if not with_targets:
        tensors |= {"targets": None, "centroid_cosines": None}
    write_features(tmp_path, RunFeatures(**tensors))
    for name, value in read_features(tmp_path)._asdict().items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"labels": None, "epoch": None}, ["epoch", "labels"]),
        ({"targets": None}, ["targets"]),
        ({"labels": np.array([0, 1])}, ["labels", "(2,)", "3"]),
        ({"features": np.zeros((0, 2), np.float32)}, ["features", "(0, 2)"]),
        ({"targets": np.eye(3, dtype=np.float32)}, ["targets", "(3, 3)"]),
        ({"epoch": np.array([4])}, ["epoch", "(1,)", "()"]),
        ({"features": np.eye(3, 2)}, ["features", "float64", "float32"]),
        ({"labels": np.zeros(3, ">i8")}, ["labels", ">i8", "int64"]),
        ({"features": np.full((3, 2), np.nan, np.float32)}, ["features", "finite"]),
        ({"labels": np.array([0, 1, 2])}, ["label", "2 classes"]),
        ({"labels": np.array([0, 1, None])}, ["Object arrays"]),  # NumPy's error message
    ],
)
def test_invalid_feature_file_is_refused(change, facts, tmp_path):
    np.savez(tmp_path / NAME, **{name: array for name, array in (GOOD | change).items() if array is not None})
    refusal(lambda: read_features(tmp_path), tmp_path / NAME, *facts)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"\x93NUMPY\x01\x00", None])
def test_missing_or_damaged_feature_file_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    refusal(lambda: read_features(tmp_path), tmp_path / NAME, ".npz" if content is not None else "No such file")


def test_python_2_header_is_read_without_warning(tmp_path):
    """Python 2 wrote shapes as (3L, 2). A warning would fail the test."""
    with zipfile.ZipFile(tmp_path / NAME, "w") as archive:
        for name, array in GOOD.items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", file.getvalue().replace(b"(3, 2), } ", b"(3L, 2), }"))
    assert read_features(tmp_path).features.shape == (3, 2)


def test_pipe_in_place_of_the_file_is_refused(tmp_path):
    """Reading a pipe would never end."""
    os.mkfifo(tmp_path / NAME)
    refusal(lambda: read_features(tmp_path), tmp_path / NAME)
