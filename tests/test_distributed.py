"""Two processes: the same numbers as one, and the scripts run under both launchers (gloo, CPU)."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.tiny import tiny_batch, tiny_model
from utils import checkpoint, distributed

ROOT = Path(__file__).parent.parent
STEPS = 3


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def steps(options: dict) -> tuple[list[dict], list[torch.Tensor]]:
    """Losses, gradients and state of some steps, and the images that became keys; each rank takes its half."""
    torch.manual_seed(0)
    model = tiny_model(num_positive=0, **options)
    ddp = distributed.wrap(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    record, encoded = [], []
    model.encoder_k.register_forward_pre_hook(lambda module, images: encoded.append(images[0]))
    for _ in range(STEPS):
        batch = tiny_batch(6)
        out = ddp(*(part.chunk(distributed.world_size())[distributed.rank()] for part in batch))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        loss = distributed.sum_over_ranks(out.loss.detach()) / distributed.world_size()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        record.append({"loss": loss, "rank": distributed.gather(out.key_rank), "grad": gradients, "state": state})
    return record, encoded


def two_ranks(rank: int, port: int, options: dict, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    record, encoded = steps(options)
    torch.save(record, f"{folder}/{rank}.pt")
    torch.save(encoded, f"{folder}/encoded_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"targeted": True, "sep_t": True}], ids=["KCL", "TSC"])
def test_two_ranks_compute_what_one_computes(options, tmp_path):
    """Without batch norm and with all positives, in float64: loss, gradients, queue, centroids to 1e-10."""
    mp.spawn(two_ranks, (free_port(), options, str(tmp_path)), nprocs=2)
    alone, batches = steps(options)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-10, atol=1e-10)

    # shuffle-BN: together the ranks encode the batch, but not each its own part of it
    shares = [torch.load(tmp_path / f"encoded_{rank}.pt") for rank in range(2)]
    for batch, *parts in zip(batches, *shares, strict=True):
        together = torch.cat(parts).flatten(1)
        assert not torch.equal(together, batch.flatten(1))
        assert torch.equal(together.sort(dim=0).values, batch.flatten(1).sort(dim=0).values)


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
