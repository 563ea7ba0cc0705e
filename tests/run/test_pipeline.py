"""Both scripts end to end on the digits, with a few steps."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import stored_flags
from imagenet_inat.datasets import IMAGENET_STATISTICS, REGISTRY, DatasetSpec
from imagenet_inat.images import LongTailDataset
from tests.refusals import line_with
from tests.stopping import BATCH, QUEUE, STEPS, log_of
from utils.run import checkpoint


def read_scalars(folder) -> dict[str, list]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_stage_1_writes_a_complete_run_folder(tsc_run):
    checkpoints = {f"{name}.pth.tar" for name in ("last", "previous", "checkpoint_0001", "checkpoint_0002")}
    assert {path.name for path in tsc_run.iterdir()} - {"probe", ".lock"} == checkpoints | {
        "args.json",
        "log.jsonl",
        "epochs.csv",
        "train",
    }

    record = json.loads((tsc_run / "args.json").read_text())
    assert record["args"]["seed"] == 1 and record["args"]["tw"] == 0.2
    assert record["args"]["arch"] == "resnet20"  # default of the data set
    assert set(record) == {"command", "args", "processes", "versions", "git", "machine", "processor"}

    epochs = log_of(tsc_run)
    assert [(e["epoch"], e["phase"]) for e in epochs] == [(1, "KCL"), (2, "TSC")]
    assert epochs[0]["loss_target"] == 0 < epochs[1]["loss_target"]
    assert epochs[0]["lr"] == epochs[1]["lr"] == 0.1  # the schedule restarts with each phase

    state = checkpoint.read_checkpoint(tsc_run / "last.pth.tar")
    assert (state["epoch"], state["arch"], state["seed"]) == (2, "resnet20", 1)
    weights = state["state_dict"]
    assert weights["module.queue_ptr"].item() == 2 * STEPS * BATCH % QUEUE
    assert weights["module.queue"].shape == (16, QUEUE)
    assert "module.encoder_q.fc.2.weight" in weights


def test_stage_1_writes_release_scalars(tsc_run):
    board = read_scalars(tsc_run / "train")
    added = {
        "lr",
        "seconds",
        "images_per_s",
        "data_share",
        "target_cosine",
    }  # target_changed needs two TSC epochs
    assert set(board) == {"loss", "loss_class", "loss_target", "top1", "top5"} | added
    assert board["loss"] == [(e["epoch"], pytest.approx(e["loss"], rel=1e-6)) for e in log_of(tsc_run)]


def test_epochs_use_different_random_draws(flags, probe_flags, tmp_path, monkeypatch):
    """The draw numbers, which seed the order and the views, continue from epoch to epoch in both stages."""
    draws, read = [], LongTailDataset.__getitem__

    def recording_getitem(self, item):
        if isinstance(item, tuple):
            draws.append(item[1])
        return read(self, item)

    monkeypatch.setattr(LongTailDataset, "__getitem__", recording_getitem)
    stage1.main([*flags, "--epochs", "2", "--run-dir", str(tmp_path / "run")])
    assert draws == list(range(2 * STEPS * BATCH))
    draws.clear()
    pretrained = ["--pretrained", str(tmp_path / "run" / "last.pth.tar"), "--run-dir", str(tmp_path / "probe")]
    stage2.main([*probe_flags, *pretrained, "--epochs", "2"])
    assert draws == list(range(2 * STEPS * BATCH))


def test_missing_targets_are_generated_with_release_name(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = flags.index("--targets")
    stage1.main([*flags[:at], *flags[at + 2 :], "--epochs", "1", "--targeted", "--run-dir", "run"])
    used = checkpoint.read_checkpoint("run/last.pth.tar")["state_dict"]["module.optimal_target"]
    assert np.array_equal(used.numpy(), np.load("optimal_10_16.npy"))


def test_kcl_run_generates_no_targets(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = flags.index("--targets")
    stage1.main([*flags[:at], *flags[at + 2 :], "--epochs", "1", "--run-dir", "run"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_run_without_seed_records_a_random_seed(flags, tmp_path):
    flags = [flag for flag in flags if flag not in ("--seed", "1")]
    stage1.main([*flags, "--epochs", "1", "--run-dir", str(tmp_path / "a")])
    seed = json.loads((tmp_path / "a" / "args.json").read_text())["args"]["seed"]
    stage1.main([*flags, "--epochs", "1", "--run-dir", str(tmp_path / "b"), "--seed", str(seed)])
    a, b = (checkpoint.read_checkpoint(tmp_path / run / "last.pth.tar")["state_dict"] for run in "ab")
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker:UserWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_number_of_workers_does_not_change_weights(workers, flags, tsc_run, tmp_path):
    options = ["--targeted", "--sep_t", "--tw", "0.2", "--epochs", "2", "-j", str(workers)]
    stage1.main([*flags, *options, "--run-dir", str(tmp_path / "run")])
    ours, theirs = (
        checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"] for run in (tmp_path / "run", tsc_run)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_moco_loss_differs_from_kcl(flags, tmp_path):
    stage1.main([*flags, "--epochs", "1", "--loss", "MoCo", "--run-dir", str(tmp_path / "moco")])
    stage1.main([*flags, "--epochs", "1", "--run-dir", str(tmp_path / "kcl")])
    moco, kcl = (log_of(tmp_path / run)[0]["loss"] for run in ("moco", "kcl"))
    assert moco != kcl


def test_run_folder_has_release_name(digits_flags, tmp_path, capsys):
    folder = ["--save-folder", str(tmp_path), "--name", "mine", "--epochs", "1", "-j", "0"]
    stage1.main([*digits_flags, "-a", "lenet", "--image-size", "16", *folder])
    (run,) = tmp_path.iterdir()
    assert run.name == (
        "digitsLT_lenet_lr_0.1_bsz_512_wd_0.0001_mlp_True_t_0.07_1024_seed_1_k_6_dim_16"
        "_tgted_False_tr_1_tw_1.0_ep_1_mine"
    )
    next_command = capsys.readouterr().out.split("main_lincls_imba.py ")[1].split()
    probe, _ = stored_flags.parse(stage2.get_args_parser(), next_command)  # the printed command uses the same data
    assert probe.pretrained == str(run / "last.pth.tar")
    assert (probe.dataset, probe.arch, probe.image_size) == ("digits", "lenet", 16)
    assert probe.data_root == digits_flags[digits_flags.index("--data-root") + 1]


def test_stage_2_reports_each_epoch_selection(probe_run):
    results = json.loads((probe_run / "results.json").read_text())
    assert {"dataset", "arch", "seed", "pretrained", "selected", "last", "best_on_test"} <= set(results)
    for name in ("selected", "last", "best_on_test"):
        entry = results[name]
        assert {"epoch", "acc1", "acc5", "many", "medium", "few", "per_class"} <= set(entry)
        assert len(entry["per_class"]) == 10
        assert np.mean(entry["per_class"]) == pytest.approx(entry["acc1"])  # the test split is balanced
        assert entry["many"] is None  # no class has more than 100 images
        assert entry["medium"] == pytest.approx(np.mean(entry["per_class"][:2]))
        assert entry["few"] == pytest.approx(np.mean(entry["per_class"][2:]))
    assert results["last"]["epoch"] == 2
    epochs = log_of(probe_run)
    best = max(epochs, key=lambda e: e["val"]["top1"])
    assert results["selected"]["epoch"] == best["epoch"]
    assert results["selected"]["acc1"] == best["test"]["top1"]
    assert results["best_on_test"]["acc1"] == max(e["test"]["top1"] for e in epochs)


def test_stage_2_writes_its_files(probe_run):
    checkpoints = {f"{name}.pth.tar" for name in ("last", "previous", "model_best")}
    other_files = {"args.json", "log.jsonl", "epochs.csv", "train", "val", "test", "results.json", ".lock"}
    assert {path.name for path in probe_run.iterdir()} == checkpoints | other_files
    assert all(set(read_scalars(probe_run / split)) == {"loss", "top1", "top5"} for split in ("train", "test"))


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_stage_2_trains_only_the_classifier(bn_mode, tsc_run, probe_flags, tmp_path):
    pretrained = tsc_run / "last.pth.tar"
    options = ["--epochs", "1", "--pretrained", str(pretrained), "--bn-mode", bn_mode]
    stage2.main([*probe_flags, *options, "--run-dir", str(tmp_path / "p")])
    before = {
        name.removeprefix("encoder_q."): tensor
        for name, tensor in checkpoint.strip_prefix(checkpoint.read_checkpoint(pretrained)["state_dict"]).items()
        if name.startswith("encoder_q.") and ".fc." not in name
    }
    after = checkpoint.strip_prefix(checkpoint.read_checkpoint(tmp_path / "p" / "last.pth.tar")["state_dict"])
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert changed == (statistics if bn_mode == "train" else set())
    assert after["fc.weight"].abs().max() > 0.05  # initialised from N(0, 0.01)


def test_validation_split_serves_as_test_split(tsc_run, digits_root, tmp_path, monkeypatch):
    """As in iNaturalist, the list is then evaluated once. Only digit 0 has more than 100 images."""
    monkeypatch.setitem(REGISTRY, "digits", dataclasses.replace(REGISTRY["digits"], test_split="val"))
    options = ["--pretrained", str(tsc_run / "last.pth.tar"), "--run-dir", str(tmp_path / "p"), "--epochs", "1"]
    data = f"--dataset digits --data-root {digits_root} --image-size 8 -b 512 -j 0 --device cpu"
    stage2.main([*data.split(), *options])
    results = json.loads((tmp_path / "p" / "results.json").read_text())
    selected = results["selected"]
    assert selected == results["best_on_test"] | {"confusion": selected["confusion"]}
    assert selected["acc1"] == selected["val_acc1"] and selected["many"] == pytest.approx(selected["per_class"][0])


def test_both_stages_train_on_registered_photographs(tmp_path, monkeypatch):
    """The data set is a row in the registry and three lists, with photographs of two classes and different shapes."""
    row = DatasetSpec("mine", "mine", 2, **IMAGENET_STATISTICS, source="my images", image_size=16, arch="resnet20")
    monkeypatch.setitem(REGISTRY, "mine", row)
    rng = np.random.default_rng(0)
    for split, number in (("train", 16), ("val", 4), ("test", 4)):
        names = [f"{split}_{i}.jpg" for i in range(number)]
        for i, name in enumerate(names):
            pixels = rng.integers(0, 255, (40 + i, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
        lines = [f"{name} {i % 2}\n" for i, name in enumerate(names)]
        (tmp_path / f"mine_{split}.txt").write_text("".join(lines))
    common = ["--dataset", "mine", "--data-root", str(tmp_path), "--splits", str(tmp_path), "--device", "cpu"]
    common += ["-b", "8", "-j", "0", "--epochs", "1", "--seed", "0"]
    stage1.main([*common, "--moco-k", "16", "--moco-dim", "8", "--run-dir", str(tmp_path / "run")])
    pretrained = ["--pretrained", str(tmp_path / "run" / "last.pth.tar"), "--run-dir", str(tmp_path / "probe")]
    stage2.main([*common, *pretrained])
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert results["train_counts"] == [8, 8] and len(results["last"]["per_class"]) == 2


def test_evaluate_repeats_results_and_writes_nothing(probe_run, probe_flags, capsys):
    before = {path: path.stat().st_mtime_ns for path in probe_run.rglob("*")}
    stage2.main([*probe_flags, "--evaluate", "--resume", str(probe_run / "model_best.pth.tar")])
    selected = json.loads((probe_run / "results.json").read_text())["selected"]
    line_with(capsys.readouterr().out, "test", f"epoch {selected['epoch']}", f"{selected['acc1']:.2f}")
    assert {path: path.stat().st_mtime_ns for path in probe_run.rglob("*")} == before
