"""--finetune and the trained heads' options: everything moves, what is asked for is the loss, runs go on."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

import main_lincls_imba as stage2
from moco.heads import HEADS
from tests.stopping import assert_stops_change_nothing
from utils.run import checkpoint


@pytest.fixture
def words(probe_flags, tsc_run):
    return [*probe_flags, "--lr", "0.05", "--epochs", "2", "--pretrained", str(tsc_run / "last.pth.tar")]


def weights_of(run) -> dict:
    return checkpoint.unpacked(checkpoint.load(run / "last.pth.tar"))


@pytest.mark.parametrize("head", ["linear", "ldam"])
def test_the_whole_network_trains_from_the_pretrained_encoder(head, words, tsc_run, tmp_path):
    stage2.main([*words, "--finetune", "--head", head, "--run-dir", str(tmp_path)])
    start = weights_of(tsc_run)
    for name, weight in weights_of(tmp_path).items():
        if name.endswith(".weight") and not name.startswith("fc."):
            before = start[f"encoder_q.{name}"]
            assert not torch.equal(weight, before) and (weight - before).norm() < before.norm(), name
    if head == "linear":
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert log[1]["train"]["loss"] < log[0]["train"]["loss"]
    else:  # whose weights come in its second epoch
        assert weights_of(tmp_path)["fc.scale"] == 30 and not weights_of(tmp_path)["fc.bias"].any()


@pytest.mark.parametrize("more", ["--head linear", "--head ldam"])
def test_it_goes_on_from_any_step(more, words, tmp_path, monkeypatch):
    words = [*words, "--finetune", "--resume", "auto", *more.split()]
    assert_stops_change_nothing(stage2.main, words, tmp_path, monkeypatch, (2, 4))


def test_without_it_a_margin_head_leaves_the_encoder(words, tsc_run, tmp_path):
    stage2.main([*words, "--head", "ldam", "--run-dir", str(tmp_path)])
    start = weights_of(tsc_run)
    for name, weight in weights_of(tmp_path).items():
        if name.endswith("weight") and not name.startswith("fc."):
            assert torch.equal(weight, start[f"encoder_q.{name}"])


def test_adjustment_in_training_adds_the_prior_and_takes_batches_as_they_come(words, tmp_path):
    stage2.main([*words, "--logit-adjustment", "train", "--run-dir", str(tmp_path)])
    args = json.loads((tmp_path / "args.json").read_text())["args"]
    assert (args["sampling"], args["logit_adjustment"]) == ("instance", "train")
    counts = torch.tensor(json.loads((tmp_path / "results.json").read_text())["train_counts"])
    loss = HEADS["linear"].criterion(counts.numpy(), 2, "train", torch.device("cpu"))
    logits, labels = torch.randn(6, 10), torch.arange(6)
    torch.testing.assert_close(loss(logits, labels, 0), cross_entropy(logits + (counts / counts.sum()).log(), labels))


def test_the_folders_of_what_differs_differ(words, tsc_run):
    names = set()
    for more in ([], ["--finetune"], ["--head", "ldam"], ["--head", "ldam", "--finetune"]):
        args = stage2.get_args_parser().parse_args([*words, *more])
        stage2.options.resolve_defaults(args)
        stage2.settle(args, 1)
        names.add(stage2.run_name(args))
    assert len(names) == 4
