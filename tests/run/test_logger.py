"""Console lines, log files and the description of a run."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.refusals import line_with, refusal
from utils.cli.flags import plain_values
from utils.measure.metrics import Means
from utils.measure.progress import Progress, format_means
from utils.run import logger
from utils.run.logger import RunLog, describe_run, read_log


def test_progress_lines_follow_moco_style(capsys):
    progress = Progress(total=6, steps_done=2, print_freq=2)
    means = Means("Epoch: [2/2]", torch.device("cpu"))
    for _ in progress.iterate(range(4), "Epoch: [2/2]"):
        means.add(32, loss=torch.tensor(2.5), top1=torch.tensor(12.5))
        progress.step(means, 32)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Epoch: [2/2][   2/4]  Time ")
    for part in ("  Data ", "  Loss 2.5000  Acc@1 12.50  ", " img/s  ETA 0:00:00"):
        assert part in lines[1]


def test_print_freq_0_prints_no_steps(capsys):
    progress = Progress(total=2, steps_done=0, print_freq=0)
    means = Means("e", torch.device("cpu"))
    for _ in progress.iterate(range(2), "e"):
        means.add(32, loss=torch.tensor(2.5))
        progress.step(means, 32)
    assert capsys.readouterr().out == ""


def test_images_per_second_counts_smaller_last_batch():
    progress, means = Progress(total=2, steps_done=0, print_freq=0), Means("e", torch.device("cpu"))
    for images in progress.iterate([8, 5], "e"):
        means.add(images, loss=torch.tensor(2.5))
        progress.step(means, images)
    rates = progress.timing()
    assert rates["images_per_s"] * rates["seconds"] == pytest.approx(13)


def test_recorded_command_contains_recipe_flags(tmp_path, monkeypatch):
    (tmp_path / "recipe.txt").write_text("--lr 1  # high\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"@{tmp_path / 'recipe.txt'}", "--name", "two words"])
    assert describe_run({})["command"].endswith("train.py --lr 1 --name 'two words'")


def test_describe_formats_losses_and_accuracy():
    assert format_means({"loss": 1.0, "loss_class": 1.0, "loss_target": 0.0, "top1": 3.0}) == "Loss 1.0000  Acc@1 3.00"
    assert format_means({"loss": 1.0, "loss_target": 0.25, "top1": 3.0}) == "Loss 1.0000  target 0.2500  Acc@1 3.00"


def test_resumed_log_drops_repeated_epochs(tmp_path):
    args = {"seed": 1}
    log = RunLog(tmp_path, args, ("train",), epochs_done=0)
    for epoch in (1, 2, 3):
        log.record(epoch=epoch)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')  # the run was killed during this write
    RunLog(tmp_path, args, ("train",), epochs_done=2).record(epoch=3, again=1)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "again": 1}]


def test_resumed_run_records_its_earlier_machines(tmp_path, monkeypatch):
    """The run starts on a GPU and continues on CPU A, within its first epoch, and on CPU B. A new run has no record."""
    for epochs_done, processor in enumerate(("GPU", "CPU A", "CPU A", "CPU B")):
        monkeypatch.setattr(logger, "processor_name", lambda *_, name=processor: name)
        RunLog(tmp_path, {}, (), epochs_done // 2, resumed=epochs_done > 0)
    record = json.loads((tmp_path / "args.json").read_text())
    assert record["processor"] == "CPU B" and [start["processor"] for start in record["earlier"]] == ["GPU", "CPU A"]
    RunLog(tmp_path, {}, (), 0)
    assert "earlier" not in json.loads((tmp_path / "args.json").read_text())


def test_dropped_epochs_are_backed_up(tmp_path, capsys):
    """If --resume names a checkpoint of the run's own folder, later epochs run again and their log is backed up."""
    lines = [f'{{"epoch": {epoch}}}\n' for epoch in (1, 2, 3, 4)]
    for number, done in enumerate((2, 3), start=1):  # the second time, one epoch is dropped
        (tmp_path / "log.jsonl").write_text("".join(lines))
        RunLog(tmp_path, {"resume": "RUN/checkpoint.pth.tar"}, ("train",), epochs_done=done)
        assert (tmp_path / "log.jsonl").read_text() == "".join(lines[:done])
        assert (tmp_path / f"log.jsonl.bak-{number}").read_text() == "".join(lines[done:])
        line_with(capsys.readouterr().out, f"log.jsonl.bak-{number}")


def test_resume_auto_drops_one_unsaved_epoch_without_backup(tmp_path, capsys):
    """A crash can leave one logged but unsaved epoch, which is dropped. More lines are backed up."""
    for lines, files in ((2, 0), (3, 1)):
        (tmp_path / "log.jsonl").write_text("".join(f'{{"epoch": {n + 1}}}\n' for n in range(lines)))
        RunLog(tmp_path, {"resume": "auto"}, ("train",), epochs_done=1)
        assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n'
        assert len(list(tmp_path.glob("*.bak*"))) == files
        line_with(capsys.readouterr().out, "bak" if files else "epoch 2")


def test_log_writes_non_finite_numbers_as_null(tmp_path):
    log = RunLog(tmp_path, {"seed": float("inf"), "rates": [1.0, float("nan")]}, ("train",), epochs_done=0)
    log.record(epoch=1, loss=float("nan"), val={"top1": float("-inf")})
    text = (tmp_path / "log.jsonl").read_text()
    assert text == '{"epoch": 1, "loss": null, "val": {"top1": null}}\n'
    assert json.loads((tmp_path / "args.json").read_text())["args"] == {"seed": None, "rates": [1.0, None]}


def test_plain_values_are_json_types():
    args = argparse.Namespace(b=Path("x"), a=[1], device=torch.device("cpu"), none=None)
    assert plain_values(vars(args)) == {"a": [1], "b": "x", "device": "cpu", "none": None}


def test_logger_imports_with_pure_python_protobuf():
    """The logging library has old protobuf code, which needs protobuf in pure Python. This needs a new process."""
    code = "import utils.run.logger; from google.protobuf.internal import api_implementation as api; print(api.Type())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "python"), done.stderr


FIRST_LIBRARY = """
import importlib, os, sys

class Finder:
    def find_spec(name, *_):
        if name in ("torch", "torchvision", "onnx", "google.protobuf", "tensorboard_logger"):
            print(os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder)
importlib.import_module(sys.argv[1])
importlib.import_module("utils.run.logger")
"""


@pytest.mark.parametrize("entry", ["main_lincls_imba", "moco.export.__main__", "moco.encoders", "examples.demo"])
def test_protobuf_setting_precedes_library_imports(entry):
    """PyTorch 2.4 imports protobuf if onnx is installed."""
    command = [sys.executable, "-c", FIRST_LIBRARY, entry]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python"


def test_pipe_in_place_of_the_log_is_refused(tmp_path):
    """Reading a pipe would never end."""
    os.mkfifo(tmp_path / "log.jsonl")
    refusal(lambda: read_log(tmp_path / "log.jsonl"), tmp_path / "log.jsonl")
