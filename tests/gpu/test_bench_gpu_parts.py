"""The parts of make gpu on a machine without one: its baseline, its counts and its sizes."""

import copy
import sys
import traceback
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import release_way, syncs
from benchmarks.gpu.agreement import farthest
from benchmarks.gpu.plan import full
from benchmarks.gpu.suite import lines_of
from tests.tiny import tiny_batch, tiny_model


@pytest.mark.parametrize("options", [{}, {"targeted": True, "sep_t": True, "tw": 0.2}], ids=["KCL", "TSC"])
def test_the_releases_way_computes_the_same_step(options):
    """Four steps through a wrap-around of the queue; all of a class are drawn, so both draw the same."""
    ours = tiny_model(num_positive=12, **options)
    theirs = copy.deepcopy(ours)
    for _ in range(4):
        batch = tiny_batch()
        out, loss = ours(*batch), release_way.forward(theirs, *batch)
        gradient = torch.autograd.grad(loss, list(theirs.encoder_q.parameters()))
        expected = torch.autograd.grad(out.loss, list(ours.encoder_q.parameters()))
        torch.testing.assert_close(loss, out.loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(theirs.state_dict(), ours.state_dict(), rtol=1e-10, atol=1e-10)
        assert ours.assignment is theirs.assignment is None or torch.equal(ours.assignment, theirs.assignment)


def test_the_releases_way_draws_that_many_of_each_anchors_own():
    same = torch.rand(50, 200) < torch.linspace(0, 0.2, 50)[:, None]
    drawn = release_way.draw(same, 6)
    assert torch.equal(drawn.sum(1), same.sum(1).clamp(max=6)) and not (drawn & ~same).any()
    assert not torch.equal(drawn, release_way.draw(same, 6))


def test_waits_are_counted_where_they_come_from(monkeypatch):
    """What the debug mode does to a step, acted by warnings; one comes from within the assignment."""
    modes, here = [], Path(__file__).relative_to(syncs.ROOT).as_posix()
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work() -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    line = work.__code__.co_firstlineno + 3
    assert syncs.waits(work) == {f"{here}:{line}": 3} and modes == ["warn", "default"]
    frame = traceback.FrameSummary(str(syncs.ROOT / syncs.ASSIGNMENT), 7, "start")
    monkeypatch.setattr(traceback, "extract_stack", lambda: traceback.StackSummary([frame, frame, frame]))
    assert syncs.waits(work) == {syncs.ASSIGNMENT: 3}


TALK = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[1]).touch(), sys.exit()))
print("one", flush=True)
print("two", flush=True)
time.sleep(60)
"""


def test_a_command_is_shown_line_by_line_and_ends_with_its_reader(tmp_path):
    lines = lines_of([sys.executable, "-c", TALK, str(tmp_path / "terminated")])
    assert [next(lines), next(lines)] == ["one", "two"]
    lines.close()
    assert (tmp_path / "terminated").exists()
    with pytest.raises(RuntimeError, match="3"):
        list(lines_of([sys.executable, "-c", "raise SystemExit(3)"]))


def test_the_batch_is_what_the_memory_holds(monkeypatch):
    """80, 24, 16 and 8 GiB: an H100 takes 256, a 4090 takes 128."""
    batches = []
    for gib in (80, 24, 16, 8):
        card = Namespace(total_memory=gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        batches.append(full().size[-1])
    assert batches == [256, 128, 64, 32]


def test_the_farthest_tensor_is_the_one_that_counts():
    ours, theirs = [torch.tensor([3.0, 4.0]), torch.tensor([1.1])], [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    assert farthest(ours, theirs) == pytest.approx(0.1)
