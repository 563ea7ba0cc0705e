"""In-batch contrast: several processes match one, and a resumed run matches an uninterrupted one."""

import pytest
import torch
from torch import nn

import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.in_batch import InBatchKCL
from tests.processes import free_port, join_group, spawn
from tests.stopping import assert_resumes_bit_identical
from tests.tiny import unit_vectors
from utils import distributed
from utils.distributed import collectives

CLASSES, DIM = 3, 8
FORMS = {
    "KCL": {},
    "paper": {"targeted": True, "tw": 0.2},
    "release": {"targeted": True, "loss_form": "release", "tr": 4},
    "SimCLR": {"supervised": False},
}


def steps(options: dict, batch: int, device: str = "cpu", train: bool = False) -> dict:
    """Run two steps of resnet20 in float64; each rank gets its share of the `batch` images.

    train: use batch norm in training mode, synchronised over all processes; otherwise in eval mode.
    """
    torch.manual_seed(0)
    model = InBatchKCL(
        get_encoder("resnet20", 8), DIM, num_classes=CLASSES, targets=unit_vectors(CLASSES, DIM).float(), **options
    )
    model = model.double().to(device).train(train)
    if train and distributed.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ddp = collectives.wrap_ddp(model, torch.device(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record = {}
    for step in range(2):
        views, labels = torch.randn(2, batch, 3, 8, 8, dtype=torch.float64), torch.randint(0, CLASSES, (batch,))
        share = slice(*(batch // distributed.world_size() * (distributed.rank() + i) for i in (0, 1)))
        out = ddp(views[0, share].to(device), views[1, share].to(device), labels[share].to(device))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        record[step] = {"loss": list(out[:3]), "gradients": gradients, "state": state}
    return record


def two_ranks(
    rank: int, port: int, options: dict, batch: int, folder: str, device: str = "cpu", train: bool = False
) -> None:
    torch_device = f"cuda:{rank}" if device == "cuda" else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
    with join_group(rank, port, device=device):
        torch.save(steps(options, batch, torch_device, train), f"{folder}/{rank}.pt")


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_match_one_process(form, tmp_path):
    """Loss, gradients and centroids match. Positives are sampled from the whole batch."""
    spawn(two_ranks, (free_port(), FORMS[form], 32, str(tmp_path)), nprocs=2)
    alone = steps(FORMS[form], 32)
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(both, alone, rtol=1e-10, atol=1e-12)


RECIPE = "--cos --lr-end 0.01 --warmup-epochs 1 --keep-last --epochs 4 -b 24"  # epochs of four steps


@pytest.mark.parametrize(
    ("form", "stops"),
    [
        ("--loss-form release --tr 3", (3, 2, 2)),
        ("--tw 0.2 --assignment-interval 4", (3, 2, 2)),
        (f"--tw 0.2 {RECIPE}", (3, 5, 2)),
    ],
)
def test_resumed_run_is_bit_identical(form, stops, batch_flags, tmp_path, monkeypatch):
    """The run is stopped in the KCL phase, at the switch to TSC and in the TSC phase."""
    small = "-a lenet --image-size 12 --contrast batch --epochs 2 --targeted"
    run = [*batch_flags, *small.split(), *form.split()]
    assert_resumes_bit_identical(stage1.main, run, tmp_path, monkeypatch, stops)
