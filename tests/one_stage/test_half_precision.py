"""--amp with a classifier in stage 1: only the encoders run in half precision."""

import pytest
import torch

from tests.one_stage.built import MODELS, batch_for


@pytest.mark.parametrize("method", MODELS)
def test_loss_is_close_to_that_in_float32(method):
    half, full = (MODELS[method]().float() for _ in range(2))
    batch = [tensor.float() if tensor.is_floating_point() else tensor for tensor in batch_for(method)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = half(*batch)
    reference = full(*batch)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, reference.loss, rtol=2e-2, atol=0)
    assert not torch.equal(out.q, reference.q)  # the encoder did run in half precision
    out.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in half.parameters() if weight.grad is not None)


@pytest.mark.parametrize("method", MODELS)
def test_layers_beside_the_encoder_compute_in_float32(method):
    model, dtypes = MODELS[method]().float(), []
    beside = [module for name, module in model.named_children() if not name.startswith("encoder")]
    assert beside
    for module in beside:
        module.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    batch = [tensor.float() if tensor.is_floating_point() else tensor for tensor in batch_for(method)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(*batch)
    assert dtypes == [torch.float32] * len(beside)
