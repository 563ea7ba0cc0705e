"""The page of a study, with hand-computed numbers, from run folders that are written instead of trained."""

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


def rows_of(text: str) -> list[str]:
    return [line.strip("| ") for line in text.splitlines()[2:]]


NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?")


def numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in NUMBER.findall(text)]


def test_summary_table(study_results):
    cell_format = "{0} ({1}) | {0} ({1})"
    assert rows_of(tables.summary(study_results)) == [
        "pixels | 60.00 (50.0) | 60.00 (50.0) | – | –",
        f"KCL | {cell_format.format('81.00 ± 1.41', '71.0')} | 1.00 | 1.0",
        f"TSC | {cell_format.format('83.50 ± 0.71', '73.5')} | 1.20 | 1.0",
        f"CE | {cell_format.format('70.50 ± 0.71', '60.5')} | 1.00 | 2.0",
    ]


def test_paired_differences_by_hand(study_results):
    """TSC − KCL is 3 and 2, std 0.71. The 97.5 % quantile of t with 1 df is 12.71: ± 12.71 · 0.71 / √2 = 6.35."""
    no_difference, dash = "+0.00 [+0.00, +0.00]", "–"
    row_format = "{0} | {1:g} | 2 | {2} | {3} | {4} | {4}"
    assert rows_of(tables.differences(study_results)) == [
        row_format.format(name, rho, no_difference, dash, interval)
        for name, interval in (("TSC − KCL", "+2.50 [-3.85, +8.85]"), ("KCL − CE", "+10.50 [+4.15, +16.85]"))
        for rho in (10, 100)
    ]


def test_sentences_name_the_best_methods_on_validation(study_results):
    """Imbalances with the same best methods share a sentence."""
    (both,) = tables.sentences(study_results)
    assert_names(both, "TSC is the best contrastive method", "CE is the best", tables.outcome(np.array([13.0, 13.0])))
    assert numbers(both) == [100, 10] * 2 and "KCL" not in both
    for run in study_results.groups[100, "tsc"]:  # now KCL is better on validation
        run.heads["selected"]["val_balanced"] = 0
    hard, easy = tables.sentences(study_results)
    assert "KCL" in hard and "TSC" not in hard and numbers(hard) == [100, 100]
    assert "TSC" in easy and "KCL" not in easy and numbers(easy) == [10, 10]


def test_difference_summary_has_the_best_and_the_contrastive_pairs(study_results):
    rows = rows_of(tables.difference_summary(study_results))
    assert rows == [
        "TSC − CE | **+13.0** (+13.0 to +13.0; 2 seeds) | **+13.0** (+13.0 to +13.0; 2 seeds)",
        "TSC − KCL | +2.5 (−3.9 to +8.9; 2 seeds) | +2.5 (−3.9 to +8.9; 2 seeds)",
    ]
    assert tables.format_difference(np.array([1.0])) == "–"


@pytest.mark.parametrize(
    ("values", "mean_and_ends", "expected_sign"),
    [
        ([2.0, 2.1, 1.9], [2.00, 1.75, 2.25], 1),
        ([-2.0, -2.1, -1.9], [-2.00, -2.25, -1.75], -1),
        ([1.0, -1.0, 0.0], [0.00, -2.48, 2.48], 0),
        ([0.004, 0.004, 0.004], [0, 0, 0], 1),
        ([0.0, 0.0, 0.0], [0, 0, 0], 0),
    ],
)
def test_outcome_depends_on_the_confidence_interval(values, mean_and_ends, expected_sign):
    """The outcome is whether the interval is above, below or around 0, before rounding."""
    text = tables.format_difference(np.array(values))
    mean, low, high, num_seeds = numbers(text)
    assert num_seeds == len(values) and text.startswith("**") == bool(expected_sign)
    assert [mean, low, high] == pytest.approx(mean_and_ends, abs=0.0501)
    outcomes = {sign: tables.outcome(np.array([5.0, 5.1, 4.9]) * sign) for sign in (1, -1)}
    outcomes[0] = tables.outcome(np.array([5.0, -5.0]))
    assert len({*outcomes.values()}) == 3 and tables.outcome(np.array(values)) == outcomes[expected_sign]


def test_block_is_rewritten_from_csv_without_runs(study_results, tmp_path, write_plan):
    docs = tmp_path / "docs"
    page.write(study_results, docs, "make results")
    text, block = (docs / "results_small.md").read_text(), page.block(study_results)
    (docs / "results_small.md").write_text(text.replace(block, block[:-200] + block[-60:]))
    results.main([str(write_plan()), "--block", "--output", str(docs)])
    assert (docs / "results_small.md").read_text() == text


def test_csv_of_other_study_is_refused(study, tmp_path):
    (tmp_path / "results_small.csv").write_text("imbalance,method,sweep\n100,unknown,\n")
    refusal(lambda: page.write_block(study.plan, tmp_path), tmp_path / "results_small.csv", "unknown")
    refusal(lambda: page.write_block(study.plan, tmp_path / "none"), tmp_path / "none" / "results_small.csv")


def test_head_table_has_a_row_per_head(study_results):
    rows = rows_of(tables.head_table(study_results, 100))
    assert rows[0].startswith("logistic, post | 60.00 (50.0) | 81.00 ± 1.41 (71.0) | 83.50")
    assert rows[1].startswith("ncm | 55.00 (45.0) | 76.00 ± 1.41")
    assert rows[2] == "own, post | – | – | – | 69.50 ± 0.71 (59.5)"
    assert rows[3] == rows[0].replace("logistic, post", "selected on validation")


def test_target_match_by_hand(study_results):
    """Class 0 is at its target. Classes 1 and 2 are at each other's target. Only class 2 is few-shot."""
    target_match = study_results.groups[100, "tsc"][0].target_match
    assert target_match.cosines.tolist() == [1, 0, 0] and target_match.nearest.tolist() == [100, 0, 0]
    rows = rows_of(tables.feature_table(study_results))
    assert rows[0].endswith("| – | – | –") and rows[1].endswith("| 0.33 ± 0.00 | 0.00 ± 0.00 | 33.33 ± 0.00")


def test_sweep_table_includes_the_default_run(study_results):
    assert rows_of(tables.sweep_table(study_results, study_results.plan.sweeps[0])) == [
        "TSC | little | 2 | 83.50 ± 0.71 (73.5) | 1.20 | 33.3",
        "TSC | much | 2 | 83.50 ± 0.71 (73.5) | 1.20 | 33.3",
    ]


def test_page_is_complete(study_results, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = (mark.format("results_small") for mark in (page.BEGIN, page.END))
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    written = page.write(study_results, tmp_path / "docs", "make results")
    assert all(path.exists() for path in written) and readme in written
    text = (tmp_path / "docs" / "results_small.md").read_text()
    line_with(text, "`make results`", 0.3, page.describe_seeds(study_results))
    assert page.IMAGES[False] in text and page.IMAGES[True] not in text
    line_with(text, 14, 0.3, "box, Fast CPU, PyTorch 2", "c0ffee")
    assert (tmp_path / "docs" / "results_small.csv").read_bytes().decode() == reading.csv_table(study_results)
    assert text.count("<details>") == text.count("</details>") == 6 and text.count("![") == 5
    first_folded = text.index("<details>")
    assert all(text.index(picture) < first_folded for picture in ("_accuracy.png", "_sweeps_1.png"))
    assert readme.read_text() == f"before\n{page.block(study_results)}\nafter\n" and page.block(study_results) in text
    for picture in (path for path in written if path.suffix == ".png"):
        pixels = imread(picture)
        assert pixels.shape[1] > 350 and np.std(pixels) > 0.03, picture


def test_csv_has_a_row_per_trial(study_results):
    rows = list(csv.DictReader(reading.csv_table(study_results).splitlines()))
    assert len(rows) == 2 * (3 * 2 + 1) + 2 * 2
    tsc = next(row for row in rows if row["method"] == "tsc" and row["imbalance"] == "100.0" and row["seed"] == "1")
    assert (tsc["all"], tsc["few"], tsc["medium"], tsc["val"], tsc["head"]) == ("84", "74", "", "85", "logistic, post")
    assert {row["sweep"] for row in rows} == {"", "tw 0.2", "tw 1"}


def test_page_without_results_is_refused(study, tmp_path):
    refusal(lambda: page.write(study.results(), tmp_path / "docs", "make results"), "Small")
    assert not (tmp_path / "docs").exists()


def test_pixels_baseline_has_one_run_for_all_seeds(study_results):
    assert reading.paired_differences(study_results, 10, ("kcl", "pixels"))[:, -1].tolist() == [20, 22]


def remove_few_shot_accuracy(study_results) -> None:
    for runs in study_results.groups.values():
        for run in runs:
            for entry in (run.heads["selected"], *run.heads["heads"].values()):
                entry["few"] = None


def test_page_omits_missing_few_shot_group(study_results, tmp_path):
    remove_few_shot_accuracy(study_results)
    assert rows_of(tables.summary(study_results))[1].startswith("KCL | 81.00 ± 1.41 | 81.00 ± 1.41 |")
    block = page.block(study_results)
    assert "nan" not in block and "few" not in block and tables.format_difference(np.array([3.0, 2.0])) in block
    page.write(study_results, tmp_path, "make results")


def test_summary_uses_seeds_common_to_all_methods(study_results, tmp_path):
    """A pair uses all seeds of its two methods."""
    for rho in (10, 100):
        del study_results.groups[rho, "ce"][1]
    kcl, ce = (rows_of(tables.summary(study_results))[row] for row in (1, 3))
    assert kcl.startswith("KCL | 80.00 (70.0) |") and ce.startswith("CE | 70.00 (60.0) |")
    assert "| TSC − KCL | 10 | 2 |" in tables.differences(study_results)
    refusal(lambda: page.write(study_results, tmp_path, "make results"), "Small")


def test_summary_uniformity_is_of_largest_imbalance(study_results):
    study_results.groups[10, "kcl"][0].stage.epochs[-1]["val"]["uniformity"] = 9.0
    assert "| 1.00 | 1.0 |" in tables.summary(study_results).splitlines()[3]
    study_results.groups[100, "kcl"][0].stage.epochs[-1]["val"]["uniformity"] = 9.0
    assert "| 5.00 | 1.0 |" in tables.summary(study_results).splitlines()[3]


def test_csv_names_the_head_selected_on_validation(study_results):
    """Two heads have the same test accuracy."""
    heads = study_results.groups[10, "kcl"][0].heads["heads"]
    heads |= {"logistic, post": {**heads["logistic, post"], "val_balanced": 1}}
    heads |= {"tau": {**heads["logistic, post"], "val_balanced": 99}}
    row = next(row for row in csv.reader(reading.csv_table(study_results).splitlines()) if row[:2] == ["10.0", "kcl"])
    assert row[4] == "tau"


def test_run_time_sums_all_epochs(study_results):
    study_results.groups[10, "ce"][0].stage.epochs[0]["seconds"] = 90
    assert study_results.groups[10, "ce"][0].seconds == 90 + 3 * 30


def test_page_names_the_command_to_repeat_the_study(finished_study, write_plan, tmp_path):
    """The command omits the flags --page, --folder and --output."""
    flags = f"--page --folder {str(finished_study.folder).replace(' ', '?')} --output {tmp_path}/docs"
    words = [str(tmp_path / "small.ini"), *(word.replace("?", " ") for word in flags.split())]
    results.main(words)
    text = (tmp_path / "docs" / "results_small.md").read_text()
    line_with(text, f"`python -m examples.results {tmp_path}/small.ini`")


def test_page_reports_number_of_seeds(study_results):
    assert numbers(page.describe_seeds(study_results)) == [2]
    for key in ("kcl", "tsc"):
        study_results.groups[10, key].append(study_results.groups[10, key][-1])
    assert {*numbers(page.describe_seeds(study_results))} == {2, 3, 10, 95}
    for key in ("kcl", "tsc", "ce"):
        del study_results.groups[100, key][1]
    assert numbers(page.describe_seeds(study_results))[:4] == [2, 10, 1, 100]


def test_sweep_is_shown_after_its_first_run(study_results):
    """The run with the method's default value does not count."""
    assert page.finished_sweeps(study_results) == list(study_results.plan.sweeps)
    study_results.sweeps["tw"]["tsc", "1"] = []
    assert page.finished_sweeps(study_results) == []


def test_seed_table_has_learning_rates(study_results):
    for run in study_results.groups[10, "kcl"]:
        run.stage.args["lr"] = 0.025
    pixels, kcl = rows_of(tables.seed_table(study_results))[:2]
    assert pixels == "10 | pixels | – | 60.00" and kcl == "10 | KCL | 0.025 | 80.00 82.00"


def test_readme_matches_the_results_page():
    marks = [mark.format("results_length") for mark in (page.BEGIN, page.END)]
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results_length.md")]
    readme, page_block = (text.split(marks[0])[1].split(marks[1])[0] for text in texts)
    assert readme == page_block
    assert_names(readme, *(f"| {method.title} |" for method in read_plan("length").methods.values()))
