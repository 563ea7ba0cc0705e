"""Fitted heads and the online probe on a CUDA device. Skipped without one."""

import numpy as np
import pytest
import torch

from moco.heads.data import HeadData
from moco.heads.selection import select_head
from tests.cuda import NEEDS_CUDA
from tests.gpu.test_gpu_steps import CUDA
from tests.heads.test_selection import COUNTS, FITTED, clouds, head_data
from tests.measure.test_online_probe import Encoder
from utils.measure.feature_cache import Features
from utils.measure.online_probe import OnlineProbe
from utils.run.compute import ComputeConfig

pytestmark = NEEDS_CUDA


@pytest.mark.parametrize(
    ("name", "sampling", "adjustment"), [balancing for balancing in FITTED if balancing[0] not in ("target", "own")]
)
def test_gpu_head_matches_cpu(name, sampling, adjustment):
    train = clouds(COUNTS, 1)
    train = Features(train.features.double().to(CUDA), train.labels.to(CUDA))
    val, test = (clouds([20] * 4, seed) for seed in (2, 3))
    data = HeadData(train, val, test, np.array(COUNTS), ComputeConfig(CUDA), "val")
    ours = select_head(name, sampling, adjustment, data)
    theirs = select_head(name, sampling, adjustment, head_data())
    assert ours.entry["values"] == theirs.entry["values"]
    for key, value in theirs.classifier.state_dict().items():
        torch.testing.assert_close(ours.classifier.state_dict()[key].cpu(), value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("adjusted", [False, True])
def test_gpu_online_probe_matches_cpu_without_synchronizing(adjusted):
    torch.manual_seed(0)
    encoder, counts, y = Encoder(), torch.tensor([6, 2, 1]), torch.arange(9) % 3
    x, weights = torch.randn(9, 5), []
    for device in (torch.device("cpu"), CUDA):
        network = encoder.to(device)
        probe = OnlineProbe(network, counts, adjusted).to(device)
        network(x.to(device))
        labels = y.to(device)
        if device == CUDA:
            torch.cuda.set_sync_debug_mode("error")
        try:
            probe.step(labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        weights.append(probe.weight.detach().cpu())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
