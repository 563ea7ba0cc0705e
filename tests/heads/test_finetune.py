"""--finetune and the options of trained heads: all weights train, with the requested loss, and runs resume."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

import main_lincls_imba as stage2
from moco.heads import HEADS
from tests.stopping import assert_resumes_bit_identical
from utils.run import checkpoint


@pytest.fixture
def words(probe_flags, tsc_run):
    return [*probe_flags, "--lr", "0.05", "--epochs", "2", "--pretrained", str(tsc_run / "last.pth.tar")]


def weights_of(run) -> dict:
    return checkpoint.strip_prefix(checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"])


@pytest.mark.parametrize("head", ["linear", "ldam"])
def test_finetune_trains_whole_network_from_pretrained_encoder(head, words, tsc_run, tmp_path):
    """With a small rate, the weights stay nearer to the pre-trained ones than zero is, on any CPU."""
    stage2.main([*words, "--lr", "0.02", "--finetune", "--head", head, "--run-dir", str(tmp_path)])
    start = weights_of(tsc_run)
    for name, weight in weights_of(tmp_path).items():
        if name.endswith(".weight") and not name.startswith("fc."):
            before = start[f"encoder_q.{name}"]
            assert not torch.equal(weight, before) and (weight - before).norm() < before.norm(), name
    if head == "linear":
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert log[1]["train"]["loss"] < log[0]["train"]["loss"]
    else:  # LDAM weights the classes in its second epoch
        assert weights_of(tmp_path)["fc.scale"] == 30 and not weights_of(tmp_path)["fc.bias"].any()


@pytest.mark.parametrize("more", ["--head linear", "--head ldam"])
def test_resumed_fine_tuning_is_bit_identical(more, words, tmp_path, monkeypatch):
    words = [*words, "--finetune", "--resume", "auto", *more.split()]
    assert_resumes_bit_identical(stage2.main, words, tmp_path, monkeypatch, (2, 4))


def test_ldam_head_without_finetune_keeps_encoder(words, tsc_run, tmp_path):
    stage2.main([*words, "--head", "ldam", "--run-dir", str(tmp_path)])
    start = weights_of(tsc_run)
    for name, weight in weights_of(tmp_path).items():
        if name.endswith("weight") and not name.startswith("fc."):
            assert torch.equal(weight, start[f"encoder_q.{name}"])


def test_adjustment_in_training_adds_log_prior_to_plain_batches(words, tmp_path):
    stage2.main([*words, "--logit-adjustment", "train", "--run-dir", str(tmp_path)])
    args = json.loads((tmp_path / "args.json").read_text())["args"]
    assert (args["sampling"], args["logit_adjustment"]) == ("instance", "train")
    counts = torch.tensor(json.loads((tmp_path / "results.json").read_text())["train_counts"])
    loss = HEADS["linear"].criterion(counts.numpy(), 2, "train", torch.device("cpu"))
    logits, labels = torch.randn(6, 10), torch.arange(6)
    torch.testing.assert_close(loss(logits, labels, 0), cross_entropy(logits + (counts / counts.sum()).log(), labels))


def test_run_names_differ_by_head_and_finetune(words, tsc_run):
    names = set()
    for more in ([], ["--finetune"], ["--head", "ldam"], ["--head", "ldam", "--finetune"]):
        args = stage2.get_args_parser().parse_args([*words, *more])
        names.add(stage2.head_flags.HeadFlags.from_args(args).resolved(1).run_name("digits", 0, 0.1, 0.0, 64))
    assert len(names) == 4
