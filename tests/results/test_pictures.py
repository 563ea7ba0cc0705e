"""The figures of a study, from run folders that are written instead of trained."""

import pytest

from examples.results import figures, page
from examples.results.plan import PLANS_DIR
from examples.results.plan_file import read_plan
from examples.results.reading import Results


def points_of(figure) -> list[tuple[float, float]]:
    """Return all points of all panels."""
    points = [tuple(map(float, at)) for axes in figure.axes for dots in axes.collections for at in dots.get_offsets()]
    return points + [tuple(map(float, at)) for axes in figure.axes for line in axes.lines for at in line.get_xydata()]


def test_figures_show_the_numbers_of_the_tables(study_results):
    """Overall and few-shot accuracy, the ends of an interval, classes by size, the seeds of a sweep."""
    heights = {round(y, 2) for _, y in points_of(figures.accuracy(study_results))}
    assert {83.0, 84.0, 83.5, 73.0, 74.0, 73.5} <= heights and 99.0 not in heights  # 99: many-shot
    positions = {round(x, 2) for x, _ in points_of(figures.differences(study_results))}
    assert {-3.85, 2.5, 8.85} <= positions
    accuracies = figures.mechanism(study_results, 100).axes[-1].lines[1].get_xydata()[:, 1].tolist()
    assert accuracies == [99.0, 83.5, 73.5]  # TSC, largest class first
    points = points_of(figures.sweeps(study_results, list(study_results.plan.sweeps)))
    assert {(0.0, 83.0), (1.0, 84.0), (0.0, 73.5), (1.0, 1.2)} <= {(x, round(y, 2)) for x, y in points}


def test_mechanism_figure_needs_targets(study_results, tmp_path):
    for runs in study_results.groups.values():
        runs[:] = [run._replace(target_match=None) for run in runs]
    page.write(study_results, tmp_path, "make results")
    names = {path.stem.removeprefix("results_small_") for path in tmp_path.glob("*.png")}
    assert names == {"accuracy", "differences", "heads", "sweeps_1"}
    assert "mechanism" not in (tmp_path / "results_small.md").read_text()


@pytest.mark.parametrize("name", sorted(file.stem for file in PLANS_DIR.glob("*.ini")))
def test_each_method_of_a_plan_has_its_own_colour(name):
    plan = read_plan(name)
    colours = [figures.method_colour(Results(plan, {}, {}, {}), key) for key in plan.methods]
    assert len({*colours}) == len(colours)
