"""Checkpoints are complete, safe to load, compatible with the authors' code, and refused if they do not fit."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from moco.in_batch import InBatchKCL
from tests.refusals import refusal
from tests.tiny import TinyEncoder, release_style, tiny_model
from utils.run import checkpoint


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_release_checkpoint_loads(prefix):
    theirs, ours = tiny_model(tr=2), tiny_model(tr=2)
    checkpoint.load_weights(ours, checkpoint.strip_prefix(release_style(theirs, prefix)["state_dict"]), "file")
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_kcl_model_ignores_targets_of_checkpoint():
    theirs, ours = tiny_model(), tiny_model(targets=None)
    checkpoint.load_weights(ours, checkpoint.strip_prefix(release_style(theirs)["state_dict"]), "file")
    assert torch.equal(ours.queue, theirs.queue) and ours.optimal_target is None


def test_tsc_model_keeps_own_targets_for_kcl_checkpoint():
    theirs, ours = tiny_model(targets=None), tiny_model()
    targets = ours.optimal_target.clone()
    checkpoint.load_weights(ours, dict(theirs.state_dict()), "file")
    assert torch.equal(ours.queue, theirs.queue) and torch.equal(ours.optimal_target, targets)


def test_stored_keys_have_the_release_prefix():
    assert all(name.startswith("module.") for name in checkpoint.add_prefix(tiny_model().state_dict()))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda s: s.pop("queue"), ["queue"]),
        (lambda s: s.update(stranger=torch.zeros(1)), ["stranger"]),
        (lambda s: s.update(queue=torch.zeros(4, 6)), ["queue", "[4, 6]", "[4, 12]"]),
        (lambda s: [s.pop(k) for k in list(s) if "encoder" in k], ["encoder_q.fc.bias", "1"]),
    ],
)
def test_mismatched_keys_are_named(change, facts):
    model = tiny_model()
    weights = checkpoint.strip_prefix(release_style(model)["state_dict"])
    change(weights)
    refusal(lambda: checkpoint.load_weights(model, weights, "file"), "file", *facts)


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
def test_invalid_weights_are_refused_and_not_loaded(name, change, fact):
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = before | {name: change(before[name].clone())}
    refusal(lambda: checkpoint.load_weights(model, weights, "file"), "file", name, fact)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_half_precision_weights_are_accepted():
    model = tiny_model().float()
    checkpoint.load_weights(
        model, {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, "f"
    )


def test_negative_running_variance_is_refused():
    weights = torch.nn.BatchNorm1d(3).state_dict() | {"running_var": torch.tensor([1.0, -1.0, 1.0])}
    refusal(lambda: checkpoint.load_weights(torch.nn.BatchNorm1d(3), weights, "file"), "file", "running_var")


def test_failed_write_keeps_old_file_without_draft(tmp_path):
    checkpoint.save_last(tmp_path, {"state_dict": {}, "epoch": 1})
    with pytest.raises(AttributeError, match="<lambda>"):
        checkpoint.save_last(tmp_path, {"state_dict": {}, "bad": lambda: None})
    assert checkpoint.read_checkpoint(tmp_path / checkpoint.LAST)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.LAST]


@pytest.mark.parametrize(
    ("lost", "advice"),
    [("encoder_q.fc.", "--mlp"), ("optimal_target", "--targeted"), ("encoder_k.", "-a"), ("queue_ptr", "-a")],
)
def test_only_flags_that_can_be_the_reason_are_named(lost, advice):
    """A model that ends in two layers needs --mlp, one with targets --targeted, and another network -a."""
    weights = {"kept": torch.zeros(1), f"{lost}weight": torch.zeros(1)}
    model = torch.nn.Module()
    model.register_buffer("kept", torch.zeros(1))
    message = refusal(lambda: checkpoint.load_weights(model, weights, "file"), lost)
    assert [flag for flag in ("--mlp", "--targeted", "-a") if message.endswith(f"check {flag}")] == [advice]


def test_arguments_and_numpy_numbers_are_ignored(tmp_path):
    """They are not loaded as objects. The list of classes that torch accepts is as before."""
    before = {*torch.serialization.get_safe_globals()}
    state = {"args": Namespace(path=tmp_path, rate=np.float32(0.1)), "best": np.float64(3), "state_dict": {}}
    torch.save(state | {"list": [Namespace(), np.zeros(2)]}, tmp_path / "f.pth")
    loaded = checkpoint.read_file(tmp_path / "f.pth")
    assert loaded.keys() == {"state_dict", "list"} and not any(
        isinstance(v, Namespace | np.ndarray) for v in loaded["list"]
    )
    assert {*torch.serialization.get_safe_globals()} == before


def test_checkpoint_of_other_contrast_names_the_flag():
    in_batch = InBatchKCL(TinyEncoder, dim=4, num_classes=3)
    message = refusal(lambda: checkpoint.load_weights(in_batch, dict(tiny_model().state_dict()), "file"), "--contrast")
    assert "--mlp" not in message
