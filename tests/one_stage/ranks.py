"""Two training steps of a model in two processes, compared with one process."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.multiprocessing import spawn

from tests.processes import free_port, join_group
from utils import distributed
from utils.distributed import collectives


def train_two_steps(model: nn.Module, batch: Callable[[int], tuple[Tensor, ...]], lr: float) -> dict[str, Tensor]:
    """Train on two global batches of 8 images, of which each process takes its part; return the state dict."""
    ddp = collectives.wrap_ddp(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for _ in range(2):
        out = ddp(*(part.chunk(distributed.world_size())[distributed.rank()] for part in batch(8)))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_two_processes_match_one(two_steps: Callable[[], dict[str, Tensor]], folder: Path) -> None:
    """Check that a function of a test module returns the same tensors in each of two processes as in one."""
    spawn(_run_rank, (two_steps, free_port(), str(folder)), nprocs=2)
    alone = two_steps()
    for rank in range(2):
        torch.testing.assert_close(torch.load(folder / f"{rank}.pt", weights_only=True), alone, rtol=1e-9, atol=1e-12)


def _run_rank(rank: int, two_steps: Callable[[], dict], port: int, folder: str) -> None:
    with join_group(rank, port):
        torch.save(two_steps(), f"{folder}/{rank}.pt")
