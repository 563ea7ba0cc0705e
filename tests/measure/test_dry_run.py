"""--dry-run: what a run will take, by its first steps, and nothing left of it."""

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from tests.processes import free_port, run
from tests.refusals import assert_names, exit_message, refusal
from tests.stopping import STEPS
from utils.errors import Stopped


def plan_of(main, words: list[str]) -> list[str]:
    """Return the plan's lines, from the exception that ends the command with exit code 0."""
    with pytest.raises(Stopped) as ended:
        main(words)
    assert ended.value.exit_code == 0
    *lines, _ = str(ended.value).splitlines()  # the last says that nothing was written
    assert all(line.startswith("plan: ") for line in lines)
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
    assert_names(images, "89 ", "10 classes", "many 0", "medium 2", "few 8", "30 ")
    assert weights.count(",") >= 2  # weights that train, and all, in thousands
    assert_names(steps, "4 epochs", f"{STEPS} steps", f"{4 * STEPS} steps")
    assert "GiB" in memory
    assert_names(seconds, " s ", " 3", "0:0")
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
    one = ["-b", "64", "--epochs", "1", "--dry-run", "--run-dir", str(tmp_path / "run")]
    assert len(plan_of(stage1.main, [*flags, *one])) == 4


def test_a_probe_is_planned(flags, tsc_run, tmp_path):
    pretrained = ["--pretrained", str(tsc_run / "last.pth.tar"), "--dry-run", "--run-dir", str(tmp_path / "probe")]
    shared = [*flags[: flags.index("-b")], "--image-size", "8", "--seed", "1", "-j", "0", "--device", "cpu"]
    plan = plan_of(stage2.main, [*shared, *pretrained, "-b", "16", "--epochs", "2", "--schedule"])
    assert plan[1].startswith("650 ") and len(plan) == 5
    assert not (tmp_path / "probe").exists()


def test_where_nothing_is_trained_step_by_step_there_is_no_plan(tsc_run, capsys):
    for words in (["--head", "ncm"], ["--compare-heads"], ["--evaluate", "--resume", "x.pth.tar"]):
        words = ["--dataset", "digits", "--pretrained", str(tsc_run / "last.pth.tar"), *words, "--dry-run"]
        exit_message(lambda words=words: stage2.main(words), capsys, "--dry-run", words[4])


def test_of_a_run_that_goes_on_there_is_none(flags):
    refusal(lambda: stage1.main([*flags, "--dry-run", "--resume", "auto"]), "--dry-run", "--resume")


def test_two_processes_make_one_plan(flags, tmp_path):
    """By the command line: on stderr the plan of one process, and exit code 0."""
    words = [*flags, "--multiprocessing-distributed", "--dist-backend", "gloo", "--epochs", "4", "--dry-run"]
    url = f"tcp://127.0.0.1:{free_port()}"
    done = run(["main_moco_supcon_imba.py", *words, "--dist-url", url], cwd=tmp_path, fork_workers=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plan: ") == 5 and f"4 epochs of {STEPS} steps" in done.stderr
    assert not list(tmp_path.iterdir())
