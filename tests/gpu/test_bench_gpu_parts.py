"""The parts of make gpu on a machine without a GPU: their baseline, counts and sizes."""

import copy
import sys
import traceback
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import reference_step, syncs
from benchmarks.gpu.agreement import max_relative_error
from benchmarks.gpu.plan import full_plan
from benchmarks.gpu.suite import stream_lines
from tests.tiny import tiny_batch, tiny_model


@pytest.mark.parametrize("options", [{}, {"targeted": True, "sep_t": True, "tw": 0.2}], ids=["KCL", "TSC"])
def test_baseline_of_authors_code_computes_the_same_step(options):
    """In four steps the queue wraps around. All keys of a class are sampled, so both sample the same."""
    ours = tiny_model(num_positive=12, **options)
    theirs = copy.deepcopy(ours)
    for _ in range(4):
        batch = tiny_batch()
        out, loss = ours(*batch), reference_step.forward(theirs, *batch)
        gradient = torch.autograd.grad(loss, list(theirs.encoder_q.parameters()))
        expected = torch.autograd.grad(out.loss, list(ours.encoder_q.parameters()))
        torch.testing.assert_close(loss, out.loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(theirs.state_dict(), ours.state_dict(), rtol=1e-10, atol=1e-10)
        assert ours.assignment is theirs.assignment is None or torch.equal(ours.assignment, theirs.assignment)


def test_baseline_samples_positives_of_each_anchor():
    same = torch.rand(50, 200) < torch.linspace(0, 0.2, 50)[:, None]
    sampled = reference_step.sample_positives(same, 6)
    assert torch.equal(sampled.sum(1), same.sum(1).clamp(max=6)) and not (sampled & ~same).any()
    assert not torch.equal(sampled, reference_step.sample_positives(same, 6))


def test_waits_are_counted_by_source_line(monkeypatch):
    """Warnings imitate the debug mode in a step. Those of the second block come from within the assignment."""
    modes, here = [], Path(__file__).relative_to(syncs.ROOT).as_posix()
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work() -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    line = work.__code__.co_firstlineno + 3
    assert syncs.count_syncs(work) == {f"{here}:{line}": 3} and modes == ["warn", "default"]
    frame = traceback.FrameSummary(str(syncs.ROOT / syncs.ASSIGNMENT), 7, "start")
    monkeypatch.setattr(traceback, "extract_stack", lambda: traceback.StackSummary([frame, frame, frame]))
    assert syncs.count_syncs(work) == {syncs.ASSIGNMENT: 3}


PROGRAM = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[1]).touch(), sys.exit()))
print("one", flush=True)
print("two", flush=True)
time.sleep(60)
"""


def test_command_is_read_line_by_line_and_ends_with_its_reader(tmp_path):
    lines = stream_lines([sys.executable, "-c", PROGRAM, str(tmp_path / "terminated")])
    assert [next(lines), next(lines)] == ["one", "two"]
    lines.close()
    assert (tmp_path / "terminated").exists()
    with pytest.raises(RuntimeError, match="3"):
        list(stream_lines([sys.executable, "-c", "raise SystemExit(3)"]))


def test_batch_size_depends_on_gpu_memory(monkeypatch):
    """The memory is 80, 24, 16 and 8 GiB: an H100 uses 256, a 4090 uses 128."""
    batches = []
    for gib in (80, 24, 16, 8):
        card = Namespace(total_memory=gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        batches.append(full_plan().size[-1])
    assert batches == [256, 128, 64, 32]


def test_farthest_returns_the_largest_difference():
    ours, theirs = [torch.tensor([3.0, 4.0]), torch.tensor([1.1])], [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    assert max_relative_error(ours, theirs) == pytest.approx(0.1)
