"""--eval-freq and --eval-batch-size: fewer and larger batches of evaluation, and the same results."""

import json
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
from imagenet_inat import options
from imagenet_inat.loaders import open_evaluation
from tests.refusals import line_with, refusal
from tests.stopping import assert_stops_change_nothing, log_of, stopped_run
from utils.run import checkpoint
from utils.run.launch import Place

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", ["1", "7", "1000"])
def test_the_batch_of_evaluation_changes_no_result(size, tsc_run, probe_run, probe_flags, tmp_path):
    pretrained = ["--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "2", "--eval-batch-size", size]
    stage2.main([*probe_flags, *pretrained, "--run-dir", str(tmp_path / "p")])
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "p", probe_run))
    for name in ("selected", "last", "best_on_test"):
        rounded = {which: pytest.approx(theirs[name][which], rel=1e-5) for which in ("loss", "ece")}
        assert ours[name] == theirs[name] | rounded


@pytest.mark.parametrize(("flag", "expected"), [("-b 64", 256), ("-b 512", 512), ("-b 64 --eval-batch-size 32", 32)])
def test_evaluation_takes_256_images_or_the_batch_of_training(flag, expected, probe_flags):
    args = stage2.get_args_parser().parse_args([*probe_flags, *flag.split()])
    options.resolve_defaults(args)
    loaders = open_evaluation(options.data_of(args), args.batch_size, args.eval_batch_size, Place(CPU, 0))
    assert {loader.loader.batch_size for loader in loaders.values()} == {expected}


def test_a_batch_larger_than_the_training_list_measures_a_checkpoint(probe_run, probe_flags, capsys):
    """Nothing is trained then."""
    stage2.main([*probe_flags, "-b", "4096", "--evaluate", "--resume", str(probe_run / "last.pth.tar")])
    line_with(capsys.readouterr().out, "test", "top-1")


@pytest.fixture(scope="module")
def each_epoch(tsc_run, probe_flags, tmp_path_factory) -> tuple[list[str], Path]:
    """Flags of a probe of three epochs, and the folder of one that was measured after each."""
    flags = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "3", "--resume", "auto"]
    run = tmp_path_factory.mktemp("each") / "run"
    stage2.main([*flags, "--run-dir", str(run)])
    return flags, run


@pytest.mark.parametrize("every", [2, 9])
def test_epochs_between_evaluations_are_not_chosen(every, each_epoch, tmp_path):
    """Of three epochs the second and the last are measured, or the last alone."""
    flags, whole = each_epoch
    stage2.main([*flags, "--eval-freq", str(every), "--run-dir", str(tmp_path / "some")])
    each, some = log_of(whole), log_of(tmp_path / "some")
    measured = [epoch for epoch in (1, 2, 3) if epoch % every == 0 or epoch == 3]
    for one, other in zip(each, some, strict=True):
        assert other["train"] == one["train"]
        assert other.get("test") == (one["test"] if one["epoch"] in measured else None)
    results = json.loads((tmp_path / "some" / "results.json").read_text())
    validated = {entry["epoch"]: entry["val"]["top1"] for entry in each if entry["epoch"] in measured}
    assert results["selected"]["epoch"] == max(validated, key=validated.get)
    assert results["last"]["epoch"] == 3
    assert results["best_on_test"]["acc1"] == max(e["test"]["top1"] for e in each if e["epoch"] in measured)
    assert checkpoint.load(tmp_path / "some" / "model_best.pth.tar")["epoch"] == results["selected"]["epoch"]


def test_evaluations_are_the_same_when_a_run_was_stopped(each_epoch, tmp_path, monkeypatch):
    run = [*each_epoch[0], "--eval-freq", "2"]
    steps = (3, 5, 4)  # within the first epoch, within the second, and in the third
    assert_stops_change_nothing(stage2.main, run, tmp_path, monkeypatch, steps)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole")]
    assert results[0] == results[1]


def test_a_shorter_run_whose_last_epoch_was_not_measured_is_refused(tsc_run, probe_flags, tmp_path, monkeypatch):
    run = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--eval-freq", "5", "--resume", "auto"]
    run += ["--run-dir", str(tmp_path / "run")]
    stopped_run(stage2.main, [*run, "--epochs", "3"], monkeypatch, 7)
    refusal(lambda: stage2.main([*run, "--epochs", "1", "--override"]), "--epochs 1")
