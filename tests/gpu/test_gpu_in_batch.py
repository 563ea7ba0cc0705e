"""A step of in-batch contrast on a CUDA device. Skipped without one."""

import copy

import pytest
import torch

from moco.encoders import get_encoder
from moco.in_batch import InBatchKCL
from tests.cuda import NEEDS_CUDA
from tests.gpu.test_gpu_steps import CUDA, TOLERANCES, assert_step_does_not_synchronize, images, record_steps
from tests.in_batch.test_in_batch_runs import FORMS, steps, two_ranks
from tests.processes import free_port, spawn
from tests.tiny import unit_vectors
from utils.run.compute import ComputeConfig

pytestmark = NEEDS_CUDA


def resnet(form: str) -> InBatchKCL:
    """Return a model on resnet20 at 8 px: D=16, C=10."""
    return InBatchKCL(
        get_encoder("resnet20", 8), 16, mlp=True, num_classes=10, targets=unit_vectors(10, 16).float(), **FORMS[form]
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gpu_step_matches_cpu(form, dtype, monkeypatch):
    """Compares two steps with the CPU's in float64, with batch norm in eval mode and without TF32 in convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, batches = resnet(form).eval(), [images(device=torch.device("cpu")) for _ in range(2)]
    reference = record_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(record_steps(model, batches, CUDA, dtype), reference, **TOLERANCES[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_step_does_not_synchronize_with_gpu(form, monkeypatch):
    assert_step_does_not_synchronize(resnet(form), monkeypatch)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("form", FORMS)
def test_two_gpus_match_one(form, tmp_path):
    spawn(two_ranks, (free_port(), FORMS[form], 256, str(tmp_path), "cuda"), nprocs=2)
    single = steps(FORMS[form], 256, "cuda")
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True, map_location="cuda:0")
        torch.testing.assert_close(both, single, rtol=1e-8, atol=1e-10)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_sync_bn_uses_statistics_of_whole_batch(tmp_path):
    """Compares steps with batch norm in train mode, including its running statistics."""
    spawn(two_ranks, (free_port(), FORMS["KCL"], 64, str(tmp_path), "cuda", True), nprocs=2)
    single = steps(FORMS["KCL"], 64, "cuda", train=True)
    both = torch.load(tmp_path / "0.pt", weights_only=True, map_location="cuda:0")
    torch.testing.assert_close(both, single, rtol=1e-6, atol=1e-8)


def test_loss_is_float32_in_half_precision():
    model, compute = resnet("paper").to(CUDA), ComputeConfig(CUDA, amp="fp16")
    before = copy.deepcopy(model.class_centroid)
    with compute.autocast():
        out = model(*images())
    assert out.loss.dtype == torch.float32 and out.loss.isfinite() and not torch.equal(before, model.class_centroid)
