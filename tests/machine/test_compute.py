"""Each flag of the group Speed: that it does what it says, and changes no more than that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.heads import freeze
from tests import ROOT
from tests.refusals import line_with, refusal
from tests.stopping import assert_stops_change_nothing, log_of, stop_at
from tests.tiny import tiny_batch, tiny_model
from utils.errors import Stopped
from utils.optimizers import sgd
from utils.run import checkpoint
from utils.run.compute import ComputeConfig

CPU = torch.device("cpu")
TSC = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2"]
FLAGS = [
    "--amp bf16",
    "--channels-last",
    pytest.param("--amp fp16", marks=pytest.mark.slow),  # most CPUs have no float16 and compute it number by number
]


def compute(amp: str = "off", channels_last: bool = False, compiled: bool = False) -> ComputeConfig:
    return ComputeConfig(CPU, amp, channels_last, compiled)


def outputs(encoder: torch.nn.Module) -> list[torch.Tensor]:
    """A list that the output of the encoder's first convolution joins at each call."""
    seen = []
    encoder.conv1.register_forward_hook(lambda module, images, output: seen.append(output))
    return seen


@pytest.fixture(scope="module")
def plain_probe(probe_flags, tsc_run, tmp_path_factory) -> tuple[list[str], Path]:
    """The flags of an epoch of stage 2 without flags for speed, and its folder."""
    words = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "1", "--lr", "0.01"]
    run_dir = tmp_path_factory.mktemp("plain") / "probe"
    stage2.main([*words, "--run-dir", str(run_dir)])
    return words, run_dir


@pytest.mark.parametrize("flag", FLAGS)
def test_both_stages_come_close_to_float32(flag, flags, plain_probe, tsc_run, tmp_path):
    stage1.main([*flags, *TSC, *flag.split(), "--run-dir", str(tmp_path / "run")])
    for ours, theirs in zip(log_of(tmp_path / "run"), log_of(tsc_run), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=5e-3)
    assert log_of(tmp_path / "run")[0]["loss"] != log_of(tsc_run)[0]["loss"]  # the flag reaches the encoders
    ours, theirs = (checkpoint.load(run / "last.pth.tar")["state_dict"] for run in (tmp_path / "run", tsc_run))
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}

    words, plain = plain_probe
    stage2.main([*words, *flag.split(), "--run-dir", str(tmp_path / "fast")])
    ours, theirs = (log_of(run)[0] for run in (tmp_path / "fast", plain))
    for split in ("train", "val", "test"):
        assert ours[split]["loss"] == pytest.approx(theirs[split]["loss"], rel=5e-3)
    weights = [checkpoint.load(tmp_path / name / "last.pth.tar")["state_dict"] for name in ("run", "fast")]
    kernels = [weights[0]["module.encoder_q.conv1.weight"], weights[1]["module.conv1.weight"]]
    if flag == "--channels-last":
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    else:
        assert ours["train"]["loss"] != theirs["train"]["loss"]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_stopped_run_goes_on_to_the_same_bits(flag, flags, tmp_path, monkeypatch):
    """Stopped in KCL (step 3) and in TSC (step 8); with fp16 the scale of the loss goes on too."""
    words = [*flags, *TSC, *flag.split(), "--image-size", "4"]
    assert_stops_change_nothing(stage1.main, words, tmp_path, monkeypatch, (3, 5))
    ours, theirs = (checkpoint.load(tmp_path / name / "last.pth.tar") for name in ("run", "whole"))
    assert ours.get("scaler") == theirs.get("scaler")
    assert ("scaler" in ours) == (flag == "--amp fp16")
    if "scaler" in ours:
        assert ours["scaler"]["_growth_tracker"] == 2 * 5  # steps since the start without an overflow


def test_other_precision_needs_override(flags, tsc_run, tmp_path):
    run = [*flags, *TSC, "--amp", "bf16", "--resume", str(tsc_run / "checkpoint_0001.pth.tar")]
    refusal(lambda: stage1.main([*run, "--run-dir", str(tmp_path / "run")]), "amp", "off", "bf16", "--override")
    stage1.main([*run, "--override", "--run-dir", str(tmp_path / "run")])
    assert checkpoint.load(tmp_path / "run" / "last.pth.tar")["epoch"] == 2


def test_the_scale_of_the_loss_goes_on(flags, tsc_run, tmp_path, monkeypatch):
    """Not from its start, from that of the checkpoint: a run that is stopped in its first step."""
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7).state_dict()
    torch.save(state | {"scaler": scaler}, tmp_path / "scaled.pth.tar")
    run = [*flags, *TSC, "--amp", "fp16", "--override", "--resume", str(tmp_path / "scaled.pth.tar")]
    stop_at(monkeypatch, 1)
    with pytest.raises(Stopped):
        stage1.main([*run, "--image-size", "4", "--run-dir", str(tmp_path / "run")])
    written = checkpoint.load(tmp_path / "run" / "last.pth.tar")["scaler"]
    assert written == scaler | {"_growth_tracker": 1}


@pytest.mark.parametrize("scaler", [7, {}, {"scale": 2.0}, {**torch.amp.GradScaler("cpu").state_dict(), "scale": "x"}])
def test_a_damaged_scale_is_named(scaler):
    refusal(lambda: compute("fp16").load(scaler, "a.tar"), "a.tar", "scaler", "scale", "growth_factor")


def test_float16_skips_a_step_whose_gradient_overflows():
    weight, run = torch.nn.Parameter(torch.ones(1)), compute("fp16")
    optimizer = torch.optim.SGD([weight], lr=1.0)
    run.step((weight * torch.finfo(torch.float32).max).sum(), optimizer)
    assert weight.item() == 1 and run.state()["scale"] == 2.0**15
    run.step(weight.sum(), optimizer)
    assert weight.item() == 0  # the gradient is 1, whatever the scale


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_that_of_the_encoders_alone(amp, dtype):
    model = KCL(get_encoder("resnet20", 8), 4, 16, num_classes=3)
    queries, keys = outputs(model.encoder_q), outputs(model.encoder_k)
    with compute(amp).autocast():
        out = model(torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8), torch.arange(8) % 3)
    assert queries[0].dtype == keys[0].dtype == dtype
    assert {tensor.dtype for tensor in out if tensor.is_floating_point()} == {torch.float32}

    network = freeze(get_encoder("resnet20", 8)(num_classes=3))
    features = outputs(network)
    with compute(amp).autocast():
        logits = network(torch.randn(8, 3, 8, 8))
    assert features[0].dtype == dtype and logits.dtype == torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_reaches_the_features(channels_last):
    encoder = get_encoder("resnet20", 8)(num_classes=4)
    compute(channels_last=channels_last).apply_to(encoder)
    seen = outputs(encoder)
    encoder(torch.randn(2, 3, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last


def test_compiling_keeps_the_keys_and_the_step():
    """Encoders of one Linear, float64: the same losses, weights and queue, under the same names."""
    plain = tiny_model(targeted=True)
    compiled = tiny_model(targeted=True)
    compiled.load_state_dict(plain.state_dict())
    compute(compiled=True).apply_to(compiled.encoder_q, compiled.encoder_k)
    batch = tiny_batch()
    for model in (plain, compiled):
        optimizer = sgd(model.parameters(), 0.5, 0.9, 0.0)
        for _ in range(2):
            compute().step(model(*batch).loss, optimizer)
    torch.testing.assert_close(plain.state_dict(), compiled.state_dict(), rtol=1e-10, atol=1e-12)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


@pytest.mark.slow
def test_both_stages_compile(flags, probe_flags, tsc_run, tmp_path):
    stage1.main([*flags, *TSC, "--compile", "--run-dir", str(tmp_path / "run")])
    ours, theirs = (checkpoint.load(run / "last.pth.tar")["state_dict"] for run in (tmp_path / "run", tsc_run))
    assert ours.keys() == theirs.keys()
    for mine, other in zip(log_of(tmp_path / "run"), log_of(tsc_run), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
    pretrained = ["--pretrained", str(tmp_path / "run" / "last.pth.tar"), "--epochs", "1"]
    stage2.main([*probe_flags, *pretrained, "--compile", "--run-dir", str(tmp_path / "compiled")])
    stage2.main([*probe_flags, *pretrained, "--run-dir", str(tmp_path / "plain")])
    ours, theirs = (log_of(tmp_path / name)[0]["test"]["loss"] for name in ("compiled", "plain"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_missing_compiler_is_said_before_anything_is_written(flags, tmp_path):
    """In a new Python: PyTorch reads CXX when it is imported."""
    command = [sys.executable, "main_moco_supcon_imba.py", *flags, "--compile", "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    line_with(done.stderr, "error: ", "--compile", "cpu", "compiler")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_both_scripts_take_tf32(flags, probe_flags, tsc_run, tmp_path, capsys):
    stage1.main([*flags, "--epochs", "1", "--tf32", "--run-dir", str(tmp_path / "run")])
    probe = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "1", "--tf32"]
    stage2.main([*probe, "--run-dir", str(tmp_path / "probe")])
    notes = [line for line in capsys.readouterr().out.splitlines() if "--tf32" in line and "cpu" in line]
    assert len(notes) == 2


def test_the_optimiser_goes_on_with_the_kernels_and_strides_of_this_run():
    """A checkpoint of another device, or of --channels-last, is loaded with --override."""
    weights = [torch.nn.Parameter(torch.randn(4, 3, 2, 2)) for _ in range(2)]
    weights[1].data = weights[1].to(memory_format=torch.channels_last)
    there = torch.optim.SGD(weights[:1], 0.1, momentum=0.9, weight_decay=0.1, fused=True)
    weights[0].grad = torch.randn(4, 3, 2, 2)
    there.step()
    here = sgd(weights[1:], 0.1, 0.9, 0.1)
    checkpoint.load_optimizer(here, there.state_dict(), Path("a.tar"))
    assert there.param_groups[0]["fused"] and not here.param_groups[0]["fused"]
    momentum = here.state[weights[1]]["momentum_buffer"]
    assert momentum.stride() == weights[1].stride() != weights[0].stride()
    assert torch.equal(momentum, there.state[weights[0]]["momentum_buffer"])


@pytest.mark.parametrize("train", [True, False])
def test_a_probe_keeps_nothing_of_the_encoder_for_the_backward_pass(train):
    network, saved = freeze(get_encoder("resnet20", 8)(num_classes=3)).train(train), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        network(torch.randn(4, 3, 8, 8))
    assert {tuple(tensor.shape) for tensor in saved if tensor is not None} <= {(4, 64), (3, 64), (64, 3)}
    assert saved  # the features, for the gradient of fc
