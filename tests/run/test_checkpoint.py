"""Checkpoints are whole, safe to read, interchangeable with the release's, and refused when they do not fit."""

import os
import pickle

import pytest
import torch

from tests.tiny import release_style, tiny_model
from utils.errors import InputError
from utils.run import checkpoint


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_release_style_checkpoint_loads_into_the_model(prefix):
    theirs, ours = tiny_model(tr=2), tiny_model(tr=2)
    checkpoint.load_into(ours, checkpoint.unpacked(release_style(theirs, prefix)), "file")
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_a_kcl_model_does_without_the_checkpoints_targets():
    theirs, ours = tiny_model(), tiny_model(targets=None)
    checkpoint.load_into(ours, checkpoint.unpacked(release_style(theirs)), "file")
    assert torch.equal(ours.queue, theirs.queue) and ours.optimal_target is None


def test_a_tsc_model_brings_its_targets_to_a_kcl_checkpoint():
    theirs, ours = tiny_model(targets=None), tiny_model()
    targets = ours.optimal_target.clone()
    checkpoint.load_into(ours, dict(theirs.state_dict()), "file")
    assert torch.equal(ours.queue, theirs.queue) and torch.equal(ours.optimal_target, targets)


def test_stored_keys_carry_the_releases_prefix():
    assert all(name.startswith("module.") for name in checkpoint.packed(tiny_model()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("queue"), "lacks queue and has nothing besides"),
        (lambda s: s.update(stranger=torch.zeros(1)), "lacks nothing and has stranger besides"),
        (lambda s: s.update(queue=torch.zeros(4, 6)), r"size mismatch for queue: .*\[4, 6\].*\[4, 12\]"),
        (lambda s: [s.pop(k) for k in list(s) if "encoder" in k], "encoder_q.fc.bias and 1 more"),
    ],
)
def test_keys_that_differ_are_named(change, message):
    model = tiny_model()
    weights = checkpoint.unpacked(release_style(model))
    change(weights)
    with pytest.raises(InputError, match=message):
        checkpoint.load_into(model, weights, "file")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder_q.fc.weight", lambda w: w.fill_(float("nan")), "has a value that is not finite"),
        (
            "class_centroid",
            lambda w: w.index_fill(0, torch.tensor([1]), float("inf")),
            "has a value that is not finite",
        ),
        ("queue", lambda w: w.to(torch.int8), r"is torch\.int8, expected real floating point numbers"),
        (
            "encoder_q.fc.bias",
            lambda w: w.to(torch.complex64),
            r"is torch\.complex64, expected real floating point numbers",
        ),
        ("queue_ptr", lambda w: w.float(), r"is torch\.float32, expected whole numbers"),
        ("queue_labels", lambda w: w.bool(), r"is torch\.bool, expected whole numbers"),
        ("queue", lambda w: w.to_sparse(), r"is torch\.sparse_coo, expected a dense tensor"),
        ("queue", lambda w: w.to("meta"), "is empty, expected a dense tensor"),
    ],
)
def test_numbers_that_are_no_weights_are_named(name, change, message):
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = before | {name: change(before[name].clone())}
    with pytest.raises(InputError, match=rf"checkpoint file: {name} {message}; it is damaged"):
        checkpoint.load_into(model, weights, "file")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_half_precision_weights_are_weights():
    model = tiny_model().float()
    checkpoint.load_into(
        model, {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, "f"
    )


def test_a_variance_below_0_is_named():
    weights = torch.nn.BatchNorm1d(3).state_dict() | {"running_var": torch.tensor([1.0, -1.0, 1.0])}
    with pytest.raises(InputError, match="running_var has a variance below 0"):
        checkpoint.load_into(torch.nn.BatchNorm1d(3), weights, "file")


@pytest.mark.parametrize("value", [torch.tensor([float("nan"), 0]), torch.zeros(2).to(torch.complex64)])
def test_an_optimiser_that_holds_no_numbers_is_named(value):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    state = optimizer.state_dict() | {"state": {0: {"momentum_buffer": value}}}
    with pytest.raises(InputError, match=r"its optimiser does not fit the model \(momentum_buffer (has a value|is)"):
        checkpoint.load_optimizer(optimizer, state, "file")


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    (tmp_path / "evil.pth.tar").write_bytes(pickle.dumps({"state_dict": Attack()}))
    torch.save({"state_dict": Attack()}, tmp_path / "evil2.pth.tar")
    for name in ("evil.pth.tar", "evil2.pth.tar"):
        with pytest.raises(InputError, match="not a checkpoint of tensors and plain data"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"abc", b".", b"PK\x03\x04 and half a zip"])
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InputError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "f")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    torch.save(release_style(tiny_model()), tmp_path / "f")
    whole = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "f")


def test_missing_file_and_missing_weights_are_said(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(tmp_path / "absent")
    torch.save({"epoch": 1}, tmp_path / "f")
    with pytest.raises(InputError, match="has no 'state_dict'"):
        checkpoint.load(tmp_path / "f")
    for weights in (5, {1: torch.zeros(1)}, {"queue": "no tensor"}):
        torch.save({"state_dict": weights}, tmp_path / "f")
        with pytest.raises(InputError, match="its state_dict is no table of tensors"):
            checkpoint.load(tmp_path / "f")


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    checkpoint.save_last(tmp_path, {"state_dict": {}, "epoch": 1})
    with pytest.raises(AttributeError, match="local object"):
        checkpoint.save_last(tmp_path, {"state_dict": {}, "bad": lambda: None})
    assert checkpoint.load(tmp_path / checkpoint.LAST)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.LAST]
