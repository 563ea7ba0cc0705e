"""Runs on a CUDA device: `make test-gpu`. Everything here is skipped without one."""

import json
import math
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
import target_generation
from moco.targets.files import load_targets
from tests import stopping
from tests.cuda import NEEDS_CUDA, WORKSPACE
from tests.processes import LAUNCHERS, free_port, run, spawn
from tests.ranks import METHODS, STEPS, steps, two_ranks
from tests.refusals import line_with
from tests.stopping import assert_same_end, assert_stops_change_nothing, log_of
from utils.run import checkpoint

pytestmark = NEEDS_CUDA
STAGE_1 = "main_moco_supcon_imba.py"
ON_GPU = ["--device", "cuda"]
TSC = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2"]  # an epoch of KCL and one of TSC, 5 steps each


@pytest.fixture(scope="module")
def gpu_run(flags, tmp_path_factory) -> Path:
    """The folder of a run on the GPU in float32, each epoch's checkpoint kept."""
    run = tmp_path_factory.mktemp("gpu") / "run"
    stage1.main([*flags, *TSC, *ON_GPU, "-s", "1", "--run-dir", str(run)])
    return run


def assert_near(run: Path, other: Path, rel: float = 0.02) -> None:
    """Two runs have about the same losses, and finite weights."""
    ours, theirs = ([epoch["loss"] for epoch in log_of(folder)[-2:]] for folder in (run, other))
    assert ours == pytest.approx(theirs, rel=rel)
    weights = checkpoint.load(run / "last.pth.tar")["state_dict"].values()
    assert all(weight.isfinite().all() for weight in weights)


def test_a_run_is_near_the_cpus(gpu_run, tsc_run):
    assert_near(gpu_run, tsc_run)


@pytest.mark.parametrize("flag", ["--amp fp16", "--amp bf16", "--channels-last", "--compile", "--tf32"])
def test_each_flag_trains_near_float32(flag, flags, gpu_run, tmp_path):
    stage1.main([*flags, *TSC, *ON_GPU, *flag.split(), "--run-dir", str(tmp_path / "run")])
    assert_near(tmp_path / "run", gpu_run)


def alone(words: list[str], **environment: str) -> None:
    """Run a program in a process of its own, whose environment does not configure cuBLAS."""
    done = run(words, env={WORKSPACE: None, **environment})
    assert done.returncode == 0, done.stderr


def test_deterministic_runs_are_equal_to_the_bit(flags, tmp_path):
    for name in ("run", "whole"):
        words = [STAGE_1, *flags, *TSC, *ON_GPU, "--deterministic", "--run-dir", str(tmp_path / name)]
        alone(words)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_deterministic_run_goes_on_to_the_same_bits(flags, tmp_path, monkeypatch):
    """Stopped within the epoch of KCL and within that of TSC."""
    words = [*flags, *TSC, *ON_GPU, "--deterministic"]
    assert_stops_change_nothing(stage1.main, words, tmp_path, monkeypatch, (3, 5))


def test_the_probe_trains_and_evaluate_repeats_its_numbers(gpu_run, probe_flags, tmp_path, capsys):
    words = [*probe_flags, *ON_GPU, "--epochs", "2", "--lr", "0.01", "--pretrained", str(gpu_run / "last.pth.tar")]
    stage2.main([*words, "--run-dir", str(tmp_path / "probe")])
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    first, last = (epoch["train"]["loss"] for epoch in log_of(tmp_path / "probe"))
    assert last < first
    capsys.readouterr()
    stage2.main([*probe_flags, *ON_GPU, "--evaluate", "--resume", str(tmp_path / "probe" / "model_best.pth.tar")])
    chosen = results["selected"]
    line_with(capsys.readouterr().out, f"test, epoch {chosen['epoch']}", f"{chosen['acc1']:.2f}")


@pytest.mark.parametrize(("there", "here"), [("gpu_run", "cpu"), ("tsc_run", "cuda")])
def test_a_checkpoint_goes_on_on_the_other_device(there, here, flags, tmp_path, request):
    other = request.getfixturevalue(there)
    resume = ["--resume", str(other / "checkpoint_0001.pth.tar"), "--device", here]
    stage1.main([*flags, *TSC, *resume, "--run-dir", str(tmp_path / "run")])
    assert log_of(tmp_path / "run")[-1]["loss"] == pytest.approx(log_of(other)[-1]["loss"], rel=0.02)
    momentum = checkpoint.load(tmp_path / "run" / "last.pth.tar")["optimizer"]["state"]
    assert all(state["momentum_buffer"].isfinite().all() for state in momentum.values())


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_targets_made_on_the_gpu_are_targets(optimizer, tmp_path):
    words = f"--num-classes 50 --dim 16 --iters 100 --optimizer {optimizer}".split()
    target_generation.main([*words, *ON_GPU, "--output", str(tmp_path / "t.npy")])
    targets = load_targets(tmp_path / "t.npy", 50, 16)  # checks them
    cosines = targets @ targets.T - torch.eye(50)
    assert cosines.max() < 0.6  # random points: 0.8


def test_the_releases_launch_with_one_gpu(flags, tmp_path):
    before, after = LAUNCHERS["release"]()
    words = [*before, STAGE_1, *flags, *TSC, *ON_GPU, *after, "--run-dir", str(tmp_path / "run")]
    alone(words, CUDA_VISIBLE_DEVICES="0")
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == 1
    assert all(math.isfinite(epoch["loss"]) for epoch in log_of(tmp_path / "run"))


TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@TWO
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_on_two_gpus(launcher, flags, tmp_path):
    before, after = LAUNCHERS[launcher]()
    words = [*before, STAGE_1, *flags, *TSC, *ON_GPU, *after, "--run-dir", str(tmp_path / "run")]
    alone(words, CUDA_VISIBLE_DEVICES="0,1")
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == 2
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    steps = 2 * stopping.STEPS
    pointer = weights["module.queue_ptr"].item()
    assert pointer == steps * stopping.BATCH % stopping.QUEUE != steps * 2 * stopping.BATCH % stopping.QUEUE


@TWO
@pytest.mark.parametrize("method", METHODS)
def test_two_gpus_compute_what_one_cpu_computes(method, tmp_path):
    """Float64, without batch norm and with all positives, to 1e-9."""
    spawn(two_ranks, (free_port(), METHODS[method], str(tmp_path), "cuda"), nprocs=2)
    alone, _ = steps(dict(METHODS[method]))
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", map_location="cpu", weights_only=True)
        assert len(theirs) == STEPS
        torch.testing.assert_close(theirs, alone, rtol=1e-9, atol=1e-9)
