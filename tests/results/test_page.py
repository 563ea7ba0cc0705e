"""The page of a study by hand, from run folders that are written, not trained."""

import csv
import re

import numpy as np
import pytest
from matplotlib.image import imread

from examples.results import __main__ as results
from examples.results import page, reading, tables
from examples.results.plan_file import read_plan
from tests import ROOT
from tests.refusals import assert_names, line_with, refusal


@pytest.fixture
def found(whole):
    return whole.results()


def rows_of(text: str) -> list[str]:
    return [line.strip("| ") for line in text.splitlines()[2:]]


NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?")


def numbers(text: str) -> list[float]:
    return [float(found.replace("−", "-")) for found in NUMBER.findall(text)]


def test_the_summary(found):
    at_each = "{0} ({1}) | {0} ({1})"
    assert rows_of(tables.summary(found)) == [
        "pixels | 60.00 (50.0) | 60.00 (50.0) | – | –",
        f"KCL | {at_each.format('81.00 ± 1.41', '71.0')} | 1.00 | 1.0",
        f"TSC | {at_each.format('83.50 ± 0.71', '73.5')} | 1.20 | 1.0",
        f"CE | {at_each.format('70.50 ± 0.71', '60.5')} | 1.00 | 2.0",
    ]


def test_paired_differences_by_hand(found):
    """TSC − KCL: 3 and 2, deviation 0.71; t with 1 degree is 12.71 at 97.5 %, so ± 12.71 · 0.71 / √2 = 6.35."""
    same, none = "+0.00 [+0.00, +0.00]", "–"
    of = "{0} | {1:g} | 2 | {2} | {3} | {4} | {4}"
    assert rows_of(tables.differences(found)) == [
        of.format(name, rho, same, none, interval)
        for name, interval in (("TSC − KCL", "+2.50 [-3.85, +8.85]"), ("KCL − CE", "+10.50 [+4.15, +16.85]"))
        for rho in (10, 100)
    ]


def test_the_verdict_is_by_validation(found):
    hard, easy, pair = tables.verdict(found)
    difference = np.array([13.0, 13.0])
    for text, rho in ((hard, 100), (easy, 10)):
        assert_names(text, "TSC", "83.5 %", "CE", "70.5 %", tables.outcome(difference), tables.in_points(difference))
        assert rho in numbers(text)
    assert_names(pair, "TSC", "KCL")
    assert pair.count(tables.in_points(np.array([3.0, 2.0]))) == 2  # at two imbalances
    for run in found.groups[100, "tsc"]:  # now KCL is better on validation, whatever test says
        run.heads["selected"]["val_balanced"] = 0
    best = tables.verdict(found)[0]
    assert_names(best, "KCL", "81.0 %")
    assert "TSC" not in best


@pytest.mark.parametrize(
    ("values", "mean_and_ends", "like"),
    [
        ([2.0, 2.1, 1.9], [2.00, 1.75, 2.25], 1),
        ([-2.0, -2.1, -1.9], [-2.00, -2.25, -1.75], -1),
        ([1.0, -1.0, 0.0], [0.00, -2.48, 2.48], 0),
        ([0.004, 0.004, 0.004], [0, 0, 0], 1),
        ([0.0, 0.0, 0.0], [0, 0, 0], 0),
    ],
)
def test_the_outcome_of_a_difference_is_by_its_interval(values, mean_and_ends, like):
    """Whether the interval is above, below or around 0; by its ends, not by how they are rounded."""
    mean, _, low, high = numbers(tables.in_points(np.array(values)))
    assert [mean, low, high] == pytest.approx(mean_and_ends, abs=0.0501)
    outcomes = {sign: tables.outcome(np.array([5.0, 5.1, 4.9]) * sign) for sign in (1, -1)}
    outcomes[0] = tables.outcome(np.array([5.0, -5.0]))
    assert len({*outcomes.values()}) == 3 and tables.outcome(np.array(values)) == outcomes[like]


def test_the_block_is_rewritten_from_the_table_when_the_runs_are_gone(found, tmp_path, write_plan):
    docs = tmp_path / "docs"
    page.write(found, docs, "make results")
    text = (docs / "results_small.md").read_text()
    (docs / "results_small.md").write_text(
        text.replace(page.block(found), page.block(found)[:-200] + page.block(found)[-60:])
    )
    results.main([str(write_plan()), "--block", "--output", str(docs)])
    assert (docs / "results_small.md").read_text() == text


def test_a_table_of_another_study_is_refused(study, tmp_path):
    (tmp_path / "results_small.csv").write_text("imbalance,method,sweep\n100,unknown,\n")
    refusal(lambda: page.write_block(study.plan, tmp_path), tmp_path / "results_small.csv", "unknown")
    refusal(lambda: page.write_block(study.plan, tmp_path / "none"), tmp_path / "none" / "results_small.csv")


def test_every_head_has_a_row_and_a_head_that_a_method_has_not_a_dash(found):
    rows = rows_of(tables.head_table(found, 100))
    assert rows[0].startswith("logistic, post | 60.00 (50.0) | 81.00 ± 1.41 (71.0) | 83.50")
    assert rows[1].startswith("ncm | 55.00 (45.0) | 76.00 ± 1.41")
    assert rows[2] == "own, post | – | – | – | 69.50 ± 0.71 (59.5)"
    assert rows[3] == rows[0].replace("logistic, post", "chosen by validation")


def test_how_far_targets_were_reached(found):
    """Class 0 is on its target; 1 and 2 are each on the other's. Few is class 2 alone."""
    reached = found.groups[100, "tsc"][0].reached
    assert reached.cosines.tolist() == [1, 0, 0] and reached.nearest.tolist() == [100, 0, 0]
    rows = rows_of(tables.feature_table(found))
    assert rows[0].endswith("| – | – | –") and rows[1].endswith("| 0.33 ± 0.00 | 0.00 ± 0.00 | 33.33 ± 0.00")


def test_a_sweep_has_the_methods_own_run(found):
    assert rows_of(tables.sweep_table(found, found.plan.sweeps[0])) == [
        "TSC | little | 2 | 83.50 ± 0.71 (73.5) | 1.20 | 33.3",
        "TSC | much | 2 | 83.50 ± 0.71 (73.5) | 1.20 | 33.3",
    ]


def test_the_page_is_whole(found, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = (mark.format("results_small") for mark in (page.BEGIN, page.END))
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    written = page.write(found, tmp_path / "docs", "make results")
    assert all(path.exists() for path in written) and readme in written
    text = (tmp_path / "docs" / "results_small.md").read_text()
    line_with(text, "`make results`", 14, 0.3, page.how_many_seeds(found), "box, cpu, PyTorch 2", "c0ffee")
    assert (tmp_path / "docs" / "results_small.csv").read_bytes().decode() == page.trials(found)
    assert text.count("<details>") == text.count("</details>") == 6 and text.count("![") == 5
    first_folded = text.index("<details>")
    assert all(text.index(picture) < first_folded for picture in ("_accuracy.png", "_sweeps_1.png"))
    assert readme.read_text() == f"before\n{page.block(found)}\nafter\n" and page.block(found) in text
    for picture in (path for path in written if path.suffix == ".png"):
        pixels = imread(picture)
        assert pixels.shape[1] > 350 and np.std(pixels) > 0.03, picture


def test_a_row_of_the_csv_is_a_trial(found):
    rows = list(csv.DictReader(page.trials(found).splitlines()))
    assert len(rows) == 2 * (3 * 2 + 1) + 2 * 2
    tsc = next(row for row in rows if row["method"] == "tsc" and row["imbalance"] == "100.0" and row["seed"] == "1")
    assert (tsc["all"], tsc["few"], tsc["medium"], tsc["val"], tsc["head"]) == ("84", "74", "", "85", "logistic, post")
    assert {row["sweep"] for row in rows} == {"", "tw 0.2", "tw 1"}


def test_a_page_of_nothing_is_refused(study, tmp_path):
    refusal(lambda: page.write(study.results(), tmp_path / "docs", "make results"), "Small")
    assert not (tmp_path / "docs").exists()


def test_pairs_with_pixels_have_one_run_for_all_seeds(found):
    assert reading.pair(found, 10, ("kcl", "pixels"))[:, -1].tolist() == [20, 22]


def without_few(found) -> None:
    """As where the rarest class has twenty images."""
    for runs in found.groups.values():
        for run in runs:
            for entry in (run.heads["selected"], *run.heads["heads"].values()):
                entry["few"] = None


def test_without_a_few_shot_class_the_page_does_not_mention_them(found, tmp_path):
    without_few(found)
    assert rows_of(tables.summary(found))[1].startswith("KCL | 81.00 ± 1.41 | 81.00 ± 1.41 |")
    block = page.block(found)
    assert "nan" not in block and "few" not in block and tables.in_points(np.array([3.0, 2.0])) in block
    page.write(found, tmp_path, "make results")


def test_the_summary_is_of_the_seeds_that_all_methods_have(found, tmp_path):
    """A pair has all of its own."""
    for rho in (10, 100):
        del found.groups[rho, "ce"][1]
    kcl, ce = (rows_of(tables.summary(found))[row] for row in (1, 3))
    assert kcl.startswith("KCL | 80.00 (70.0) |") and ce.startswith("CE | 70.00 (60.0) |")
    assert "| TSC − KCL | 10 | 2 |" in tables.differences(found)
    refusal(lambda: page.write(found, tmp_path, "make results"), "Small")


def test_the_uniformity_is_that_of_the_largest_imbalance(found):
    found.groups[10, "kcl"][0].stage.epochs[-1]["val"]["uniformity"] = 9.0
    assert "| 1.00 | 1.0 |" in tables.summary(found).splitlines()[3]
    found.groups[100, "kcl"][0].stage.epochs[-1]["val"]["uniformity"] = 9.0
    assert "| 5.00 | 1.0 |" in tables.summary(found).splitlines()[3]


def test_the_head_in_the_csv_is_the_one_that_validation_chose(found):
    """Where two have the same accuracy on test."""
    heads = found.groups[10, "kcl"][0].heads["heads"]
    heads |= {"logistic, post": {**heads["logistic, post"], "val_balanced": 1}}
    heads |= {"tau": {**heads["logistic, post"], "val_balanced": 99}}
    row = next(row for row in csv.reader(page.trials(found).splitlines()) if row[:2] == ["10.0", "kcl"])
    assert row[4] == "tau"


def test_the_time_of_a_run_is_of_all_its_epochs(found):
    found.groups[10, "ce"][0].stage.epochs[0]["seconds"] = 90
    assert found.groups[10, "ce"][0].seconds == 90 + 3 * 30


def test_the_page_says_the_command_that_makes_it_again(whole, write_plan, tmp_path):
    """Not where it was put, nor that it was made of what had ended."""
    flags = f"--page --folder {str(whole.folder).replace(' ', '?')} --output {tmp_path}/docs"
    words = [str(tmp_path / "small.ini"), *(word.replace("?", " ") for word in flags.split())]
    results.main(words)
    text = (tmp_path / "docs" / "results_small.md").read_text()
    line_with(text, f"`python -m examples.results {tmp_path}/small.ini`", 14)


def test_how_many_seeds_there_are(found):
    assert numbers(page.how_many_seeds(found)) == [2]
    for key in ("kcl", "tsc"):
        found.groups[10, key].append(found.groups[10, key][-1])
    assert {*numbers(page.how_many_seeds(found))} == {2, 3, 10, 95}
    for key in ("kcl", "tsc", "ce"):
        del found.groups[100, key][1]
    assert numbers(page.how_many_seeds(found))[:4] == [2, 10, 1, 100]


def test_a_sweep_is_shown_when_one_of_its_own_runs_has_ended(found):
    """A value that is the method's own is there with the method."""
    assert page.swept_of(found) == list(found.plan.sweeps)
    found.sweeps["tw"]["tsc", "1"] = []
    assert page.swept_of(found) == []


def test_the_table_of_seeds_has_the_learning_rate_of_the_runs(found):
    for run in found.groups[10, "kcl"]:
        run.stage.args["lr"] = 0.025
    pixels, kcl = rows_of(tables.seed_table(found))[:2]
    assert pixels == "10 | pixels | – | 60.00" and kcl == "10 | KCL | 0.025 | 80.00 82.00"


def test_readme_says_what_the_page_says():
    """The table and the sentences, to the letter."""
    marks = [mark.format("results") for mark in (page.BEGIN, page.END)]
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")]
    readme, shown = (text.split(marks[0])[1].split(marks[1])[0] for text in texts)
    assert readme == shown
    assert_names(readme, *(f"| {method.title} |" for method in read_plan("fashion").methods.values()))
