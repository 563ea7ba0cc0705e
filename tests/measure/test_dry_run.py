"""--dry-run: what a run will take, by its first steps, and nothing left of it."""

import subprocess
import sys
from pathlib import Path

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from tests import ROOT
from utils.errors import InputError, Stopped


def plan_of(main, words: list[str]) -> list[str]:
    """Its lines, from the exception that ends it with exit code 0."""
    with pytest.raises(Stopped) as ended:
        main(words)
    assert ended.value.exit_code == 0
    *lines, last = str(ended.value).splitlines()
    assert all(line.startswith("plan: ") for line in lines) and last.startswith("nothing was written")
    return [line.removeprefix("plan: ") for line in lines]


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_a_run_of_tsc_is_planned_and_leaves_nothing(contrast, flags, batch_flags, tmp_path, monkeypatch):
    """Not even targets, which it would make."""
    monkeypatch.chdir(tmp_path)
    words = flags if contrast == "queue" else batch_flags
    words = words[: words.index("--targets")]
    images, weights, steps, memory, seconds = plan_of(
        stage1.main, [*words, "--contrast", contrast, "--targeted", "--epochs", "4", "--dry-run"]
    )
    assert images.startswith("331 training images of 10 classes (many 1, medium 4, few 5), 120 of the largest")
    assert weights.endswith("numbers in all") and steps == "4 epochs of 5 steps: 20 steps"
    assert memory.endswith("GiB of memory of a process at the peak")
    assert "s a step, the median of 3: about 0:" in seconds
    assert not list(tmp_path.iterdir())


def test_frozen_weights_are_not_counted(flags, tsc_run, tmp_path):
    words = [*flags, "--epochs", "4", "--dry-run", "--run-dir", str(tmp_path / "run")]
    start = ["--init-from", str(tsc_run / "last.pth.tar"), "--freeze", "layer1", "layer2", "layer3"]
    whole, part = (
        int(plan_of(stage1.main, given)[1].split()[0].replace(",", "")) for given in (words, [*words, *start])
    )
    assert 0 < part < 0.1 * whole
    assert not (tmp_path / "run").exists()


def test_a_run_of_one_step_has_no_time(flags, tmp_path):
    words = [
        *flags,
        *["-b", "256", "--moco-k", "256", "--epochs", "1", "--dry-run", "--run-dir"],
        str(tmp_path / "run"),
    ]
    plan = plan_of(stage1.main, words)
    assert plan[2] == "1 epochs of 1 steps: 1 steps" and len(plan) == 4


def test_a_probe_is_planned(flags, tsc_run, tmp_path):
    pretrained = ["--pretrained", str(tsc_run / "last.pth.tar"), "--dry-run", "--run-dir", str(tmp_path / "probe")]
    shared = [*flags[: flags.index("-b")], "--image-size", "8", "--seed", "1", "-j", "0", "--device", "cpu"]
    plan = plan_of(stage2.main, [*shared, *pretrained, "-b", "64", "--epochs", "2", "--schedule"])
    assert plan[1].startswith("650 weights that train, of 271,") and "s a step" in plan[-1]
    assert not (tmp_path / "probe").exists()


def test_where_nothing_is_trained_step_by_step_there_is_no_plan(tsc_run, capsys):
    for words in (["--head", "ncm"], ["--compare-heads"], ["--evaluate", "--resume", "x.pth.tar"]):
        with pytest.raises(SystemExit):
            stage2.main(["--dataset", "digits", "--pretrained", str(tsc_run / "last.pth.tar"), *words, "--dry-run"])
        assert "--dry-run: of no use with --" in capsys.readouterr().err


def test_of_a_run_that_goes_on_there_is_none(flags):
    with pytest.raises(InputError, match="--dry-run: is of a run's first steps; leave --resume out"):
        stage1.main([*flags, "--dry-run", "--resume", "auto"])


def test_two_processes_make_one_plan(flags, tmp_path):
    """By the command line: on stdout what a run says, on stderr the plan, exit code 0."""
    words = [*flags, "--multiprocessing-distributed", "--dist-backend", "gloo", "--epochs", "4", "--dry-run"]
    command = [sys.executable, str(Path(ROOT) / "main_moco_supcon_imba.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("nothing was written") == 1 and "4 epochs of 5 steps" in done.stderr
    assert not list(tmp_path.iterdir())
