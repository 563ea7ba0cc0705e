"""--online-probe: the probe learns, does not affect the encoder, and is resumed with the run."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import main_moco_supcon_imba as stage1
from tests.processes import free_port, join_group, spawn
from tests.refusals import exit_message, refusal
from tests.stopping import assert_resumes_bit_identical, log_of
from utils.measure.online_probe import LR, MOMENTUM, OnlineProbe
from utils.run import checkpoint

COUNTS = torch.tensor([6, 2, 1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(5, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.fc(self.body(x))


@pytest.mark.parametrize("adjusted", [False, True])
def test_step_is_sgd_on_standardised_features(adjusted):
    torch.manual_seed(0)
    encoder, x, y = Encoder(), torch.randn(9, 5), torch.arange(3).repeat_interleave(COUNTS)
    probe = OnlineProbe(encoder, COUNTS, adjusted)
    weight = torch.zeros(3, 4, requires_grad=True)
    encoder(x)
    probe.step(y)
    z = encoder.body(x).detach()
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() / 2
    logits = z @ weight.T
    # With these weights, every class has the same weight in PyTorch's weighted mean.
    options = {} if adjusted else {"weight": 1 / COUNTS}
    cross_entropy(logits + adjusted * (COUNTS / 9).log(), y, **options).backward()
    torch.testing.assert_close(probe.weight, -3.0 * weight.grad)
    assert not any(parameter.grad is not None for parameter in encoder.parameters())


def test_probe_learns_linearly_separable_classes():
    encoder, y = Encoder(), torch.arange(3).repeat(10)
    probe = OnlineProbe(encoder, COUNTS, False)
    encoder(3 * torch.randn(3, 5)[y] + 0.1 * torch.randn(30, 5))
    top1 = [float(probe.step(y)) for _ in range(30)]
    assert top1[0] < 50 and top1[-1] == 100


def test_probe_trains_on_both_views():
    encoder, y = Encoder(), torch.tensor([0, 1, 2])
    probe, doubled = (OnlineProbe(encoder, COUNTS, False) for _ in range(2))
    x = torch.randn(3, 5)
    encoder(torch.cat([x, x + 1]))
    probe.step(y)
    doubled.step(y.repeat(2))
    assert torch.equal(probe.weight, doubled.weight)


def run_rank(rank: int, port: int, folder: str) -> None:
    with join_group(rank, port):
        torch.manual_seed(0)
        encoder, x, y = Encoder(), torch.randn(8, 5), torch.arange(8) % 3
        probe = OnlineProbe(encoder, COUNTS, False)
        probe.standardise.eval()  # batch statistics would differ between ranks
        encoder(x[rank::2])
        probe.step(y[rank::2])
        torch.save(probe.weight.detach(), f"{folder}/{rank}.pt")


def test_two_ranks_match_one_process(tmp_path):
    spawn(run_rank, (free_port(), str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    encoder, x, y = Encoder(), torch.randn(8, 5), torch.arange(8) % 3
    probe = OnlineProbe(encoder, COUNTS, False)
    probe.standardise.eval()
    encoder(x)
    probe.step(y)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), probe.weight.detach())


SMALL = "-a lenet --image-size 12 --resume auto"
FOUR = f"{SMALL} --epochs 4"


@pytest.mark.parametrize(("contrast", "mode"), [("queue", "class-balanced"), ("batch", "adjusted")])
def test_online_probe_does_not_change_training(contrast, mode, flags, batch_flags, tmp_path):
    words = flags if contrast == "queue" else [*batch_flags, "--contrast", "batch"]
    words = [*words, *f"{SMALL} --lr 0.01 --epochs 12".split()]
    for name, more in (("with", ["--online-probe", mode]), ("without", [])):
        stage1.main([*words, *more, "--run-dir", str(tmp_path / name)])
    ours, plain = (
        checkpoint.read_checkpoint(folder / "last.pth.tar") for folder in (tmp_path / "with", tmp_path / "without")
    )
    assert all(torch.equal(ours["state_dict"][name], weight) for name, weight in plain["state_dict"].items())
    log = log_of(tmp_path / "with")
    assert [record["loss"] for record in log] == [record["loss"] for record in log_of(tmp_path / "without")]
    assert all(0 <= record["val"]["probe_top1"] <= 100 and record["probe"] >= 0 for record in log)
    assert max(record["probe"] for record in log) > 30
    assert max(record["val"]["probe_top1"] for record in log) > 30  # chance is 10
    assert set(log[-1]["val"]) == {"probe_top1", "probe_many", "probe_medium", "probe_few"}
    assert "online_probe" in ours and "online_probe" not in plain


def test_probe_is_evaluated_with_monitor_freq(flags, tmp_path):
    words = [*flags, *FOUR.split(), "--online-probe", "adjusted", "--monitor-freq", "2"]
    stage1.main([*words, "--run-dir", str(tmp_path)])
    seen = [record["val"]["probe_top1"] is not None for record in log_of(tmp_path)]
    assert seen == [False, True, False, True] and "knn_top1" in log_of(tmp_path)[0]["val"]


def test_resumed_run_continues_the_probe(flags, tmp_path, monkeypatch):
    words = [*flags, *FOUR.split(), "--online-probe", "class-balanced"]
    assert_resumes_bit_identical(stage1.main, words, tmp_path, monkeypatch, (3, 12))
    ours, theirs = (log_of(tmp_path / name) for name in ("run", "whole"))
    assert [(r["probe"], r["val"]) for r in ours] == [(r["probe"], r["val"]) for r in theirs]


def test_damaged_probe_state_is_refused():
    probe = OnlineProbe(Encoder(), COUNTS, False)
    for state in (1, {}, {"state_dict": {}}, OnlineProbe(Encoder(), COUNTS[:2], False).state()):
        refusal(lambda state=state: probe.restore(state, "x.pth"), "x.pth", "online_probe")


def make_stepped_probe() -> OnlineProbe:
    """Return a probe after one step."""
    encoder = Encoder()
    probe = OnlineProbe(encoder, COUNTS, False)
    encoder(torch.randn(9, 5))
    probe.step(torch.arange(3).repeat_interleave(COUNTS))
    return probe


@pytest.mark.parametrize(
    "momentum", [torch.zeros(2, 2), torch.tensor(0.0), torch.full((3, 4), float("nan")), "x", [1.0]], ids=repr
)
def test_damaged_momentum_is_refused(momentum):
    state = make_stepped_probe().state()
    OnlineProbe(Encoder(), COUNTS, False).restore(state, "x.pth")
    state["optimizer"]["state"][0]["momentum_buffer"] = momentum
    refusal(lambda: OnlineProbe(Encoder(), COUNTS, False).restore(state, "x.pth"), "x.pth", "online_probe")


def test_damaged_settings_and_weights_are_not_used():
    state, probe = make_stepped_probe().state(), OnlineProbe(Encoder(), COUNTS, False)
    state["optimizer"]["param_groups"] = [{"momentum": "x", "lr": [1], "params": [0, 1]}]
    probe.restore(state, "x")
    assert (probe.optimizer.param_groups[0]["momentum"], probe.optimizer.param_groups[0]["lr"]) == (MOMENTUM, LR)
    state["state_dict"]["bias"] = torch.full_like(probe.bias, float("inf"))
    refusal(lambda: probe.restore(state, "x.pth"), "x.pth", "online_probe")


def test_class_weights_average_to_1_over_images():
    probe = OnlineProbe(Encoder(), COUNTS, False)
    assert np.average(probe.class_weight, weights=COUNTS) == pytest.approx(1)


def test_modes_agree_only_for_balanced_batches(flags, tmp_path):
    """The two corrections agree for class-balanced batches, and differ for instance-balanced ones."""

    def trained_weight(mode: str, sampling: str) -> torch.Tensor:
        run_dir = tmp_path / f"{mode}_{sampling}"
        words = [*flags, *SMALL.split(), "--epochs", "2", "--online-probe", mode, "--sampling", sampling]
        stage1.main([*words, "--run-dir", str(run_dir)])
        return checkpoint.read_file(run_dir / "last.pth.tar")["online_probe"]["state_dict"]["weight"]

    for sampling, same in (("class-balanced", True), ("instance", False)):
        first, second = (trained_weight(mode, sampling) for mode in ("adjusted", "class-balanced"))
        assert torch.allclose(first, second, atol=1e-3) == same, float((first - second).abs().max())


def test_probe_with_accumulated_steps_is_refused(flags, capsys):
    words = [*flags, "--online-probe", "adjusted", "--accum-steps", "2"]
    exit_message(lambda: stage1.main(words), capsys, "--online-probe", "--accum-steps")
