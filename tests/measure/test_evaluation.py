"""--eval-freq and --eval-batch-size: fewer evaluations and other batch sizes give the same results."""

import json
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
from imagenet_inat import options
from imagenet_inat.loaders import build_val_and_test_loaders
from tests.refusals import line_with, refusal
from tests.stopping import assert_resumes_bit_identical, log_of, run_until_stopped
from utils.distributed.launch import ProcessInfo
from utils.run import checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", ["1", "7", "1000"])
def test_eval_batch_size_does_not_change_results(size, tsc_run, probe_run, probe_flags, tmp_path):
    pretrained = ["--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "2", "--eval-batch-size", size]
    stage2.main([*probe_flags, *pretrained, "--run-dir", str(tmp_path / "p")])
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "p", probe_run))
    for name in ("selected", "last", "best_on_test"):
        rounded = {which: pytest.approx(theirs[name][which], rel=1e-5) for which in ("loss", "ece")}
        assert ours[name] == theirs[name] | rounded


@pytest.mark.parametrize(("flag", "expected"), [("-b 64", 256), ("-b 512", 512), ("-b 64 --eval-batch-size 32", 32)])
def test_default_eval_batch_size(flag, expected, probe_flags):
    args = stage2.get_args_parser().parse_args([*probe_flags, *flag.split()])
    data = options.build_data_config(options.DataFlags.from_args(args).resolved())
    loaders = build_val_and_test_loaders(data, args.batch_size, args.eval_batch_size, ProcessInfo(CPU, 0))
    assert {loader.loader.batch_size for loader in loaders.values()} == {expected}


def test_evaluate_accepts_batch_larger_than_training_list(probe_run, probe_flags, capsys):
    """--evaluate does not train, so -b may exceed the number of training images."""
    stage2.main([*probe_flags, "-b", "4096", "--evaluate", "--resume", str(probe_run / "last.pth.tar")])
    line_with(capsys.readouterr().out, "test", "top-1")


@pytest.fixture(scope="module")
def every_epoch_run(tsc_run, probe_flags, tmp_path_factory) -> tuple[list[str], Path]:
    """Run a probe of three epochs with an evaluation after each. Return its flags and its folder."""
    flags = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "3", "--resume", "auto"]
    run = tmp_path_factory.mktemp("each") / "run"
    stage2.main([*flags, "--run-dir", str(run)])
    return flags, run


@pytest.mark.parametrize("every", [2, 9])
def test_unevaluated_epochs_are_not_selected(every, every_epoch_run, tmp_path):
    """Of three epochs, the second and the last are evaluated, or only the last."""
    flags, whole = every_epoch_run
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
    assert checkpoint.read_checkpoint(tmp_path / "some" / "model_best.pth.tar")["epoch"] == results["selected"]["epoch"]


def test_resumed_run_has_same_evaluations(every_epoch_run, tmp_path, monkeypatch):
    run = [*every_epoch_run[0], "--eval-freq", "2"]
    steps = (3, 5, 4)  # within the first epoch, within the second, and in the third
    assert_resumes_bit_identical(stage2.main, run, tmp_path, monkeypatch, steps)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole")]
    assert results[0] == results[1]


def test_shorter_run_without_final_evaluation_is_refused(tsc_run, probe_flags, tmp_path, monkeypatch):
    run = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--eval-freq", "5", "--resume", "auto"]
    run += ["--run-dir", str(tmp_path / "run")]
    run_until_stopped(stage2.main, [*run, "--epochs", "3"], monkeypatch, 7)
    refusal(lambda: stage2.main([*run, "--epochs", "1", "--override"]), "--epochs 1")
