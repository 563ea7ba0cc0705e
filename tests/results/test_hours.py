"""What of a plan fits a number of hours."""

import pytest

from examples.results import __main__ as results
from examples.results import budget
from examples.results.budget import Speed, estimate_hours, fit_to_hours, smaller_plans
from examples.results.plan_file import read_plan
from examples.results.trials import Cell
from tests.refusals import line_with, refusal
from tests.results.conftest import LENGTHS


def test_smaller_plans_lose_sweeps_then_seeds_then_lengths(plan, write_plan):
    sizes = [(len(smaller.sweeps), smaller.seeds, smaller.more_seeds) for smaller in smaller_plans(plan)]
    assert list(dict.fromkeys(sizes)) == [(1, 2, 2), (0, 2, 2)]
    several = read_plan(str(write_plan(*LENGTHS)))._replace(more_seeds=6).with_lengths({4: 5, 12: 4})
    sizes = [(smaller.lengths, smaller.more_seeds) for smaller in smaller_plans(several)]
    assert sizes[0] == ({4: 5, 12: 4}, 6) and sizes[1] == ({4: 5, 12: 4}, 4)
    assert [size for size, _ in sizes[3:]] == [{4: 4, 12: 4}, {4: 3, 12: 3}, {4: 5}, {4: 4}, {4: 3}, {4: 2}]
    three_lengths = several.with_lengths({4: 2, 8: 2, 12: 2})
    lengths = [[*smaller.lengths] for smaller in smaller_plans(three_lengths)]
    assert [*map(list, dict.fromkeys(map(tuple, lengths)))] == [[4, 8, 12], [4, 8], [4]]


def test_hours_count_training_and_the_constant_part_of_each_run(length_study):
    """At a view a second: 9 runs of 4 epochs and 6 of 12; each, and the pixels, also takes 100 s."""
    plan, speed = length_study.plan, Speed(jobs=2, view=1.0, run=100.0)
    kcl, pixels = (length_study.weight(Cell(100, plan.methods[key], length=4)) for key in ("kcl", "pixels"))
    seconds = 9 * kcl + 6 * 3 * kcl + pixels + 16 * 100
    assert estimate_hours(length_study, speed) == pytest.approx(seconds / 2 / 3600)


def test_added_seeds_and_shared_sweep_runs_count_once(study):
    """TSC and KCL may have 4 seeds; the sweep's first value is TSC's own run."""
    study.plan = study.plan._replace(more_seeds=4)
    counts = {f"{cell.imbalance:g} {cell.name}": count for cell, count in study.most_runs().items()}
    assert counts == {
        **{
            f"{rho} {key}": count
            for rho in (10, 100)
            for key, count in (("tsc", 4), ("kcl", 4), ("ce", 2), ("pixels", 1))
        },
        "100 tsc_tw_1": 2,
    }


def test_chosen_seeds_and_lengths_fit(length_study, monkeypatch, capsys):
    """Without training time, 16 runs take an hour each. 10 hours are enough for 4 epochs only."""
    monkeypatch.setattr(budget, "measure_speed", lambda study, jobs: Speed(jobs, 0.0, 3600.0))
    assert fit_to_hours(length_study, 16, jobs=1).plan == length_study.plan
    assert fit_to_hours(length_study, 10, jobs=1).plan.lengths == {4: 3}
    line_with(
        capsys.readouterr().out, "--hours 10", "3 of 3 seeds at 4 epochs, 0 of 2 seeds at 12 epochs", "10.0 hours"
    )
    assert fit_to_hours(length_study, 8, jobs=1).plan.lengths == {4: 2}
    assert fit_to_hours(length_study, 4, jobs=2).plan.lengths == {4: 2}
    refusal(lambda: fit_to_hours(length_study, 6, jobs=1), "--hours 6", 7.0, "2 of 3 seeds at 4 epochs")


def test_speed_is_measured_once(length_study, digits_root, monkeypatch):
    """The first call trains; the second one reads the file, unless the number of simultaneous runs changes.

    The warm-up of the plan is longer than the measured runs.
    """
    data = ("--dataset", "digits", "--image-size", "8", "--data-root", str(digits_root))
    contrast = (*length_study.plan.flags["contrast"], "--warmup-epochs", "10")
    flags = length_study.plan.flags | {"contrast": contrast}
    length_study.plan = length_study.plan._replace(data=data, flags=flags)
    speed = budget.measure_speed(length_study, 1)
    assert speed.jobs == 1 and 0 < speed.view < speed.run

    def refuse(trials, jobs):
        raise AssertionError(f"{len(trials)} runs")

    monkeypatch.setattr(budget, "run_all", refuse)
    assert budget.measure_speed(length_study, 1) == speed
    with pytest.raises(AssertionError, match="2 runs"):
        budget.measure_speed(length_study, 2)


def test_described_plan_needs_no_learning_rates(finished_study):
    """The runs have the rate 0.1. Until rates are selected, 0.3 is assumed, and no seeds are added."""
    finished_study.plan = finished_study.plan._replace(rates=("0.3", "0.1"), more_seeds=4)
    assert "more seeds" not in budget.describe_plan(finished_study)


def test_hours_of_a_plan_without_training_are_refused(length_study):
    length_study.plan = length_study.plan._replace(methods={"pixels": length_study.plan.methods["pixels"]})
    refusal(lambda: fit_to_hours(length_study, 1, jobs=1), "--hours", "Small")


@pytest.mark.parametrize("flag", ["--plan", "--page", "--block"])
def test_hours_of_a_command_that_runs_nothing_are_refused(flag, write_plan):
    refusal(lambda: results.main([str(write_plan()), flag, "--hours", "1"]), "--hours", flag)
