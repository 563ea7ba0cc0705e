"""Flags of stage 2 that do not go together with a head."""

import pytest

import main_lincls_imba as stage2
from tests.refusals import exit_message, line_with, refusal


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ("--head ncm --sampling class-balanced", ["--sampling class-balanced", "--head ncm", "instance"]),
        ("--head ncm --logit-adjustment train", ["--logit-adjustment train", "--head ncm", "off"]),
        (
            "--head logistic --sampling class-balanced --logit-adjustment post",
            ["--logit-adjustment post", "--sampling class-balanced"],
        ),
        ("--head linear --logit-adjustment post", ["--logit-adjustment post", "--head linear", "off", "train"]),
        ("--head own", ["--head own", "last.pth.tar", "10"]),
        ("--head logistic --pretrained elsewhere", ["--pretrained", "elsewhere"]),
    ],
)
def test_what_makes_no_sense_is_one_line(more, facts, words, tmp_path):
    refusal(lambda: stage2.main([*words, *more.split(), "--run-dir", str(tmp_path / "run")]), *facts)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ("--compare-heads --head ncm", ["--head", "--compare-heads"]),
        ("--head logistic --finetune", ["--finetune", "--head logistic"]),
        ("--feature-views 2", ["--feature-views", "--head linear"]),
    ],
)
def test_flags_that_clash_are_refused(more, facts, words, capsys):
    exit_message(lambda: stage2.main([*words, *more.split()]), capsys, *facts)


def test_flags_of_training_are_named_as_ineffective(words, tmp_path, capsys):
    stage2.main([*words, "--head", "ncm", "--epochs", "3", "--lr", "1", "--run-dir", str(tmp_path)])
    line_with(capsys.readouterr().out, "--epochs", "--lr", "-p", "--head ncm")


def test_several_processes_are_refused(words):
    two = [*words, "--compare-heads", "--multiprocessing-distributed", "--name", "two"]
    refusal(lambda: stage2.main(two), "--compare-heads", "2")
