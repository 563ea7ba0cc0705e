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
from tests.ranks import METHODS, STEPS, train_as_rank, train_steps
from tests.refusals import line_with
from tests.stopping import assert_resumes_bit_identical, assert_same_checkpoint, log_of
from utils.run import checkpoint

pytestmark = NEEDS_CUDA
STAGE_1 = "main_moco_supcon_imba.py"
ON_GPU = ["--device", "cuda"]
TSC = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2"]  # an epoch of KCL and one of TSC, 5 steps each


@pytest.fixture(scope="module")
def gpu_run(flags, tmp_path_factory) -> Path:
    """Train on the GPU in float32, with a checkpoint of each epoch; return the run folder."""
    run = tmp_path_factory.mktemp("gpu") / "run"
    stage1.main([*flags, *TSC, *ON_GPU, "-s", "1", "--run-dir", str(run)])
    return run


def assert_similar_losses(run: Path, other: Path, rel: float = 0.02) -> None:
    """Check that two runs have similar losses, and that the first has finite weights."""
    ours, theirs = ([epoch["loss"] for epoch in log_of(folder)[-2:]] for folder in (run, other))
    assert ours == pytest.approx(theirs, rel=rel)
    weights = checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"].values()
    assert all(weight.isfinite().all() for weight in weights)


def test_gpu_run_has_losses_similar_to_cpu_run(gpu_run, tsc_run):
    assert_similar_losses(gpu_run, tsc_run)


@pytest.mark.parametrize("flag", ["--amp fp16", "--amp bf16", "--channels-last", "--compile", "--tf32"])
def test_each_flag_has_losses_similar_to_float32(flag, flags, gpu_run, tmp_path):
    stage1.main([*flags, *TSC, *ON_GPU, *flag.split(), "--run-dir", str(tmp_path / "run")])
    assert_similar_losses(tmp_path / "run", gpu_run)


def run_program(words: list[str], **environment: str) -> None:
    """Run a program in a process of its own, whose environment does not configure cuBLAS."""
    done = run(words, env={WORKSPACE: None, **environment})
    assert done.returncode == 0, done.stderr


def test_deterministic_runs_are_bit_identical(flags, tmp_path):
    for name in ("run", "whole"):
        words = [STAGE_1, *flags, *TSC, *ON_GPU, "--deterministic", "--run-dir", str(tmp_path / name)]
        run_program(words)
    assert_same_checkpoint(tmp_path / "run", tmp_path / "whole")


def test_resumed_deterministic_run_is_bit_identical(flags, tmp_path, monkeypatch):
    """The run is stopped within the KCL epoch and within the TSC epoch."""
    words = [*flags, *TSC, *ON_GPU, "--deterministic"]
    assert_resumes_bit_identical(stage1.main, words, tmp_path, monkeypatch, (3, 5))


def test_probe_trains_and_evaluate_repeats_its_accuracy(gpu_run, probe_flags, tmp_path, capsys):
    words = [*probe_flags, *ON_GPU, "--epochs", "2", "--lr", "0.01", "--pretrained", str(gpu_run / "last.pth.tar")]
    stage2.main([*words, "--run-dir", str(tmp_path / "probe")])
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    first, last = (epoch["train"]["loss"] for epoch in log_of(tmp_path / "probe"))
    assert last < first
    capsys.readouterr()
    stage2.main([*probe_flags, *ON_GPU, "--evaluate", "--resume", str(tmp_path / "probe" / "model_best.pth.tar")])
    chosen = results["selected"]
    line_with(capsys.readouterr().out, f"test, epoch {chosen['epoch']}", f"{chosen['acc1']:.2f}")


@pytest.mark.parametrize(("source", "device"), [("gpu_run", "cpu"), ("tsc_run", "cuda")])
def test_run_resumes_on_the_other_device(source, device, flags, tmp_path, request):
    other = request.getfixturevalue(source)
    resume = ["--resume", str(other / "checkpoint_0001.pth.tar"), "--device", device]
    stage1.main([*flags, *TSC, *resume, "--run-dir", str(tmp_path / "run")])
    assert log_of(tmp_path / "run")[-1]["loss"] == pytest.approx(log_of(other)[-1]["loss"], rel=0.02)
    momentum = checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["optimizer"]["state"]
    assert all(state["momentum_buffer"].isfinite().all() for state in momentum.values())


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_targets_generated_on_gpu_are_valid(optimizer, tmp_path):
    words = f"--num-classes 50 --dim 16 --iters 100 --optimizer {optimizer}".split()
    target_generation.main([*words, *ON_GPU, "--output", str(tmp_path / "t.npy")])
    targets = load_targets(tmp_path / "t.npy", 50, 16)  # checks them
    cosines = targets @ targets.T - torch.eye(50)
    assert cosines.max() < 0.6  # random points: 0.8


def test_launch_flags_of_authors_code_work_with_one_gpu(flags, tmp_path):
    before, after = LAUNCHERS["release"]()
    words = [*before, STAGE_1, *flags, *TSC, *ON_GPU, *after, "--run-dir", str(tmp_path / "run")]
    run_program(words, CUDA_VISIBLE_DEVICES="0")
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == 1
    assert all(math.isfinite(epoch["loss"]) for epoch in log_of(tmp_path / "run"))


needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@needs_two_gpus
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_on_two_gpus(launcher, flags, tmp_path):
    before, after = LAUNCHERS[launcher]()
    words = [*before, STAGE_1, *flags, *TSC, *ON_GPU, *after, "--run-dir", str(tmp_path / "run")]
    run_program(words, CUDA_VISIBLE_DEVICES="0,1")
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == 2
    weights = checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["state_dict"]
    steps = 2 * stopping.STEPS
    pointer = weights["module.queue_ptr"].item()
    assert pointer == steps * stopping.BATCH % stopping.QUEUE != steps * 2 * stopping.BATCH % stopping.QUEUE


@needs_two_gpus
@pytest.mark.parametrize("method", METHODS)
def test_two_gpus_match_one_cpu(method, tmp_path):
    """Compares in float64 to 1e-9, without batch norm and with all positives."""
    spawn(train_as_rank, (free_port(), METHODS[method], str(tmp_path), "cuda"), nprocs=2)
    single, _ = train_steps(dict(METHODS[method]))
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", map_location="cpu", weights_only=True)
        assert len(theirs) == STEPS
        torch.testing.assert_close(theirs, single, rtol=1e-9, atol=1e-9)
