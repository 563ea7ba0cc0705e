"""Training steps on two ranks (gloo on the CPU, NCCL on GPUs)."""

import torch

from tests.processes import join_group
from tests.tiny import tiny_batch, tiny_model
from utils import distributed
from utils.distributed import collectives

STEPS = 3


def train_steps(options: dict, where: str = "cpu") -> tuple[list[dict], list[torch.Tensor]]:
    """Train for STEPS steps, each rank on its share of the batch; return records of the steps and the key images.

    options: of the model; also `switch`, the step at which it becomes targeted, and `shuffles`, which is False for a
    model without batch norm. where: the device of this rank.
    """
    torch.manual_seed(0)
    switch, shuffles = options.pop("switch", None), options.pop("shuffles", True)
    model = tiny_model(num_positive=0, **options).to(where)
    model.uses_shuffle_bn = shuffles
    ddp = collectives.wrap_ddp(model, torch.device(where))
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
        loss = collectives.sum_over_ranks(out.loss.detach()) / distributed.world_size()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        record.append({"loss": loss, "rank": collectives.gather(out.key_rank), "grad": gradients, "state": state})
    return record, encoded


def train_as_rank(rank: int, port: int, options: dict, folder: str, device: str = "cpu") -> None:
    """Train as one of two ranks and save the records and the key images in the folder."""
    where = f"cuda:{rank}" if device == "cuda" else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
    with join_group(rank, port, device=device):
        record, encoded = train_steps(options, where)
        torch.save(record, f"{folder}/{rank}.pt")
        torch.save(encoded, f"{folder}/encoded_{rank}.pt")


METHODS = {
    "KCL": {},
    "TSC": {"targeted": True, "sep_t": True},
    "KCL, then TSC": {"sep_t": True, "switch": 1},  # with one DistributedDataParallel, whose graph is static
}
