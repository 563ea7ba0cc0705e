"""Checkpoints are whole, safe to read, interchangeable with the release's, and refused when they do not fit."""

import pytest
import torch

from tests.refusals import refusal
from tests.tiny import release_style, tiny_model
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
    ("change", "facts"),
    [
        (lambda s: s.pop("queue"), ["queue"]),
        (lambda s: s.update(stranger=torch.zeros(1)), ["stranger"]),
        (lambda s: s.update(queue=torch.zeros(4, 6)), ["queue", "[4, 6]", "[4, 12]"]),
        (lambda s: [s.pop(k) for k in list(s) if "encoder" in k], ["encoder_q.fc.bias", "1"]),
    ],
)
def test_keys_that_differ_are_named(change, facts):
    model = tiny_model()
    weights = checkpoint.unpacked(release_style(model))
    change(weights)
    refusal(lambda: checkpoint.load_into(model, weights, "file"), "file", *facts)


@pytest.mark.parametrize(
    ("name", "change", "fact"),
    [
        ("encoder_q.fc.weight", lambda w: w.fill_(float("nan")), ""),
        ("class_centroid", lambda w: w.index_fill(0, torch.tensor([1]), float("inf")), ""),
        ("queue", lambda w: w.to(torch.int8), "int8"),
        ("encoder_q.fc.bias", lambda w: w.to(torch.complex64), "complex64"),
        ("queue_ptr", lambda w: w.float(), "float32"),
        ("queue_labels", lambda w: w.bool(), "bool"),
        ("queue", lambda w: w.to_sparse(), "sparse_coo"),
        ("queue", lambda w: w.to("meta"), ""),
    ],
)
def test_numbers_that_are_no_weights_are_named(name, change, fact):
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = before | {name: change(before[name].clone())}
    refusal(lambda: checkpoint.load_into(model, weights, "file"), "file", name, fact)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_half_precision_weights_are_weights():
    model = tiny_model().float()
    checkpoint.load_into(
        model, {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, "f"
    )


def test_a_variance_below_0_is_named():
    weights = torch.nn.BatchNorm1d(3).state_dict() | {"running_var": torch.tensor([1.0, -1.0, 1.0])}
    refusal(lambda: checkpoint.load_into(torch.nn.BatchNorm1d(3), weights, "file"), "file", "running_var")


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    checkpoint.save_last(tmp_path, {"state_dict": {}, "epoch": 1})
    with pytest.raises(AttributeError, match="<lambda>"):
        checkpoint.save_last(tmp_path, {"state_dict": {}, "bad": lambda: None})
    assert checkpoint.load(tmp_path / checkpoint.LAST)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.LAST]
