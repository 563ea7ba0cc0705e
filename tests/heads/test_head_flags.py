"""Stage-2 flags that cannot be combined with a head."""

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
def test_unsupported_settings_of_a_head_are_refused(more, facts, words, tmp_path):
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
def test_conflicting_flags_are_refused(more, facts, words, capsys):
    exit_message(lambda: stage2.main([*words, *more.split()]), capsys, *facts)


def test_ignored_training_flags_are_named(words, tmp_path, capsys):
    stage2.main([*words, "--head", "ncm", "--epochs", "3", "--lr", "1", "--run-dir", str(tmp_path)])
    line_with(capsys.readouterr().out, "--epochs", "--lr", "--print-freq", "--head ncm")


def test_compare_heads_refuses_several_processes(words):
    two = [*words, "--compare-heads", "--multiprocessing-distributed", "--name", "two"]
    refusal(lambda: stage2.main(two), "--compare-heads", "2")


def test_values_of_ignored_training_flags_are_not_checked(words, tmp_path, capsys):
    more = ["--head", "ncm", "--epochs", "5", "--warmup-epochs", "10", "--run-dir", str(tmp_path)]
    stage2.main([*words, *more])
    line_with(capsys.readouterr().out, "note", "--warmup-epochs", "--head ncm")


def test_fitted_head_in_folder_of_trained_run_is_told_to_use_another(words, tsc_run):
    folder = words[words.index("--pretrained") + 1]
    more = ["--head", "ncm", "--run-dir", folder.rpartition("/")[0]]
    line = refusal(lambda: stage2.main([*words, *more]), "trained run", "--run-dir")
    assert "--resume auto" not in line
