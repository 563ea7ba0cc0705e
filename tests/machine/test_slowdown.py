"""The note about a run that waits for cores or has become slow."""

import pytest

from utils.measure.progress import Progress
from utils.measure.slowdown import WINDOW_SECONDS, SlowdownHint


@pytest.fixture
def schedule(tmp_path):
    """Return a file as /proc/self/task/N/schedstat: running, waiting (nanoseconds), time slices."""
    file = tmp_path / "schedstat"
    file.write_text("0 0 0")
    return file


def take_steps(hint: SlowdownHint, seconds: float) -> None:
    """Take steps of this length until a reading is complete."""
    for _ in range(round(WINDOW_SECONDS / seconds)):
        hint.step(seconds)


def test_run_that_becomes_slow_is_reported_once(schedule, capsys):
    hint = SlowdownHint(schedule)
    take_steps(hint, 1.0)
    take_steps(hint, 1.5)
    assert capsys.readouterr().out == ""
    take_steps(hint, 3.0)
    take_steps(hint, 6.0)
    out = capsys.readouterr().out
    assert out.count("note: ") == 1 and "3 s" in out and "1 s" in out


def test_run_that_waits_for_cores_is_reported_at_its_first_reading(schedule, capsys):
    hint = SlowdownHint(schedule)
    schedule.write_text(f"0 {round(0.5e9 * WINDOW_SECONDS)} 0")
    take_steps(hint, 1.0)
    assert "50 %" in capsys.readouterr().out


def test_progress_passes_the_time_of_each_step_but_the_first(monkeypatch):
    progress, seconds = Progress(total=3, steps_done=0, print_freq=0), []
    monkeypatch.setattr(progress.slowdown, "step", seconds.append)
    for _ in progress.iterate(range(3), "e"):
        progress.step(None, 1)
    assert len(seconds) == 2 and all(0 <= value <= progress.seconds() for value in seconds)


def test_waiting_before_the_training_does_not_count(schedule, capsys):
    schedule.write_text(f"0 {10**12} 0")
    take_steps(SlowdownHint(schedule), 1.0)
    assert capsys.readouterr().out == ""
