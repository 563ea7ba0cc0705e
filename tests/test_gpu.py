"""What only a CUDA device can show: `make test-gpu`. Everything here is skipped without one."""

import copy
import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
import target_generation
from moco.assignment import Assignment
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.targets import load_targets
from tests import oracle
from tests.stopping import assert_same_end, assert_stops_change_nothing, log_of
from tests.test_distributed import LAUNCHERS, METHODS, STEPS, free_port, steps, two_ranks
from tests.tiny import tiny_batch, tiny_model, unit
from utils import checkpoint
from utils.speed import Speed, arithmetic, sgd

# cuBLAS looks at it once, at its first call in a process: here, before any test; --deterministic needs it.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
os.environ.setdefault(WORKSPACE, ":4096:8")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Said once a process, of what is no fault: the debug mode's newness, and a backward pass that begins with cuBLAS.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
    pytest.mark.filterwarnings(r"ignore:::torch\._|triton"),  # a compiler's advice
]

ROOT = Path(__file__).parent.parent
STAGE_1 = "main_moco_supcon_imba.py"
CUDA = torch.device("cuda")
ON_GPU = ["--device", "cuda"]
TSC = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2"]  # an epoch of KCL and one of TSC, 5 steps each
METHOD_OPTIONS = {
    "KCL": {},
    "TSC": {"targeted": True, "sep_t": True, "tw": 0.2},
    "TSC, one pool": {"targeted": True, "sep_t": False, "tr": 2},
}
TOLERANCES = {torch.float64: {"rtol": 1e-9, "atol": 1e-10}, torch.float32: {"rtol": 1e-3, "atol": 1e-5}}


def how(**flags) -> Namespace:
    """The arguments that Speed, arithmetic and sgd read, on the GPU."""
    plain = {"amp": "off", "channels_last": False, "compile": False, "tf32": False, "deterministic": False}
    return Namespace(device=CUDA, lr=0.1, momentum=0.9, weight_decay=1e-4, **(plain | flags))


def resnet(**options) -> KCL:
    """A float32 model on resnet20 at 8 px: D=16, Q=1024, C=10, its queue full."""
    model = KCL(get_encoder("resnet20", 8), 16, 1024, mlp=True, num_classes=10, targets=unit(10, 16).float(), **options)
    model.queue_labels.random_(10)
    return model


def images(size: int = 64, device: torch.device = CUDA) -> tuple[torch.Tensor, ...]:
    """Two views at 8 px and labels out of 10 classes."""
    return (*torch.randn(2, size, 3, 8, 8, device=device), torch.randint(10, (size,), device=device))


def some_steps(model: KCL, batches: list, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """Losses, gradients, state and assignment of a step on each batch, as float64 on the CPU."""
    model = copy.deepcopy(model).to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record = []
    for im_q, im_k, labels in batches:
        out = model(im_q.to(device, dtype), im_k.to(device, dtype), labels.to(device))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        values = {"loss": out.loss, "class": out.loss_class, "target": out.loss_target, **model.state_dict()}
        values |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        values |= {} if model.assignment is None else {"assignment": model.assignment}
        record.append({n: value.detach().to("cpu", torch.float64, copy=True) for n, value in values.items()})
    return record


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_a_step_is_the_cpus(method, dtype):
    """Three steps beside the CPU's in float64: loss, gradients, queue, centroids, assignment, weights."""
    model, batches = tiny_model(**METHOD_OPTIONS[method]), [tiny_batch() for _ in range(3)]
    reference = some_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(some_steps(model, batches, CUDA, dtype), reference, **TOLERANCES[dtype])


@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_a_step_with_convolutions_and_batch_norm_is_the_cpus(method):
    model, batches = resnet(**METHOD_OPTIONS[method]), [images(device=torch.device("cpu")) for _ in range(2)]
    reference = some_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(some_steps(model, batches, CUDA, torch.float64), reference, rtol=1e-6, atol=1e-8)


def test_a_first_step_that_overflows_leaves_nothing_behind():
    """--amp fp16: the step is skipped, and so are the momentum buffers, which it has not filled."""
    args, model = how(amp="fp16"), resnet().to(CUDA)
    speed, optimizer = Speed(args), sgd(model.parameters(), args)
    before = [weight.clone() for weight in model.encoder_q.parameters()]

    def step(factor: float) -> None:
        with speed.autocast():
            out = model(*images())
        speed.step(factor * out.loss, optimizer)

    with arithmetic(args):
        step(1e30)
        assert all(map(torch.equal, before, model.encoder_q.parameters()))
        for _ in range(10):  # the scale may have to come down a little more
            step(1.0)
    assert not any(map(torch.equal, before, model.encoder_q.parameters()))
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(momentum) == len(before) and all(buffer.isfinite().all() for buffer in momentum)


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
    """Python with these words, in a process of its own whose environment says nothing of cuBLAS."""
    clean = {key: value for key, value in os.environ.items() if key != WORKSPACE} | environment
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300)
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


@contextmanager
def synchronisation(mode: str | int) -> Iterator[None]:
    """What a host that waits for the device gets in this block: default, warn, error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def may_wait(method: Callable) -> Callable:
    def call(*args):
        with synchronisation("default"):
            return method(*args)

    return call


def test_a_host_that_waits_is_an_error():
    """That the next test can fail."""
    with synchronisation("error"), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones((), device=CUDA).item()


@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_the_host_does_not_wait_for_the_device_in_a_step(method, monkeypatch):
    """Forward, backward and optimiser; the assignment is solved on the host and may wait."""
    for name in ("start", "result"):
        monkeypatch.setattr(Assignment, name, may_wait(getattr(Assignment, name)))
    args, model, batch = how(), resnet(**METHOD_OPTIONS[method]).to(CUDA), images()
    speed, optimizer = Speed(args), sgd(model.parameters(), args)
    with arithmetic(args):
        for mode in ("default", "default", "error", "error"):
            with synchronisation(mode):
                speed.step(model(*batch).loss, optimizer)
    torch.cuda.synchronize()


def test_tf32_does_not_reach_the_centroids():
    """64 classes of 128 dimensions, products large enough for tensor cores, beside the oracle in float64."""
    options = {"dim": 128, "K": 512, "num_classes": 64, "targets": unit(64, 128), "targeted": True, "sep_t": True}
    model = tiny_model(**options).float().to(CUDA)
    im_q, im_k, labels = (tensor.to(CUDA) for tensor in tiny_batch(256, 64))
    before = model.class_centroid.clone()
    with arithmetic(how(tf32=True)):
        q = model(im_q.float(), im_k.float(), labels).q.detach()
    expected = oracle.centroids(before.cpu().double(), q.cpu().double(), labels.tolist())
    torch.testing.assert_close(model.class_centroid.cpu().double(), expected, rtol=0, atol=1e-6)


def test_the_probe_trains_and_evaluate_repeats_its_numbers(gpu_run, probe_flags, tmp_path, capsys):
    words = [*probe_flags, *ON_GPU, "--epochs", "2", "--lr", "0.01", "--pretrained", str(gpu_run / "last.pth.tar")]
    stage2.main([*words, "--run-dir", str(tmp_path / "probe")])
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    first, last = (epoch["train"]["loss"] for epoch in log_of(tmp_path / "probe"))
    assert last < first
    capsys.readouterr()
    stage2.main([*probe_flags, *ON_GPU, "--evaluate", "--resume", str(tmp_path / "probe" / "model_best.pth.tar")])
    line = f"test, epoch {results['selected']['epoch']}: top-1 {results['selected']['acc1']:.2f}"
    assert line in capsys.readouterr().out


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
    assert weights["module.queue_ptr"].item() == 2 * 5 * 512 % 1024  # the global batch is 512, not 1024


@TWO
@pytest.mark.parametrize("method", METHODS)
def test_two_gpus_compute_what_one_cpu_computes(method, tmp_path):
    """Float64, without batch norm and with all positives, to 1e-9."""
    mp.spawn(two_ranks, (free_port(), METHODS[method], str(tmp_path), "cuda"), nprocs=2)
    alone, _ = steps(dict(METHODS[method]))
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", map_location="cpu", weights_only=True)
        assert len(theirs) == STEPS
        torch.testing.assert_close(theirs, alone, rtol=1e-9, atol=1e-9)
