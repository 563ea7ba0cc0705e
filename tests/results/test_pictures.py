"""The pictures of a study, from run folders that are written, not trained."""

import pytest

from examples.results import figures, page


@pytest.fixture
def found(whole):
    return whole.results()


def drawn(figure) -> list[tuple[float, float]]:
    """All points of all panels."""
    points = [tuple(map(float, at)) for axes in figure.axes for dots in axes.collections for at in dots.get_offsets()]
    return points + [tuple(map(float, at)) for axes in figure.axes for line in axes.lines for at in line.get_xydata()]


def test_pictures_show_the_numbers_of_the_tables(found):
    """Accuracy of all and few; the ends of an interval; classes by size; a sweep's seeds."""
    heights = {round(y, 2) for _, y in drawn(figures.accuracy(found))}
    assert {83.0, 84.0, 83.5, 73.0, 74.0, 73.5} <= heights and 99.0 not in heights  # 99: of many
    across = {round(x, 2) for x, _ in drawn(figures.differences(found))}
    assert {-3.85, 2.5, 8.85} <= across
    last = figures.mechanism(found, 100).axes[-1].lines[1].get_xydata()[:, 1].tolist()
    assert last == [99.0, 83.5, 73.5]  # TSC, largest class first
    swept = drawn(figures.sweeps(found, list(found.plan.sweeps)))
    assert {(0.0, 83.0), (1.0, 84.0), (0.0, 73.5), (1.0, 1.2)} <= {(x, round(y, 2)) for x, y in swept}


def test_without_targets_there_is_no_picture_of_them(found, tmp_path):
    for runs in found.groups.values():
        runs[:] = [run._replace(reached=None) for run in runs]
    page.write(found, tmp_path, "make results")
    names = {path.stem.removeprefix("results_small_") for path in tmp_path.glob("*.png")}
    assert names == {"accuracy", "differences", "heads", "sweeps_1"}
    assert "mechanism" not in (tmp_path / "results_small.md").read_text()


def test_every_trained_method_has_a_colour_of_its_own(found):
    colours = [figures.colour_of(found, key) for key in found.plan.methods]
    assert len(set(colours)) == len(colours)
