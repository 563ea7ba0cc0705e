"""--dry-run estimates the cost of a run from its first steps and writes nothing."""

import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from tests.processes import free_port, run
from tests.refusals import assert_names, exit_message, line_with, refusal
from tests.stopping import BATCH, STEPS
from utils import devices
from utils.errors import Stopped
from utils.memory import OVERHEAD, SMALL_BATCHES, estimate_step
from utils.run import dry_run


def dry_run_plan(main, words: list[str]) -> list[str]:
    """Return the lines of the plan, which is the message of the exception with exit code 0."""
    with pytest.raises(Stopped) as stopped:
        main(words)
    assert stopped.value.exit_code == 0
    *lines, _ = str(stopped.value).splitlines()  # the last line reports that no run folder was written
    assert all(line.startswith("plan: ") for line in lines)
    return [line.removeprefix("plan: ") for line in lines]


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_dry_run_of_tsc_prints_plan_and_writes_nothing(contrast, flags, batch_flags, tmp_path, monkeypatch):
    """A dry run does not write the missing targets either."""
    monkeypatch.chdir(tmp_path)
    words = flags if contrast == "queue" else batch_flags
    words = words[: words.index("--targets")]
    images, weights, steps, memory, seconds = dry_run_plan(
        stage1.main, [*words, "--contrast", contrast, "--targeted", "--epochs", "4", "--dry-run"]
    )
    assert_names(images, "89 ", "10 classes", "many 0", "medium 2", "few 8", "30 ")
    assert weights.count(",") >= 2  # trainable and total parameters, with thousands separators
    assert_names(steps, "4 epochs", f"{STEPS} steps", f"{4 * STEPS} steps", "short", 4000)
    assert "GiB" in memory
    assert_names(seconds, " s ", " 3", "0:0")
    assert not list(tmp_path.iterdir())


def test_dry_run_uses_existing_targets(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *words, _, targets = flags
    shutil.copy(targets, tmp_path / "optimal_10_16.npy")
    dry_run_plan(stage1.main, [*words, "--targeted", "--epochs", "4", "--dry-run"])
    line_with(capsys.readouterr().out, "targets: optimal_10_16.npy")


def test_dry_run_does_not_count_frozen_weights(flags, tsc_run, tmp_path):
    words = [*flags, "--epochs", "4", "--dry-run", "--run-dir", str(tmp_path / "run")]
    start = ["--init-from", str(tsc_run / "last.pth.tar"), "--freeze", "layer1", "layer2", "layer3"]
    whole, part = (
        int(dry_run_plan(stage1.main, given)[1].split()[0].replace(",", "")) for given in (words, [*words, *start])
    )
    assert 0 < part < 0.1 * whole
    assert not (tmp_path / "run").exists()


def test_dry_run_of_one_step_estimates_no_time(flags, tmp_path):
    one_step = ["-b", "64", "--epochs", "1", "--dry-run", "--run-dir", str(tmp_path / "run")]
    assert len(dry_run_plan(stage1.main, [*flags, *one_step])) == 4


def test_dry_run_of_probe_prints_plan(flags, tsc_run, tmp_path):
    pretrained = ["--pretrained", str(tsc_run / "last.pth.tar"), "--dry-run", "--run-dir", str(tmp_path / "probe")]
    shared = [*flags[: flags.index("-b")], "--image-size", "8", "--seed", "1", "-j", "0", "--device", "cpu"]
    plan = dry_run_plan(stage2.main, [*shared, *pretrained, "-b", "16", "--epochs", "2", "--schedule"])
    assert plan[1].startswith("650 ") and len(plan) == 5
    assert not (tmp_path / "probe").exists()


def test_dry_run_without_training_steps_is_refused(tsc_run, capsys):
    for words in (["--head", "ncm"], ["--compare-heads"], ["--evaluate", "--resume", "x.pth.tar"]):
        words = ["--dataset", "digits", "--pretrained", str(tsc_run / "last.pth.tar"), *words, "--dry-run"]
        exit_message(lambda words=words: stage2.main(words), capsys, "--dry-run", words[4])


def test_dry_run_refuses_a_run_that_does_not_fit_in_memory(flags, tmp_path, monkeypatch):
    """Otherwise the system kills the process. The needed memory is printed before the first step."""
    monkeypatch.setattr(dry_run, "machine_memory", lambda: 2**27)
    words = [*flags, "--epochs", "4", "--dry-run", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "GiB needed", "this machine has 0.1", "-b")


@pytest.mark.parametrize("method", ["queue", "batch"])
def test_dry_run_states_needed_memory(method, batch_flags, flags, tmp_path, capsys):
    words = flags if method == "queue" else [*batch_flags, "--contrast", "batch"]
    dry_run_plan(stage1.main, [*words, "--epochs", "4", "--dry-run", "--run-dir", str(tmp_path / "run")])
    images = BATCH * (2 if method == "batch" else 1)  # in-batch contrast encodes both views at once
    line_with(capsys.readouterr().out, "memory: ", "GiB needed", f"a step on {images} images")


@pytest.mark.parametrize(("limit", "memory"), [("max\n", None), ("1048576\n", 2**20)])
def test_limit_of_a_container_counts_as_its_memory(limit, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP_LIMITS", ())
    whole = devices.machine_memory()
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(devices, "CGROUP_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "missing")))
    assert devices.machine_memory() == (memory or whole)


@pytest.mark.parametrize("trained", [True, False])
def test_estimated_memory_of_a_step_grows_with_the_stored_activations(trained):
    """Each Linear stores its input for the backward pass; a frozen network stores nothing."""
    layers = [nn.Linear(48, 48) for _ in range(50)]
    network = nn.Sequential(nn.Flatten(), *layers).requires_grad_(trained)
    small, large = (estimate_step(network, n, 4, torch.device("cpu"), nullcontext) for n in (1000, 2000))
    stored = 4 * 48 * 1000 * (50 if trained else 2)
    assert 0.9 * stored < (large - small) / OVERHEAD < 1.5 * stored
    assert all(weight.grad is None for weight in network.parameters())


def test_dry_run_with_resume_is_refused(flags, capsys):
    exit_message(lambda: stage1.main([*flags, "--dry-run", "--resume", "auto"]), capsys, "--dry-run", "--resume")


def test_dry_run_of_two_processes_prints_one_plan(flags, tmp_path):
    """On the command line, one process prints the plan to stderr, and the exit code is 0."""
    words = [*flags, "--multiprocessing-distributed", "--dist-backend", "gloo", "--epochs", "4", "--dry-run"]
    url = f"tcp://127.0.0.1:{free_port()}"
    done = run(["main_moco_supcon_imba.py", *words, "--dist-url", url], cwd=tmp_path, fork_workers=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plan: ") == 5 and f"4 epochs of {STEPS} steps" in done.stderr
    assert not list(tmp_path.iterdir())


def test_dry_run_says_that_it_writes_the_data_set(tmp_path, capsys):
    words = "--dataset digits -a lenet --contrast batch --moco-dim 8 -b 64 -j 0 --epochs 1 --device cpu --dry-run"
    dry_run_plan(stage1.main, [*words.split(), "--data-root", str(tmp_path), "--run-dir", str(tmp_path / "run")])
    (written,) = tmp_path.iterdir()
    line_with(capsys.readouterr().out, written)


def test_estimate_of_a_small_step_is_at_least_its_activations():
    network = nn.Sequential(nn.Flatten(), *[nn.Linear(48, 48) for _ in range(50)])
    estimate = estimate_step(network, SMALL_BATCHES[0], 4, torch.device("cpu"), nullcontext)
    assert estimate >= 4 * 48 * SMALL_BATCHES[0] * 50
