"""--optimizer and --clip-grad: hand-computed steps, fp16 loss scaling, resumed runs."""

import pytest
import torch
from torch import nn

import main_moco_supcon_imba as stage1
from tests.stopping import assert_resumes_bit_identical
from utils.lars import TRUST_COEFFICIENT, Lars
from utils.optimizers import OPTIMIZERS, OptimizerConfig
from utils.run import checkpoint
from utils.run.compute import ComputeConfig

TSC = ["--epochs", "2", "--targeted", "--sep_t"]  # one epoch of KCL and one of TSC, 5 steps each


def config(optimizer: str, clip: float | None = None, momentum: float = 0.9) -> OptimizerConfig:
    return OptimizerConfig(optimizer, lr=0.1, momentum=momentum, weight_decay=0.01, clip_grad=clip)


def test_lars_matches_hand_computation():
    """LARS scales a matrix's gradient plus decay to length TRUST_COEFFICIENT · |w|, then applies momentum."""
    matrix, vector, unused = (nn.Parameter(torch.tensor(values)) for values in ([[3.0, 4.0]], [3.0, 4.0], [1.0]))
    optimizer = Lars([matrix, vector, unused], lr=2.0, momentum=0.5, weight_decay=0.1)
    matrix.grad, vector.grad = torch.tensor([[0.0, 1.0]]), torch.tensor([0.0, 1.0])
    step = torch.tensor([[0.3, 1.4]])
    first = TRUST_COEFFICIENT * 5 * step / step.norm()
    optimizer.step()
    torch.testing.assert_close(matrix.data, torch.tensor([[3.0, 4.0]]) - 2 * first)
    torch.testing.assert_close(vector.data, torch.tensor([3.0, 2.0]))
    assert unused.item() == 1

    before, step = matrix.detach().clone(), matrix.grad + 0.1 * matrix.detach()
    optimizer.step()
    torch.testing.assert_close(
        matrix.data, before - 2 * (0.5 * first + TRUST_COEFFICIENT * before.norm() * step / step.norm())
    )
    torch.testing.assert_close(vector.data, torch.tensor([3.0, 2.0 - 2 * 1.5]))


def test_lars_updates_zero_matrix():
    """A zero matrix has no length to scale by, so LARS uses an SGD step."""
    matrix = nn.Parameter(torch.zeros(1, 2))
    matrix.grad = torch.ones(1, 2)
    Lars([matrix], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(matrix.data, torch.full((1, 2), -0.1))


def test_adamw_matches_torch():
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizers = (
        config("adamw").build([ours]),
        torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01),
    )
    for gradient in ([1.0, 2.0], [-3.0, 1.0]):
        ours.grad, theirs.grad = torch.tensor(gradient), torch.tensor(gradient)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_clip_grad_limits_the_total_norm(amp):
    """The gradient (3, 4) of two weights is clipped to norm 1. With fp16, clipping comes after unscaling."""
    compute = ComputeConfig(torch.device("cpu"), amp=amp)
    for clip, expected in ((1.0, (0.6, 0.8)), (9.0, (3.0, 4.0)), (None, (3.0, 4.0))):
        weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = config("sgd", clip, momentum=0.0).build(iter(weights))
        compute.step((3 * weights[0] + 4 * weights[1]).sum(), optimizer)
        assert [weight.item() for weight in weights] == pytest.approx(
            [-0.1 * gradient for gradient in expected], rel=1e-4
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_run_is_bit_identical(optimizer, flags, tmp_path, monkeypatch):
    words = [*flags, *TSC, "--optimizer", optimizer, "--clip-grad", "1", "--image-size", "4"]
    assert_resumes_bit_identical(stage1.main, words, tmp_path, monkeypatch, (3, 5))


def test_resumed_optimizer_has_its_own_settings():
    """With --override, a resumed run uses its weight decay and momentum. The momentum buffers are the checkpoint's."""
    weight = nn.Parameter(torch.ones(3))
    old = torch.optim.SGD([weight], 0.1, momentum=0.9, weight_decay=0.5)
    weight.grad = torch.ones(3)
    old.step()
    new = torch.optim.SGD([weight], 0.2, momentum=0.8, weight_decay=0.0)
    checkpoint.load_optimizer(new, old.state_dict(), "old.pth.tar")
    (group,) = new.param_groups
    assert (group["weight_decay"], group["momentum"]) == (0.0, 0.8)
    assert torch.equal(new.state[weight]["momentum_buffer"], old.state[weight]["momentum_buffer"])
