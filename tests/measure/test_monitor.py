"""--monitor-freq: the measures, unchanged training, and agreement of ranks."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import main_moco_supcon_imba as stage1
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.loaders import DeviceBatches, build_eval_loader
from moco.loader import Normalise
from moco.methods import METHODS
from moco.methods.base import Method
from tests.processes import free_port, join_group, spawn
from tests.refusals import refusal
from tests.stopping import assert_same_features
from tests.tiny import IMAGE, TinyEncoder, tiny_model
from utils.errors import Stopped
from utils.measure.extraction import extract_features
from utils.measure.feature_file import NAME, read_features
from utils.measure.monitor import FEATURE_MEASURES, Monitor, measure_features
from utils.run import checkpoint
from utils.run.logger import format_csv_table
from utils.run.signals import StopSignals

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def records(monitored):
    return [json.loads(line) for line in (monitored / "log.jsonl").read_text().splitlines()]


def test_unmonitored_epochs_have_empty_measures(records):
    due = [any(value is not None for value in record["val"].values()) for record in records]
    assert due == [False, True, False, True]
    assert all(tuple(record["val"]) == FEATURE_MEASURES for record in records)
    empty = {name for name, value in records[1]["val"].items() if value is None}
    assert empty == {"knn_many", "knn_medium"}  # all classes have few images


def test_tsc_logs_target_cosine_and_changes(records):
    assert [record["target_cosine"] is None for record in records] == [True, True, False, False]
    assert [record["target_changed"] is None for record in records] == [True, True, True, False]  # no previous epoch
    assert all(0 <= record["data_share"] <= 100 for record in records)


def test_epochs_csv_matches_log(monitored, records):
    rows = list(csv.DictReader((monitored / "epochs.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    knn = [float(row["val_knn_top1"] or "nan") for row in rows]
    assert knn == pytest.approx(
        [np.nan, records[1]["val"]["knn_top1"], np.nan, records[3]["val"]["knn_top1"]], nan_ok=True
    )
    assert float(rows[2]["loss"]) == records[2]["loss"]


def test_csv_has_columns_of_all_records():
    assert format_csv_table([{"epoch": 1, "val": {"loss": None}}, {"epoch": 2, "new": "a,b"}]) == (
        'epoch,val_loss,new\n1,,\n2,,"a,b"\n'
    )


def test_last_epoch_is_always_measured(tmp_path):
    monitor = Monitor(2, 5, np.full(7, 30), {}, tmp_path)
    assert [epoch for epoch in range(1, 6) if monitor.due(epoch)] == [2, 4, 5]


def test_monitor_does_not_change_weights(monitored, unmonitored):
    with_monitor, without = (checkpoint.read_checkpoint(run / "last.pth.tar") for run in (monitored, unmonitored))
    for name, weight in without["state_dict"].items():
        assert torch.equal(weight, with_monitor["state_dict"][name]), name


def test_run_stopped_during_measurement_resumes(monitored, records, few_images_flags, tmp_path, monkeypatch):
    words = [*few_images_flags, "--monitor-freq", "2", "--resume", "auto", "--run-dir", str(tmp_path)]
    measure = stage1.Monitor.measure

    def measure_and_stop(monitor, encoder, epochs_done, after_batch, assigned):
        if epochs_done == 4:
            monkeypatch.setattr(StopSignals, "any_rank_signal", lambda signals: 15)
            after_batch()
        return measure(monitor, encoder, epochs_done, after_batch, assigned)

    monkeypatch.setattr(stage1.Monitor, "measure", measure_and_stop)
    with pytest.raises(Stopped):
        stage1.main(words)
    monkeypatch.undo()
    stored = read_features(tmp_path)
    assert stored.epoch == 2 and stored.targets is None  # a complete file from the KCL phase
    stage1.main(words)
    assert_same_features(tmp_path, monitored)
    resumed_records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["val"] for r in resumed_records] == [r["val"] for r in records]
    assert [r["target_changed"] for r in resumed_records] == [r["target_changed"] for r in records]


def test_missing_validation_list_is_refused_before_start(flags, tmp_path):
    words = [*flags, "--val-txt", str(tmp_path / "val.txt"), "--monitor-freq", "1", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), tmp_path / "val.txt")
    assert not (tmp_path / "run").exists()


def test_measures_of_two_collapsed_classes():
    """Class 0 is at (1, 0), class 1 at (0, 1): kNN is correct, A = 0, U = U_k = √2. Class 2 has no image."""
    features, labels = torch.eye(2).repeat(3, 1), torch.tensor([0, 1] * 3)
    values = measure_features(features, labels, features, labels, np.array([150, 30, 5]))
    assert values == {
        "knn_top1": 100,
        "knn_many": 100,
        "knn_medium": 100,
        "knn_few": None,
        "alignment": 0,
        "uniformity": pytest.approx(2**0.5),
        "uniformity_k": pytest.approx(2**0.5),
        "nc1": pytest.approx(0),
        "nc2": pytest.approx(0),
    }


def make_method(model, previous_assignment: list[int] | None = None) -> Method:
    """Return the queue method of a model. previous_assignment: its assignment one epoch ago."""
    method = METHODS["queue"].load()(settings=None)
    method.model, method.previous_assignment = model, previous_assignment
    return method


def test_target_metrics_by_hand():
    """Centroids are at targets 1, 0 and 2, the last one rotated by 60 degrees. Two of three targets changed."""
    targets = torch.eye(3, 4)
    copies = targets.repeat_interleave(2, dim=0)
    model = SimpleNamespace(tr=2, targeted=True, optimal_target=copies, unique_targets=targets)
    model.assignment = torch.tensor([1, 0, 2])
    model.class_centroid = targets[[1, 0, 2]].clone()
    model.class_centroid[2] = torch.tensor([0, 0, 0.5, 0.75**0.5])
    method = make_method(model, [0, 1, 2])
    facts, words = method.epoch_metrics()
    assert facts == {"target_cosine": pytest.approx(2.5 / 3), "target_changed": pytest.approx(200 / 3)}
    assert words == "  cos(centroid, target) 0.833  targets changed 67 %"
    for assignment in (model.assignment, None):  # after a step, and from a checkpoint without the assignment
        model.assignment = assignment
        class_targets, cosines = method.class_targets_and_cosines()
        assert torch.equal(class_targets, targets[[1, 0, 2]])
        assert cosines.tolist() == pytest.approx([1, 1, 0.5])


def test_target_metrics_are_absent_without_targets():
    warm_up, kcl = make_method(tiny_model(targeted=False)), make_method(tiny_model(targets=None))
    assert warm_up.epoch_metrics() == ({"target_cosine": None, "target_changed": None}, "")
    assert kcl.epoch_metrics() == ({}, "") and warm_up.class_targets_and_cosines() is None


def test_targets_are_requested_only_when_features_are_stored(tmp_path):
    for every in (0, 2):
        monitor = Monitor(every, 100, np.full(7, 30), {}, tmp_path)
        assert not any(monitor.measure(None, 1, after_batch=pytest.fail, class_targets=pytest.fail).values())


SPEC = REGISTRY["digits"]


class BatchNormEncoder(TinyEncoder):
    def __init__(self):
        super().__init__(num_classes=4)
        self.norm = torch.nn.BatchNorm2d(IMAGE[0])

    def forward(self, images):
        return super().forward(self.norm(images))


def seven_images() -> TensorDataset:
    torch.manual_seed(0)
    return TensorDataset(torch.randint(0, 255, (7, *IMAGE), dtype=torch.uint8), torch.arange(7))


def batches_of(data: TensorDataset, size: int) -> DeviceBatches:
    return build_eval_loader(data, size, Normalise(SPEC.mean, SPEC.std, CPU), 0)


def test_feature_extraction_does_not_change_encoder():
    encoder = BatchNormEncoder().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    features, labels = extract_features(encoder, batches_of(seven_images(), 3))
    assert encoder.training and encoder.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))
    assert labels.tolist() == list(range(7))


def test_non_finite_features_are_counted():
    encoder = BatchNormEncoder()
    encoder.norm.running_var.fill_(-1)
    batches = batches_of(seven_images(), 3)
    refusal(lambda: extract_features(encoder, batches, where="epoch 4, val"), "epoch 4, val", "7 of 7", "features")


def test_non_finite_features_stop_run_and_keep_checkpoint(few_images_flags, tmp_path, monkeypatch):
    """The training loss is finite, but the features in evaluation mode are not."""
    measure = stage1.Monitor.measure

    def measure_nan_features(monitor, encoder, epochs_done, after_batch, assigned):
        if epochs_done == 2:
            encoder.bn1.running_var.fill_(-1)
        return measure(monitor, encoder, epochs_done, after_batch, assigned)

    monkeypatch.setattr(stage1.Monitor, "measure", measure_nan_features)
    words = [*few_images_flags, "--monitor-freq", "1", "--run-dir", str(tmp_path)]
    refusal(lambda: stage1.main(words), "epoch 2, train", "24 of 24", "features")
    assert checkpoint.read_checkpoint(tmp_path / "last.pth.tar")["epoch"] == 1
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1]


def same_encoder() -> BatchNormEncoder:
    torch.manual_seed(1)
    return BatchNormEncoder()


def run_rank(rank: int, port: int, folder: str) -> None:
    with join_group(rank, port):
        torch.save(features_and_knn(), f"{folder}/{rank}.pt")
        batches, run = batches_of(seven_images(), 2), Path(folder) / str(rank)
        run.mkdir()
        Monitor(1, 1, np.full(7, 30), {"val": batches}, run).finish(same_encoder(), 1)


def features_and_knn():
    features, labels = extract_features(same_encoder(), batches_of(seven_images(), 2))
    return features, labels, measure_features(features, labels, features.flip(0), labels, np.full(7, 30))


def test_two_ranks_extract_each_image_once_in_order(tmp_path):
    """Of seven images, one rank has four and the other three."""
    spawn(run_rank, (free_port(), str(tmp_path)), nprocs=2)
    features, labels, values = features_and_knn()
    assert values["knn_top1"] == pytest.approx(100 / 7)
    for rank in range(2):
        rank_features, rank_labels, rank_values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(rank_features, features)
        assert torch.equal(rank_labels, labels)
        assert rank_values == pytest.approx(values, nan_ok=True)
    assert [path.parent.name for path in tmp_path.glob(f"*/{NAME}")] == ["0"]
    torch.testing.assert_close(read_features(tmp_path / "0").features, features)
