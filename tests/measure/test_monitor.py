"""--monitor-freq: what is measured, that training does not notice, and that ranks agree."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset

import main_moco_supcon_imba as stage1
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.loaders import DeviceBatches, eval_loader
from moco.loader import Normalise
from moco.methods import METHODS, Method
from tests.processes import free_port, spawn
from tests.refusals import refusal
from tests.stopping import assert_same_features
from tests.tiny import IMAGE, TinyEncoder, tiny_model
from utils.errors import Stopped
from utils.measure.extraction import extract_features
from utils.measure.feature_file import NAME, read_features
from utils.measure.monitor import MEASURES, Monitor, measures
from utils.run import checkpoint
from utils.run.logger import csv_table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def records(monitored):
    return [json.loads(line) for line in (monitored / "log.jsonl").read_text().splitlines()]


def test_an_epoch_that_is_not_due_has_empty_measures(records):
    due = [any(value is not None for value in record["val"].values()) for record in records]
    assert due == [False, True, False, True]
    assert all(tuple(record["val"]) == MEASURES for record in records)
    empty = {name for name, value in records[1]["val"].items() if value is None}
    assert empty == {"knn_many", "knn_medium"}  # all classes are few here


def test_tsc_logs_how_close_the_centroids_are_to_their_targets(records):
    assert [record["target_cosine"] is None for record in records] == [True, True, False, False]
    assert [record["target_changed"] is None for record in records] == [True, True, True, False]  # no epoch before
    assert all(0 <= record["data_share"] <= 100 for record in records)


def test_the_table_of_epochs_opens_in_a_spreadsheet(monitored, records):
    rows = list(csv.DictReader((monitored / "epochs.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    knn = [float(row["val_knn_top1"] or "nan") for row in rows]
    assert knn == pytest.approx(
        [np.nan, records[1]["val"]["knn_top1"], np.nan, records[3]["val"]["knn_top1"]], nan_ok=True
    )
    assert float(rows[2]["loss"]) == records[2]["loss"]


def test_columns_of_all_records_are_there():
    assert csv_table([{"epoch": 1, "val": {"loss": None}}, {"epoch": 2, "new": "a,b"}]) == (
        'epoch,val_loss,new\n1,,\n2,,"a,b"\n'
    )


def test_training_does_not_notice(monitored, unmonitored):
    with_monitor, without = (checkpoint.load(run / "last.pth.tar") for run in (monitored, unmonitored))
    for name, weight in without["state_dict"].items():
        assert torch.equal(weight, with_monitor["state_dict"][name]), name


def test_a_stop_while_it_measures_goes_on_there(monitored, records, few_images, tmp_path, monkeypatch):
    words = [*few_images, "--monitor-freq", "2", "--resume", "auto", "--run-dir", str(tmp_path)]
    measure = stage1.Monitor.measure

    def stopped(monitor, encoder, epochs_done, between, assigned):
        if epochs_done == 4:
            monkeypatch.setattr(stage1.StopSignals, "agreed", lambda signals: 15)
            between()
        return measure(monitor, encoder, epochs_done, between, assigned)

    monkeypatch.setattr(stage1.Monitor, "measure", stopped)
    with pytest.raises(Stopped):
        stage1.main(words)
    monkeypatch.undo()
    held = read_features(tmp_path)
    assert held.epoch == 2 and held.targets is None  # whole, and of the KCL phase
    stage1.main(words)
    assert_same_features(tmp_path, monitored)
    again = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["val"] for r in again] == [r["val"] for r in records]
    assert [r["target_changed"] for r in again] == [r["target_changed"] for r in records]


def test_a_validation_list_that_is_missing_is_refused_before_the_start(flags, tmp_path):
    words = [*flags, "--val-txt", str(tmp_path / "val.txt"), "--monitor-freq", "1", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), tmp_path / "val.txt")
    assert not (tmp_path / "run").exists()


def test_measures_of_two_tight_classes():
    """Class 0 at (1, 0), class 1 at (0, 1): kNN is right, A = 0, U = U_k = √2; class 2 has no image."""
    features, labels = torch.eye(2).repeat(3, 1), torch.tensor([0, 1] * 3)
    values = measures(features, labels, features, labels, np.array([150, 30, 5]))
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


def method_of(model, before: list[int] | None = None) -> Method:
    """KCL and TSC of a model; before: its assignment an epoch ago."""
    method = METHODS["queue"](args=None)
    method.model, method.before = model, before
    return method


def test_target_facts_by_hand():
    """Centroids at targets 1, 0 and 2 turned by 60 degrees; two of the three targets are new."""
    targets = torch.eye(3, 4)
    copies = targets.repeat_interleave(2, dim=0)
    model = SimpleNamespace(tr=2, targeted=True, optimal_target=copies, assignment=torch.tensor([1, 0, 2]))
    model.class_centroid = targets[[1, 0, 2]].clone()
    model.class_centroid[2] = torch.tensor([0, 0, 0.5, 0.75**0.5])
    method = method_of(model, [0, 1, 2])
    facts, words = method.facts()
    assert facts == {"target_cosine": pytest.approx(2.5 / 3), "target_changed": pytest.approx(200 / 3)}
    assert words == "  cos(centroid, target) 0.833  targets changed 67 %"
    for assignment in (model.assignment, None):  # as a step has left it, and of a checkpoint that does not say it
        model.assignment = assignment
        its_targets, cosines = method.assigned()
        assert torch.equal(its_targets, targets[[1, 0, 2]])
        assert cosines.tolist() == pytest.approx([1, 1, 0.5])


def test_a_model_in_warm_up_has_no_facts_and_kcl_not_even_their_names():
    warm_up, kcl = method_of(tiny_model(targeted=False)), method_of(tiny_model(targets=None))
    assert warm_up.facts() == ({"target_cosine": None, "target_changed": None}, "")
    assert kcl.facts() == ({}, "") and warm_up.assigned() is None


def test_targets_are_asked_for_only_where_features_are_kept(tmp_path):
    for every in (0, 2):
        monitor = Monitor(every, np.full(7, 30), {}, tmp_path)
        assert not any(monitor.measure(None, 1, between=pytest.fail, assigned=pytest.fail).values())


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
    return eval_loader(data, size, Normalise(SPEC.mean, SPEC.std, CPU), 0)


def test_features_leave_the_encoder_as_it_was():
    encoder = BatchNormEncoder().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    features, labels = extract_features(encoder, batches_of(seven_images(), 3))
    assert encoder.training and encoder.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))
    assert labels.tolist() == list(range(7))


def test_features_that_are_not_finite_are_counted():
    encoder = BatchNormEncoder()
    encoder.norm.running_var.fill_(-1)
    batches = batches_of(seven_images(), 3)
    refusal(lambda: extract_features(encoder, batches, where="epoch 4, val"), "epoch 4, val", "7 of 7", "features")


def test_a_run_whose_features_are_not_finite_stops_and_keeps_its_checkpoint(few_images, tmp_path, monkeypatch):
    """The training loss is finite, and what the evaluation mode makes of the images is not."""
    measure = stage1.Monitor.measure

    def overflowing(monitor, encoder, epochs_done, between, assigned):
        if epochs_done == 2:
            encoder.bn1.running_var.fill_(-1)
        return measure(monitor, encoder, epochs_done, between, assigned)

    monkeypatch.setattr(stage1.Monitor, "measure", overflowing)
    words = [*few_images, "--monitor-freq", "1", "--run-dir", str(tmp_path)]
    refusal(lambda: stage1.main(words), "epoch 2, train", "24 of 24", "features")
    assert checkpoint.load(tmp_path / "last.pth.tar")["epoch"] == 1
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1]


def same_encoder() -> BatchNormEncoder:
    torch.manual_seed(1)
    return BatchNormEncoder()


def one_of_two(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.save(features_and_knn(), f"{folder}/{rank}.pt")
    batches, run = batches_of(seven_images(), 2), Path(folder) / str(rank)
    run.mkdir()
    Monitor(1, np.full(7, 30), {"val": batches}, run).finish(same_encoder(), 1)
    dist.barrier()  # who leaves while the other still receives leaves it waiting, on torch 2.4
    dist.destroy_process_group()


def features_and_knn():
    features, labels = extract_features(same_encoder(), batches_of(seven_images(), 2))
    return features, labels, measures(features, labels, features.flip(0), labels, np.full(7, 30))


def test_two_ranks_see_each_image_once_in_the_splits_order(tmp_path):
    """Seven images over two ranks: four and three."""
    spawn(one_of_two, (free_port(), str(tmp_path)), nprocs=2)
    features, labels, values = features_and_knn()
    assert values["knn_top1"] == pytest.approx(100 / 7)
    for rank in range(2):
        got_features, got_labels, got_values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got_features, features)
        assert torch.equal(got_labels, labels)
        assert got_values == pytest.approx(values, nan_ok=True)
    assert [path.parent.name for path in tmp_path.glob(f"*/{NAME}")] == ["0"]
    torch.testing.assert_close(read_features(tmp_path / "0").features, features)
