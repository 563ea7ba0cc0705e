"""Several processes: the same numbers as one, every launcher, and what happens when one stops or dies (gloo, CPU)."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moco import builder
from moco.builder import KCL
from moco.encoders import get_encoder
from tests import faults
from tests.tiny import tiny_batch, tiny_model, unit
from utils import checkpoint, distributed

ROOT = Path(__file__).parent.parent
STEPS = 3


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def steps(options: dict, where: str = "cpu") -> tuple[list[dict], list[torch.Tensor]]:
    """Losses, gradients and state of some steps, and the images that became keys; each rank takes its half.

    options: of the model; `switch`: the step from which on it is targeted. where: the device, of this rank.
    """
    torch.manual_seed(0)
    switch = options.pop("switch", None)
    model = tiny_model(num_positive=0, **options).to(where)
    ddp = distributed.wrap(model, torch.device(where))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    record, encoded = [], []
    model.encoder_k.register_forward_pre_hook(lambda module, images: encoded.append(images[0]))
    for step in range(STEPS):
        model.targeted |= step == switch
        batch = tiny_batch(6)
        out = ddp(*(part.chunk(distributed.world_size())[distributed.rank()].to(where) for part in batch))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        loss = distributed.sum_over_ranks(out.loss.detach()) / distributed.world_size()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        record.append({"loss": loss, "rank": distributed.gather(out.key_rank), "grad": gradients, "state": state})
    return record, encoded


def two_ranks(rank: int, port: int, options: dict, folder: str, device: str = "cpu") -> None:
    backend, where = ("cpu:gloo,cuda:nccl", f"cuda:{rank}") if device == "cuda" else ("gloo", "cpu")
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    record, encoded = steps(options, where)
    torch.save(record, f"{folder}/{rank}.pt")
    torch.save(encoded, f"{folder}/encoded_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


METHODS = {
    "KCL": {},
    "TSC": {"targeted": True, "sep_t": True},
    "KCL, then TSC": {"sep_t": True, "switch": 1},  # in one DistributedDataParallel, whose graph is static
}


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_compute_what_one_computes(method, tmp_path):
    """Without batch norm and with all positives, in float64: loss, gradients, queue, centroids to 1e-10."""
    mp.spawn(two_ranks, (free_port(), METHODS[method], str(tmp_path)), nprocs=2)
    alone, batches = steps(dict(METHODS[method]))
    for rank in range(2):
        torch.testing.assert_close(
            torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, rtol=1e-10, atol=1e-10
        )

    # shuffle-BN: together the ranks encode the batch, but not each its own part of it
    shares = [torch.load(tmp_path / f"encoded_{rank}.pt", weights_only=True) for rank in range(2)]
    for batch, *parts in zip(batches, *shares, strict=True):
        together = torch.cat(parts).flatten(1)
        assert not torch.equal(together, batch.flatten(1))
        assert torch.equal(together.sort(dim=0).values, batch.flatten(1).sort(dim=0).values)


def queues(rank: int, port: int, folder: str) -> None:
    """Steps of TSC with a real encoder, whose batch norm differs between ranks; saves this rank's buffers."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.manual_seed(0)
    model = KCL(get_encoder("resnet20", 8), 4, 24, targeted=True, sep_t=True, num_classes=3, targets=unit(3, 4).float())
    ddp = distributed.wrap(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        out = ddp(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,)))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_buffers_stay_equal_on_all_ranks(tmp_path):
    """Queue, labels and pointer without being sent, centroids, and the weights of both encoders; batch-norm
    statistics differ."""
    mp.spawn(queues, (free_port(), str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    differ = {name.rsplit(".", 1)[-1] for name in one if not torch.equal(one[name], other[name])}
    assert differ == {"running_mean", "running_var"}
    assert (one["queue_labels"] >= 0).all()


def centroids_that_part(rank: int, port: int, folder: str) -> None:
    """Two steps of TSC; the second rank adds up otherwise, as a GPU of another kind may."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.manual_seed(0)
    model = tiny_model(targeted=True)
    exact = builder.update_centroids
    builder.update_centroids = lambda *args: exact(*args) + 0.1 * rank
    for _ in range(2):
        model(*(part.chunk(2)[rank] for part in tiny_batch()))
    torch.save((model.class_centroid, model.assignment), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_that_round_otherwise_assign_the_same_targets(tmp_path):
    mp.spawn(centroids_that_part, (free_port(), str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


LAUNCHERS = {
    "release": lambda: ([], ["--multiprocessing-distributed", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]),
    "torchrun": lambda: (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], []),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_both_stages_run_in_two_processes(launcher, flags, probe_flags, tmp_path, digits_root):
    before, after = LAUNCHERS[launcher]()
    stage_1 = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--run-dir", str(tmp_path / "run")]
    done = run([sys.executable, *before, "main_moco_supcon_imba.py", *stage_1, *after])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Epoch: [2/2] TSC  Loss") == 1  # one process speaks
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == 2
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    assert weights["module.queue_ptr"].item() == 2 * 5 * 512 % 1024  # the global batch is 512, not 1024

    before, after = LAUNCHERS[launcher]()
    probe = [*probe_flags, "--epochs", "1", "--pretrained", str(tmp_path / "run" / "last.pth.tar")]
    probe += ["--run-dir", str(tmp_path / "probe")]
    done = run([sys.executable, *before, "main_lincls_imba.py", *probe, *after])
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "probe" / "results.json").read_text())

    # two processes have counted every test image once: one process finds the same
    one = [*probe_flags, "--evaluate", "--resume", str(tmp_path / "probe" / "last.pth.tar")]
    assert (
        f"test, epoch 1: top-1 {results['last']['acc1']:.2f}"
        in run([sys.executable, "main_lincls_imba.py", *one]).stdout
    )


def nodes(launcher: str, number: int, port: int) -> tuple[list[str], list[str]]:
    """What stands before and after the script on machine `number` of two."""
    if launcher == "release":
        where = ["--world-size", "2", "--rank", str(number), "--dist-url", f"tcp://127.0.0.1:{port}"]
        return [], ["--multiprocessing-distributed", *where]
    where = ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
    return ["-m", "torch.distributed.run", *where, "--master-addr", "127.0.0.1", "--master-port", str(port)], []


@pytest.mark.parametrize(("launcher", "processes"), [("release", 4), ("torchrun", 2)])
def test_two_machines_are_one_job_with_one_writer(launcher, processes, flags, tmp_path):
    port, machines = free_port(), []
    for number in range(2):
        before, after = nodes(launcher, number, port)
        command = [sys.executable, *before, "main_moco_supcon_imba.py", *flags, "--epochs", "1", *after]
        machines.append(start([*command, "--run-dir", str(tmp_path / "run")]))
    (first, _), (second, err) = (machine.communicate(timeout=240) for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], err
    said = [line for line in second.splitlines() if not line.startswith("[Gloo]")]  # PyTorch 2.9 says who has met
    assert "Epoch: [1/1] KCL  Loss" in first and not said
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == processes
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def long_run(launcher: str, flags: list[str], run_dir: Path, *more: str) -> list[str]:
    before, after = LAUNCHERS[launcher]()
    return [
        sys.executable,
        *before,
        "main_moco_supcon_imba.py",
        *flags,
        "-p",
        "1",
        "--run-dir",
        str(run_dir),
        *after,
        *more,
    ]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_when_one_process_dies_the_job_ends(launcher, flags, tmp_path):
    """Killed, so it cannot say anything: the others do not wait for it."""
    job = start(long_run(launcher, flags, tmp_path / "run", "--epochs", "500"))
    next(line for line in job.stdout if "Epoch: [1/500]" in line)
    workers = [pid for pid in faults.descendants(job.pid) if "multiprocessing.spawn" in words(pid) or is_rank(pid)]
    os.kill(workers[-1], signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode not in (0, None)
    assert "SIGKILL" in err


def words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def is_rank(pid: int) -> bool:
    """Whether it is a process that torchrun has started."""
    return "main_moco" in words(pid) and "torch.distributed.run" not in words(pid)


FOUR_EPOCHS = ["--epochs", "4", "--targeted", "--sep_t", "--resume", "auto"]


@pytest.fixture(scope="module")
def whole_of_two(flags, tmp_path_factory) -> dict:
    """The weights of a run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole_of_two") / "run"
    done = run(long_run("release", flags, folder, *FOUR_EPOCHS))
    assert done.returncode == 0, done.stderr
    return checkpoint.load(folder / "last.pth.tar")["state_dict"]


def test_a_signal_to_the_launching_process_saves_and_all_go_on_bit_for_bit(flags, whole_of_two, tmp_path):
    """SIGTERM within an epoch: both ranks stop after the same step, one saves, and nothing is lost."""
    job = start(long_run("release", flags, tmp_path / "run", *FOUR_EPOCHS))
    next(line for line in job.stdout if "Epoch: [2/4] KCL[   1/5]" in line)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 143 and "stopped by SIGTERM after epoch" in err
    again = run(long_run("release", flags, tmp_path / "run", *FOUR_EPOCHS))
    assert again.returncode == 0 and "resumed" in again.stdout, again.stderr
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    torch.testing.assert_close(weights, whole_of_two, rtol=0, atol=0)


def test_torchrun_starts_killed_workers_again_and_nothing_is_lost(flags, whole_of_two, tmp_path):
    """--max-restarts with --resume auto: a worker is killed within an epoch, the group starts again."""
    command = long_run("torchrun", flags, tmp_path / "run", *FOUR_EPOCHS, "--save-steps", "1")
    command[3:3] = ["--max-restarts", "2"]
    job = start(command)
    next(line for line in job.stdout if "Epoch: [2/4] KCL[   2/5]" in line)
    os.kill([pid for pid in faults.descendants(job.pid) if is_rank(pid)][-1], signal.SIGKILL)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert "resumed" in out
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    torch.testing.assert_close(weights, whole_of_two, rtol=0, atol=0)


def test_a_mistake_is_said_before_any_process_starts(flags, tmp_path):
    command = [*flags, "-b", "511", "--multiprocessing-distributed", "--run-dir", str(tmp_path / "run")]
    done = run([sys.executable, "main_moco_supcon_imba.py", *command])
    assert done.returncode == 2
    assert done.stderr == "error: --batch-size 511: does not divide over 2 processes\n"


def test_a_mistake_found_by_the_processes_ends_the_job_with_2(flags, tsc_run, tmp_path):
    command = [
        *flags,
        "--override",
        "--moco-dim",
        "32",
        "--resume",
        str(tsc_run / "last.pth.tar"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    command += ["--multiprocessing-distributed", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    done = run([sys.executable, "main_moco_supcon_imba.py", *command])
    assert done.returncode == 2
    assert "does not fit the model" in done.stderr and "Traceback" not in done.stderr


def test_processes_that_cannot_meet_say_so_in_one_line(flags, tmp_path):
    command = [*flags, "--multiprocessing-distributed", "--dist-url", "garbage", "--run-dir", str(tmp_path / "run")]
    done = run([sys.executable, "main_moco_supcon_imba.py", *command])
    assert done.returncode == 2
    assert "error: the processes cannot meet at garbage over gloo: " in done.stderr and "Traceback" not in done.stderr


def test_one_process_gathers_nothing():
    tensor = torch.randn(3)
    assert distributed.gather(tensor) is tensor
    assert distributed.sum_over_ranks(tensor) is tensor
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    model = torch.nn.Linear(2, 2)
    assert distributed.wrap(model, torch.device("cpu")) is model
