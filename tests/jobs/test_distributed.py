"""Several processes compute what one computes (gloo, CPU)."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from moco import targeted
from moco.builder import KCL
from moco.encoders import get_encoder
from tests.processes import free_port, spawn
from tests.ranks import METHODS, steps, two_ranks
from tests.tiny import tiny_batch, tiny_model, unit
from utils import distributed


@pytest.mark.parametrize(("method", "shuffles"), [*((method, True) for method in METHODS), ("TSC", False)])
def test_two_ranks_compute_what_one_computes(method, shuffles, tmp_path):
    """Without batch norm and with all positives, in float64: loss, gradients, queue, centroids to 1e-10."""
    options = METHODS[method] | {"shuffles": shuffles}
    spawn(two_ranks, (free_port(), options, str(tmp_path)), nprocs=2)
    alone, batches = steps(dict(options))
    for rank in range(2):
        torch.testing.assert_close(
            torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, rtol=1e-10, atol=1e-10
        )

    # shuffle-BN: together the ranks encode the batch, but not each its own part of it, as they do without
    shares = [torch.load(tmp_path / f"encoded_{rank}.pt", weights_only=True) for rank in range(2)]
    for batch, *parts in zip(batches, *shares, strict=True):
        together = torch.cat(parts).flatten(1)
        assert torch.equal(together, batch.flatten(1)) != shuffles
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
    spawn(queues, (free_port(), str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    differ = {name.rsplit(".", 1)[-1] for name in one if not torch.equal(one[name], other[name])}
    assert differ == {"running_mean", "running_var"}
    assert (one["queue_labels"] >= 0).all()


def centroids_that_part(rank: int, port: int, folder: str) -> None:
    """Two steps of TSC; the second rank adds up otherwise, as a GPU of another kind may."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.manual_seed(0)
    model = tiny_model(targeted=True)
    exact = targeted.update_centroids
    targeted.update_centroids = lambda *args: exact(*args) + 0.1 * rank
    for _ in range(2):
        model(*(part.chunk(2)[rank] for part in tiny_batch()))
    torch.save((model.class_centroid, model.assignment), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_that_round_otherwise_assign_the_same_targets(tmp_path):
    spawn(centroids_that_part, (free_port(), str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def two_starts(rank: int, port: int, folder: str) -> None:
    """Four steps of one start, and of two: what a start does not know, buckets as they were built, changes no bit."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=4, rank=rank)
    for name, starts in {"whole": {0}, "stopped": {0, 2}}.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 7))
        for step in range(4):
            if step in starts:
                ddp = distributed.wrap(model, torch.device("cpu"))
            torch.manual_seed(10 * step + rank)
            ddp(torch.randn(5, 20)).square().sum().backward()
            for parameter in model.parameters():
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
        torch.save(model.state_dict(), f"{folder}/{name}_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_of_four_ranks_too_a_start_in_between_changes_no_bit(tmp_path):
    spawn(two_starts, (free_port(), str(tmp_path)), nprocs=4)
    first = torch.load(tmp_path / "whole_0.pt", weights_only=True)
    for file in tmp_path.glob("*.pt"):
        torch.testing.assert_close(torch.load(file, weights_only=True), first, rtol=0, atol=0)


def test_one_process_gathers_nothing():
    tensor = torch.randn(3)
    assert distributed.gather(tensor) is tensor
    assert distributed.sum_over_ranks(tensor) is tensor
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    model = nn.Linear(2, 2)
    assert distributed.wrap(model, torch.device("cpu")) is model
