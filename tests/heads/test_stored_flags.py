"""Stage 2 takes from its checkpoint how images are found and seen, unless the flags are typed."""

import json
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
from imagenet_inat import stored_flags
from tests.refusals import line_with, refusal
from tests.stopping import BATCH
from utils.run import checkpoint

TRAINING = f"-b {BATCH} --lr 1 --seed 1 -j 0 -p 0 --device cpu --epochs 2"


def stored_and_typed(tmp_path: Path, stored: dict, typed: str) -> dict:
    """Return the arguments of a stage 2 that types some flags, on a checkpoint that stores some arguments."""
    torch.save({"args": {"dataset": "digits"} | stored, "state_dict": {}}, tmp_path / "run.pth")
    args, _ = stored_flags.parse(stage2.get_args_parser(), ["--pretrained", str(tmp_path / "run.pth"), *typed.split()])
    return vars(args)


def test_probe_of_checkpoint_needs_no_data_flags(tsc_run, probe_run, tmp_path):
    words = ["--pretrained", str(tsc_run / "last.pth.tar"), *TRAINING.split(), "--run-dir", str(tmp_path / "probe")]
    stage2.main([*words, "--device-aug", "off"])  # as `probe_run`; a new run chooses by itself
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "probe", probe_run))
    assert ours == theirs


def test_evaluate_needs_only_the_checkpoint(probe_run, capsys):
    for name, choice in (("model_best.pth.tar", "selected"), ("last.pth.tar", "last")):
        stage2.main(["--evaluate", "--resume", str(probe_run / name)])
        result = json.loads((probe_run / "results.json").read_text())[choice]
        output = capsys.readouterr().out
        line_with(output, "test", f"{result['acc1']:.2f}")
        line_with(output, "val", f"{result['val_acc1']:.2f}")
        assert "note" not in output


def test_other_test_list_is_evaluated_without_training_images(probe_run, data_flags, tmp_path, capsys):
    """The data root holds only the images of the test list."""
    root, test_list = Path(data_flags[data_flags.index("--data-root") + 1]), Path(data_flags[-1])
    for line in test_list.read_text().splitlines():
        image = tmp_path / line.rsplit(" ", 1)[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes((root / line.rsplit(" ", 1)[0]).read_bytes())
    other = tmp_path / "other.txt"
    other.write_text("".join(test_list.read_text().splitlines(keepends=True)[::-1][:20]))
    words = ["--evaluate", "--resume", str(probe_run / "last.pth.tar"), "--data-root", str(tmp_path)]
    stored = checkpoint.read_file(probe_run / "last.pth.tar")
    stored["args"] |= {"train_txt": str(tmp_path / "none.txt"), "val_txt": str(tmp_path / "none.txt")}
    torch.save(stored, tmp_path / "moved.pth")
    words[2] = str(tmp_path / "moved.pth")
    stage2.main([*words, "--test-txt", str(other)])
    output = capsys.readouterr().out
    line_with(output, "test, epoch 2", "many", "few")
    line_with(output, "note", other.name)
    assert "val, epoch" not in output


@pytest.mark.parametrize(
    ("typed", "splits"),
    [
        ({"test_txt"}, ("test",)),
        ({"test_txt", "val_txt"}, ("val", "test")),
        ({"test_txt", "splits"}, ("val", "test")),
        (set(), ("val", "test")),
    ],
)
def test_only_a_test_list_typed_alone_limits_the_evaluation(typed, splits):
    assert stored_flags.StoredArgs(Path(), {}, frozenset(typed)).evaluated_splits(False) == splits


def test_typed_flag_wins_and_its_difference_is_reported(tmp_path, capsys):
    args = stored_and_typed(tmp_path, {"image_size": 24, "holdout": None}, "--image-size 16 --holdout 0.1")
    assert args["image_size"] == 16
    output = capsys.readouterr().out
    line_with(output, "note", "--image-size 16", "24")
    line_with(output, "note", "--holdout 0.1", "run.pth")


@pytest.mark.parametrize("typed", ["--image-size 24", "--statistics digits"])
def test_typed_flag_that_agrees_is_not_reported(typed, tmp_path, capsys):
    stored_and_typed(tmp_path, {"image_size": 24, "statistics": None}, typed)
    assert not capsys.readouterr().out


def test_other_data_set_keeps_its_own_lists_but_the_size_and_statistics_of_the_encoder(tmp_path, capsys):
    stored = {"image_size": 24, "data_root": "DIGITS", "splits": "LISTS", "imbalance": 20.0, "holdout": 0.1}
    stored |= {"largest": 30, "split_seed": 2}
    args = stored_and_typed(tmp_path, stored, "--dataset fashion")
    assert (args["image_size"], args["statistics"]) == (24, "digits")
    assert (args["data_root"], args["splits"], args["imbalance"], args["holdout"]) == ("data", None, None, None)
    assert (args["largest"], args["split_seed"]) == (None, None)
    line_with(capsys.readouterr().out, "note", "--dataset fashion", "digits")


def test_typed_folder_of_lists_replaces_stored_lists(tmp_path):
    args = stored_and_typed(tmp_path, {"train_txt": "t.txt", "imbalance": 20.0, "split_seed": 3}, "--splits LISTS")
    names = "splits", "train_txt", "imbalance", "split_seed"
    assert [args[name] for name in names] == ["LISTS", None, None, None]


def test_checkpoint_from_before_views_was_a_flag(tmp_path):
    assert stored_and_typed(tmp_path, {"dataset": "cifar10"}, "")["views"] == "thumbnail"


def test_stored_argument_that_its_flag_does_not_accept_is_refused(tmp_path):
    refusal(lambda: stored_and_typed(tmp_path, {"image_size": "big"}, ""), "run.pth", "--image-size", "big")


def test_files_of_other_tools_store_no_arguments_but_the_network(tmp_path):
    torch.save({"args": {"dataset": "theirs", "image_size": 9}, "arch": "resnet18"}, tmp_path / "theirs.pth")
    args, _ = stored_flags.parse(stage2.get_args_parser(), ["--pretrained", str(tmp_path / "theirs.pth")])
    assert (args.dataset, args.image_size, args.arch) == ("imagenet", None, "resnet18")
