"""examples/cross_entropy.py trains all weights in one stage. It is measured and resumed like the probe."""

import json

import pytest
import torch

import main_lincls_imba as stage2
from examples import cross_entropy
from tests.refusals import line_with, refusal
from tests.stopping import assert_resumes_bit_identical
from utils.report.runs import read_run
from utils.run import checkpoint


@pytest.fixture
def words(probe_flags):
    """Return flags of a run of two epochs with five steps each."""
    return [*probe_flags, "--lr", "0.1", "--cos", "--epochs", "2", "--resume", "auto"]


def test_cross_entropy_learns_and_writes_a_run_folder(words, tmp_path):
    cross_entropy.main([*words, "--epochs", "8", "--run-dir", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    assert run.pretraining is None and len(run.probe.epochs) == 8
    assert run.probe.epochs[-1]["train"]["loss"] < run.probe.epochs[0]["train"]["loss"] / 2
    assert run.results["last"]["acc1"] > 30 and run.results["pretrained"] is None


def test_all_weights_train(words, tmp_path):
    cross_entropy.main([*words, "--epochs", "1", "--run-dir", str(tmp_path / "run")])
    weights = checkpoint.strip_prefix(checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["state_dict"])
    torch.manual_seed(1)
    start = cross_entropy.get_encoder("resnet20", 8)(num_classes=10)
    assert all(not torch.equal(weights[name], parameter) for name, parameter in start.named_parameters())


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_resumed_run_is_bit_identical(amp, words, tmp_path, monkeypatch):
    steps = (2, 4)  # within the first epoch, then within the second
    assert_resumes_bit_identical(cross_entropy.main, [*words, "--amp", amp], tmp_path, monkeypatch, steps)
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole"))
    assert ours == theirs


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_evaluate_repeats_accuracy_of_checkpoint(amp, words, tmp_path, capsys):
    words = [*words, "--amp", amp]
    cross_entropy.main([*words, "--run-dir", str(tmp_path / "run")])
    last = json.loads((tmp_path / "run" / "results.json").read_text())["last"]
    capsys.readouterr()
    stage2.main(["--evaluate", "--resume", str(tmp_path / "run" / "last.pth.tar")])
    line_with(capsys.readouterr().out, "test", 2, f"{last['acc1']:.2f}")


def test_finished_run_folder_is_not_overwritten(words, tmp_path):
    run = ["--run-dir", str(tmp_path / "run")]
    cross_entropy.main([*words, *run, "--epochs", "1"])
    again = [word for word in [*words, *run] if word not in ("--resume", "auto")]
    refusal(lambda: cross_entropy.main(again), tmp_path / "run", "--resume auto")


def record_loss_inputs(words, monkeypatch) -> tuple[list, torch.Tensor]:
    """Return the arguments of the loss, (logits, labels) for each step, and the labels of all batches."""
    seen, plain = [], cross_entropy.cross_entropy
    monkeypatch.setattr(cross_entropy, "cross_entropy", lambda *given: seen.append(given) or plain(*given))
    cross_entropy.main(words)
    return seen, torch.cat([labels for _, labels in seen])


def test_balance_sets_sampling_and_prior(words, tmp_path, monkeypatch):
    """Compares class-balanced batches with plain batches, with and without the log prior in the logits."""
    counts, logits = {}, {}
    for balance in ("sampling", "softmax", "none"):
        more = ["--balance", balance, "--epochs", "1", "--lr", "1e-9", "--run-dir", str(tmp_path / balance)]
        seen, labels = record_loss_inputs([*words, *more], monkeypatch)
        monkeypatch.undo()
        counts[balance], logits[balance] = labels.bincount(minlength=10).tolist(), seen[0][0]
    assert max(counts["sampling"]) < 1.2 * min(counts["sampling"])
    assert counts["none"] == counts["softmax"] and counts["none"][0] > 10 * counts["none"][-1]
    train = torch.tensor(json.loads((tmp_path / "none" / "results.json").read_text())["train_counts"])
    prior = (train / train.sum()).log().expand(len(logits["none"]), -1)
    torch.testing.assert_close(logits["softmax"] - logits["none"], prior, rtol=0, atol=1e-5)
