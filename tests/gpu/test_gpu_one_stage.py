"""A step of the methods with a classifier in stage 1, on a CUDA device. Skipped without one."""

import pytest
import torch

from tests.cuda import NEEDS_CUDA
from tests.gpu.test_gpu_steps import CUDA, TOLERANCES, record_steps
from tests.one_stage.built import MODELS, batch_for

pytestmark = NEEDS_CUDA


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("method", MODELS)
def test_gpu_step_matches_cpu(method, dtype):
    """Compares three steps with the CPU's in float64: losses, gradients, weights and the queue."""
    model, batches = MODELS[method](), [batch_for(method) for _ in range(3)]
    reference = record_steps(model, batches, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(record_steps(model, batches, CUDA, dtype), reference, **TOLERANCES[dtype])
