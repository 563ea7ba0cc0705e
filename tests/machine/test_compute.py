"""Flags of the Speed group: each has its effect and changes nothing else."""

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
from moco.heads.networks import freeze_and_replace_classifier
from tests import ROOT
from tests.refusals import line_with, refusal
from tests.stopping import assert_resumes_bit_identical, log_of, send_signal_at_step
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
    pytest.param("--amp fp16", marks=pytest.mark.slow),  # most CPUs compute float16 one number at a time
]


def make_compute(amp: str = "off", channels_last: bool = False, compiled: bool = False) -> ComputeConfig:
    return ComputeConfig(CPU, amp, channels_last, compiled)


def record_conv1_outputs(encoder: torch.nn.Module) -> list[torch.Tensor]:
    """Return a list to which each forward pass appends the output of the encoder's first convolution."""
    seen = []
    encoder.conv1.register_forward_hook(lambda module, images, output: seen.append(output))
    return seen


@pytest.fixture(scope="module")
def float32_probe(probe_flags, tsc_run, tmp_path_factory) -> tuple[list[str], Path]:
    """Run one epoch of stage 2 without flags of the Speed group. Return its flags and its folder."""
    words = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "1", "--lr", "0.01"]
    run_dir = tmp_path_factory.mktemp("plain") / "probe"
    stage2.main([*words, "--run-dir", str(run_dir)])
    return words, run_dir


@pytest.mark.parametrize("flag", FLAGS)
def test_precision_flags_stay_close_to_float32(flag, flags, float32_probe, tsc_run, tmp_path):
    stage1.main([*flags, *TSC, *flag.split(), "--run-dir", str(tmp_path / "run")])
    for ours, theirs in zip(log_of(tmp_path / "run"), log_of(tsc_run), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=5e-3)
    ours, theirs = (
        checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"] for run in (tmp_path / "run", tsc_run)
    )
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}

    words, plain = float32_probe
    stage2.main([*words, *flag.split(), "--run-dir", str(tmp_path / "fast")])
    ours, theirs = (log_of(run)[0] for run in (tmp_path / "fast", plain))
    for split in ("train", "val", "test"):
        assert ours[split]["loss"] == pytest.approx(theirs[split]["loss"], rel=5e-3)
    weights = [checkpoint.read_checkpoint(tmp_path / name / "last.pth.tar")["state_dict"] for name in ("run", "fast")]
    kernels = [weights[0]["module.encoder_q.conv1.weight"], weights[1]["module.conv1.weight"]]
    # The flag reaches the encoders of both stages. On some CPUs, the memory format does not change any number.
    if flag == "--channels-last":
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    else:
        assert log_of(tmp_path / "run")[0]["loss"] != log_of(tsc_run)[0]["loss"]
        assert ours["train"]["loss"] != theirs["train"]["loss"]


@pytest.mark.parametrize("flag", FLAGS)
def test_resumed_run_with_precision_flag_is_bit_identical(flag, flags, tmp_path, monkeypatch):
    """The run is stopped in KCL (step 3) and in TSC (step 8). With fp16 the loss scale is resumed as well."""
    words = [*flags, *TSC, *flag.split(), "--image-size", "4"]
    assert_resumes_bit_identical(stage1.main, words, tmp_path, monkeypatch, (3, 5))
    ours, theirs = (checkpoint.read_checkpoint(tmp_path / name / "last.pth.tar") for name in ("run", "whole"))
    assert ours.get("scaler") == theirs.get("scaler")
    assert ("scaler" in ours) == (flag == "--amp fp16")
    if "scaler" in ours:
        assert ours["scaler"]["_growth_tracker"] == 2 * 5  # steps since the start without an overflow


def test_changed_precision_needs_override(flags, tsc_run, tmp_path):
    run = [*flags, *TSC, "--amp", "bf16", "--resume", str(tsc_run / "checkpoint_0001.pth.tar")]
    refusal(lambda: stage1.main([*run, "--run-dir", str(tmp_path / "run")]), "amp", "off", "bf16", "--override")
    stage1.main([*run, "--override", "--run-dir", str(tmp_path / "run")])
    assert checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["epoch"] == 2


def test_loss_scale_is_restored_from_checkpoint(flags, tsc_run, tmp_path, monkeypatch):
    """A run that is stopped in its first step continues from the loss scale in the checkpoint."""
    state = checkpoint.read_checkpoint(tsc_run / "checkpoint_0001.pth.tar")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7).state_dict()
    torch.save(state | {"scaler": scaler}, tmp_path / "scaled.pth.tar")
    run = [*flags, *TSC, "--amp", "fp16", "--override", "--resume", str(tmp_path / "scaled.pth.tar")]
    send_signal_at_step(monkeypatch, 1)
    with pytest.raises(Stopped):
        stage1.main([*run, "--image-size", "4", "--run-dir", str(tmp_path / "run")])
    written = checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["scaler"]
    assert written == scaler | {"_growth_tracker": 1}


@pytest.mark.parametrize("scaler", [7, {}, {"scale": 2.0}, {**torch.amp.GradScaler("cpu").state_dict(), "scale": "x"}])
def test_damaged_loss_scale_is_refused(scaler):
    compute = make_compute("fp16")
    refusal(lambda: compute.load_scaler_state(scaler, "a.tar"), "a.tar", "scaler", "scale", "growth_factor")


def test_fp16_step_with_overflowing_gradient_is_skipped():
    weight, config = torch.nn.Parameter(torch.ones(1)), make_compute("fp16")
    optimizer = torch.optim.SGD([weight], lr=1.0)
    config.step((weight * torch.finfo(torch.float32).max).sum(), optimizer)
    assert weight.item() == 1 and config.scaler_state()["scale"] == 2.0**15
    config.step(weight.sum(), optimizer)
    assert weight.item() == 0  # the gradient is 1, whatever the scale


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_applies_only_to_the_encoders(amp, dtype):
    model = KCL(get_encoder("resnet20", 8), 4, 16, num_classes=3)
    queries, keys = record_conv1_outputs(model.encoder_q), record_conv1_outputs(model.encoder_k)
    with make_compute(amp).autocast():
        out = model(torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8), torch.arange(8) % 3)
    assert queries[0].dtype == keys[0].dtype == dtype
    assert {tensor.dtype for tensor in out if tensor.is_floating_point()} == {torch.float32}

    network = freeze_and_replace_classifier(get_encoder("resnet20", 8)(num_classes=3))
    features = record_conv1_outputs(network)
    with make_compute(amp).autocast():
        logits = network(torch.randn(8, 3, 8, 8))
    assert features[0].dtype == dtype and logits.dtype == torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_reaches_the_features(channels_last):
    encoder = get_encoder("resnet20", 8)(num_classes=4)
    make_compute(channels_last=channels_last).apply_to(encoder)
    seen = record_conv1_outputs(encoder)
    encoder(torch.randn(2, 3, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last


def test_compiled_model_has_same_keys_and_results():
    """With single-layer encoders in float64, losses, weights, queue and key names are the same."""
    plain = tiny_model(targeted=True)
    compiled = tiny_model(targeted=True)
    compiled.load_state_dict(plain.state_dict())
    make_compute(compiled=True).apply_to(compiled.encoder_q, compiled.encoder_k)
    batch = tiny_batch()
    for model in (plain, compiled):
        optimizer = sgd(model.parameters(), 0.5, 0.9, 0.0)
        for _ in range(2):
            make_compute().step(model(*batch).loss, optimizer)
    torch.testing.assert_close(plain.state_dict(), compiled.state_dict(), rtol=1e-10, atol=1e-12)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


@pytest.mark.slow
def test_compiled_stages_match_uncompiled(flags, probe_flags, tsc_run, tmp_path):
    stage1.main([*flags, *TSC, "--compile", "--run-dir", str(tmp_path / "run")])
    ours, theirs = (
        checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"] for run in (tmp_path / "run", tsc_run)
    )
    assert ours.keys() == theirs.keys()
    for mine, other in zip(log_of(tmp_path / "run"), log_of(tsc_run), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
    pretrained = ["--pretrained", str(tmp_path / "run" / "last.pth.tar"), "--epochs", "1"]
    stage2.main([*probe_flags, *pretrained, "--compile", "--run-dir", str(tmp_path / "compiled")])
    stage2.main([*probe_flags, *pretrained, "--run-dir", str(tmp_path / "plain")])
    ours, theirs = (log_of(tmp_path / name)[0]["test"]["loss"] for name in ("compiled", "plain"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_missing_compiler_is_refused_before_writing(flags, tmp_path):
    """This needs a new Python process, because PyTorch reads CXX when it is imported."""
    command = [sys.executable, "main_moco_supcon_imba.py", *flags, "--compile", "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    line_with(done.stderr, "error: ", "--compile", "cpu", "compiler")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_both_scripts_accept_tf32(flags, probe_flags, tsc_run, tmp_path, capsys):
    stage1.main([*flags, "--epochs", "1", "--tf32", "--run-dir", str(tmp_path / "run")])
    probe = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "1", "--tf32"]
    stage2.main([*probe, "--run-dir", str(tmp_path / "probe")])
    notes = [line for line in capsys.readouterr().out.splitlines() if "--tf32" in line and "cpu" in line]
    assert len(notes) == 2


def test_loaded_optimizer_keeps_own_kernels_and_strides():
    """With --override, a checkpoint may come from another device or from a run with --channels-last."""
    weights = [torch.nn.Parameter(torch.randn(4, 3, 2, 2)) for _ in range(2)]
    weights[1].data = weights[1].to(memory_format=torch.channels_last)
    source = torch.optim.SGD(weights[:1], 0.1, momentum=0.9, weight_decay=0.1, fused=True)
    weights[0].grad = torch.randn(4, 3, 2, 2)
    source.step()
    loaded = sgd(weights[1:], 0.1, 0.9, 0.1)
    checkpoint.load_optimizer(loaded, source.state_dict(), Path("a.tar"))
    assert source.param_groups[0]["fused"] and not loaded.param_groups[0]["fused"]
    momentum = loaded.state[weights[1]]["momentum_buffer"]
    assert momentum.stride() == weights[1].stride() != weights[0].stride()
    assert torch.equal(momentum, source.state[weights[0]]["momentum_buffer"])


@pytest.mark.parametrize("train", [True, False])
def test_probe_saves_no_encoder_tensors_for_backward(train):
    network, saved = freeze_and_replace_classifier(get_encoder("resnet20", 8)(num_classes=3)).train(train), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        network(torch.randn(4, 3, 8, 8))
    assert {tuple(tensor.shape) for tensor in saved if tensor is not None} <= {(4, 64), (3, 64), (64, 3)}
    assert saved  # the features, for the gradient of fc
