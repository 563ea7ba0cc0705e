"""Several processes compute the same as one process (gloo, CPU)."""

import pytest
import torch
from torch import nn

from moco import targeted
from moco.builder import KCL
from moco.encoders import get_encoder
from tests.processes import free_port, join_group, spawn
from tests.ranks import METHODS, train_as_rank, train_steps
from tests.tiny import tiny_batch, tiny_model, unit_vectors
from utils import distributed
from utils.distributed import collectives


@pytest.mark.parametrize(("method", "shuffles"), [*((method, True) for method in METHODS), ("TSC", False)])
def test_two_ranks_match_one_process(method, shuffles, tmp_path):
    """Loss, gradients, queue and centroids agree to 1e-10 in float64, without batch norm and with all positives."""
    options = METHODS[method] | {"shuffles": shuffles}
    spawn(train_as_rank, (free_port(), options, str(tmp_path)), nprocs=2)
    alone, batches = train_steps(dict(options))
    for rank in range(2):
        torch.testing.assert_close(
            torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, rtol=1e-10, atol=1e-10
        )

    # With shuffle-BN the ranks together encode the whole batch, but in another order than without.
    shares = [torch.load(tmp_path / f"encoded_{rank}.pt", weights_only=True) for rank in range(2)]
    orders = []
    for batch, *parts in zip(batches, *shares, strict=True):
        gathered = torch.cat(parts).flatten(1)
        orders.append([batch.flatten(1).tolist().index(image) for image in gathered.tolist()])
        assert torch.equal(gathered, batch.flatten(1)) != shuffles
        assert torch.equal(gathered.sort(dim=0).values, batch.flatten(1).sort(dim=0).values)
    assert (orders[0] != orders[1]) == shuffles  # each step has its own order


def save_buffers(rank: int, port: int, folder: str) -> None:
    """Run TSC steps with a real encoder, whose batch norm differs between ranks, and save this rank's buffers."""
    with join_group(rank, port):
        torch.manual_seed(0)
        model = KCL(
            get_encoder("resnet20", 8),
            4,
            24,
            targeted=True,
            sep_t=True,
            num_classes=3,
            targets=unit_vectors(3, 4).float(),
        )
        ddp = collectives.wrap_ddp(model, torch.device("cpu"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            torch.manual_seed(10 * step + rank)
            out = ddp(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,)))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        torch.save(model.state_dict(), f"{folder}/{rank}.pt")


def test_buffers_stay_equal_on_all_ranks(tmp_path):
    """Queue, labels, pointer, centroids and the weights of both encoders are equal; batch-norm statistics differ."""
    spawn(save_buffers, (free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    differ = {name.rsplit(".", 1)[-1] for name in first if not torch.equal(first[name], second[name])}
    assert differ == {"running_mean", "running_var"}
    assert (first["queue_labels"] >= 0).all()


def save_centroids_with_rounding(rank: int, port: int, folder: str) -> None:
    """Run two TSC steps; the second rank computes different centroids, as another kind of GPU may."""
    with join_group(rank, port):
        torch.manual_seed(0)
        model = tiny_model(targeted=True)
        exact = targeted.update_centroids
        targeted.update_centroids = lambda *args: exact(*args) + 0.1 * rank
        for _ in range(2):
            model(*(part.chunk(2)[rank] for part in tiny_batch()))
        torch.save((model.class_centroid, model.assignment), f"{folder}/{rank}.pt")


def test_assignment_is_equal_on_ranks_that_round_differently(tmp_path):
    spawn(save_centroids_with_rounding, (free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def train_with_restart(rank: int, port: int, folder: str) -> None:
    """Run four steps with one start and with two. A new start builds its gradient buckets again."""
    with join_group(rank, port, world_size=4):
        for name, starts in {"whole": {0}, "stopped": {0, 2}}.items():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 7))
            for step in range(4):
                if step in starts:
                    ddp = collectives.wrap_ddp(model, torch.device("cpu"))
                torch.manual_seed(10 * step + rank)
                ddp(torch.randn(5, 20)).square().sum().backward()
                for parameter in model.parameters():
                    parameter.data -= 0.1 * parameter.grad
                    parameter.grad = None
            torch.save(model.state_dict(), f"{folder}/{name}_{rank}.pt")


def test_restart_on_four_ranks_is_bit_identical(tmp_path):
    spawn(train_with_restart, (free_port(), str(tmp_path)), nprocs=4)
    first = torch.load(tmp_path / "whole_0.pt", weights_only=True)
    for file in tmp_path.glob("*.pt"):
        torch.testing.assert_close(torch.load(file, weights_only=True), first, rtol=0, atol=0)


def test_collectives_of_one_process_return_the_input():
    tensor = torch.randn(3)
    assert collectives.gather(tensor) is tensor
    assert collectives.sum_over_ranks(tensor) is tensor
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    model = nn.Linear(2, 2)
    assert collectives.wrap_ddp(model, torch.device("cpu")) is model
