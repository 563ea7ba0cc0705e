"""A plan with several lengths of training: its runs and its results."""

import csv
import itertools

import pytest

from examples.results import lengths, page, reading, tables
from examples.results.plan_file import read_plan
from examples.results.study import Study
from examples.results.trials import main_cells, sweep_cells, tuning_cells
from tests.refusals import assert_names, line_with, refusal
from tests.results.conftest import LENGTHS
from tests.results.written import write_run


def write_length(study: Study, length: int, accuracies: dict[str, tuple[float, ...]]) -> None:
    """Write the runs of all methods at a length, one per accuracy. Pixels have one run."""
    for cell in main_cells(study.plan, length):
        for seed, acc1 in enumerate(accuracies.get(cell.method.key, (60.0,))):
            write_run(study, cell, seed, acc1, acc1)


@pytest.fixture
def finished_lengths(length_study) -> Study:
    """TSC − KCL is −1 and −3 (and −2) at 4 epochs, 2 and 2 at 12 epochs."""
    write_length(length_study, 4, {"kcl": (71, 73, 72), "tsc": (70, 70, 70), "ce": (75, 75, 75)})
    write_length(length_study, 12, {"kcl": (80, 82), "tsc": (82, 84), "ce": (78, 78)})
    return length_study


def test_lengths_and_their_seeds_are_read(write_plan):
    plan = read_plan(str(write_plan(*LENGTHS)))
    assert (plan.lengths, plan.seeds, plan.length) == ({4: 3, 12: 2}, 2, 12)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (("seeds = 3 2", "seeds = 3 2 2"), ("[study]", "seeds", 3, 2)),
        (("seeds = 3 2", "seeds = 3 1"), ("[study]", "seeds", 1, 2)),
        (("lengths = 4 12", "lengths = 4 4"), ("[study]", "lengths")),
        (("rates = 0.1", "rates = 0.1 0.4\nlongest_tuned = 8"), ("[study]", "longest_tuned", 8, 4, 12)),
        (("rates = 0.1", "epochs = 4"), ("[study]", "lengths", "epochs")),
        (("--tw 0.2\n", "--tw 0.2 --epochs 8\n"), ("[method tsc]", "--epochs")),
        (("--tw 0.2\n", "--tw 0.2 --epochs 12\n"), ("[method tsc]", "--epochs", "lengths")),
        (("--balance none", "--balance none\nlongest = 8"), ("[method ce]", "longest", 8, 4, 12)),
        (("--tw 0.2\n", "--tw 0.2\nlongest = 4\n"), ("[method tsc]", "longest", "pair")),
        (("stage1 = pixels", "stage1 = pixels\nlongest = 4"), ("[method pixels]", "longest", "pixels")),
    ],
)
def test_invalid_lengths_are_refused(change, facts, write_plan):
    path = write_plan(*LENGTHS, change)
    refusal(lambda: read_plan(str(path)), "plan", path, *facts)


@pytest.mark.parametrize(("flag", "facts"), [("--epochs 12", ("--epochs", "lengths")), ("--lr 0.3", ("--lr", "rates"))])
def test_flag_in_data_that_an_entry_sets_is_refused(flag, facts, write_plan):
    pixels = "[method pixels]\ntitle = pixels\nstage1 = pixels\n\n"  # it accepts neither flag
    path = write_plan(*LENGTHS, (pixels, ""), ("--image-size 8", f"--image-size 8 {flag}"))
    refusal(lambda: read_plan(str(path)), "[study]", *facts)


AT_LENGTH = (LENGTHS[0], ("seeds = 2\naxis", "seeds = 2\nlength = 12\naxis"))  # the sweep is kept, at 12 epochs


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (AT_LENGTH[:1], ("length", "missing", 4, 12)),
        ((*AT_LENGTH, ("length = 12", "length = 8")), ("length 8", 4, 12)),
        (AT_LENGTH[1:], ("length 12",)),
        ((*AT_LENGTH, ("tsc - kcl\n", ""), ("--tw 0.2\n", "--tw 0.2\nlongest = 4\n")), ("length 12", "tsc")),
        ((*AT_LENGTH, ("flag = --tw", "flag = --epochs"), ("values = 0.2 1", "values = 2 12")), ("--epochs",)),
    ],
)
def test_sweep_needs_a_length_of_the_plan_and_its_methods(changes, facts, write_plan):
    refusal(lambda: read_plan(str(write_plan(*changes))), "[sweep tw]", *facts)


def test_some_method_is_trained_for_the_longest_length(write_plan):
    ends = [("\n\n[method tsc]", "\nlongest = 4\n\n[method tsc]"), ("--tw 0.2\n", "--tw 0.2\nlongest = 4\n")]
    ends += [("--balance none", "--balance none\nlongest = 4"), ("pairs =\n    tsc - kcl\n    kcl - ce\n", "")]
    refusal(lambda: read_plan(str(write_plan(*LENGTHS, *ends))), "[study]", "lengths", 12)


def test_sweep_has_the_length_and_the_rate_of_its_methods(write_plan, tmp_path):
    study = Study(read_plan(str(write_plan(*AT_LENGTH))), tmp_path / "runs", "cpu")
    study.plan = study.plan._replace(rates=("0.1", "0.4"))
    for length, best in ((4, "0.1"), (12, "0.4")):
        for cell, rate in tuning_cells(study.plan, length).items():
            write_run(study, cell, study.plan.tune_seed, 50, 70 + (rate == best))
    trained = dict(study.stages())["sweep tw"]
    assert [trial.run_dir.name for trial in trained[:2]] == ["tsc_12_epochs_s0", "tsc_12_epochs_tw_1_s0"]
    assert all(rates_in(trial) == ["0.4"] for trial in trained)


def test_page_has_the_length_of_a_sweep(write_plan, tmp_path):
    study = Study(read_plan(str(write_plan(*AT_LENGTH))), tmp_path / "runs", "cpu")
    write_length(study, 4, {"kcl": (71, 73), "tsc": (70, 70), "ce": (75, 75)})
    write_length(study, 12, {"kcl": (80, 82), "tsc": (82, 84), "ce": (78, 78)})
    write_run(study, sweep_cells(study.plan, study.plan.sweeps[0])["tsc", "1"], 0, 90, 90)
    page.write(study.results(), tmp_path / "docs", "python -m examples.results small")
    text = (tmp_path / "docs" / "results_small.md").read_text()
    assert text.count("TSC over its weight. ρ = 100, 12 epochs.") == 2  # figure and table
    rows = csv.DictReader((tmp_path / "docs" / "results_small.csv").read_text().splitlines())
    assert {(row["sweep"], row["length"]) for row in rows if row["sweep"]} == {("tw 0.2", "12"), ("tw 1", "12")}


def test_sweep_of_a_length_without_rates_is_left_out(write_plan, tmp_path):
    study = Study(read_plan(str(write_plan(*AT_LENGTH))), tmp_path / "runs", "cpu")
    study.plan = study.plan._replace(rates=("0.1", "0.4"))
    for cell in tuning_cells(study.plan, 4):
        write_run(study, cell, study.plan.tune_seed, 50, 70)
    assert study.results().sweeps == {"tw": {}}


def test_every_method_sees_the_same_number_of_views(length_study):
    """Cross-entropy sees one view per image and epoch, contrast two. The folder's name has the length."""
    trained = [cell for cell in main_cells(length_study.plan, 12) if cell.length]
    words = {cell.method.key: length_study.trial(cell, 1).commands[0] for cell in trained}
    last = {key: line[len(line) - line[::-1].index("--epochs")] for key, line in words.items()}
    assert last == {"kcl": "12", "tsc": "12", "ce": "24"}
    assert length_study.trial(trained[0], 1).run_dir.name == "kcl_12_epochs_s1"
    assert len({length_study.weight(cell) for cell in trained}) == 1


def test_rate_is_selected_at_each_length(length_study):
    """The shorter training needs the larger rate."""
    length_study.plan = length_study.plan._replace(rates=("0.1", "0.4"))
    validation = {(4, "0.1"): 70, (4, "0.4"): 71, (12, "0.1"): 81, (12, "0.4"): 80}
    stages = length_study.stages()
    for length, best in ((4, "0.4"), (12, "0.1")):
        name, tuning = next(stages)
        assert len(tuning) == 2 * 3 and str(length) in name
        for cell, rate in tuning_cells(length_study.plan, length).items():
            write_run(length_study, cell, length_study.plan.tune_seed, 50, validation[length, rate])
        assert_names(length_study.describe_rates(name), f"kcl {best}", f"ce {best}")
        name, methods = next(stages)
        assert {rate for trial in methods for rate in rates_in(trial)} == {best}


def rates_in(trial) -> list[str]:
    """Return the learning rates in the commands of a trial."""
    return [after for words in trial.commands for word, after in itertools.pairwise(words) if word == "--lr"]


def test_longer_runs_use_the_rate_of_the_longest_tuned_length(length_study):
    length_study.plan = length_study.plan._replace(rates=("0.1", "0.4"), longest_tuned=4)
    for cell, rate in tuning_cells(length_study.plan, 4).items():
        write_run(length_study, cell, length_study.plan.tune_seed, 50, {"0.1": 70, "0.4": 71}[rate])
    stages = dict(length_study.stages())
    assert [*stages] == ["learning rates, 4 epochs", "methods, 4 epochs", "methods, 12 epochs"]
    assert {rate for trial in stages["methods, 12 epochs"] for rate in rates_in(trial)} == {"0.4"}
    assert length_study.is_tuned(12)


def test_tables_have_a_column_per_length(finished_lengths):
    """With 4 epochs CE is ahead, with 12 TSC. Seeds of the page are those that all methods have."""
    found = finished_lengths.results()
    rows = lengths.summary(found).splitlines()
    assert_names(rows[0], "4 epochs (3 seeds)", "12 epochs (2 seeds)")
    assert "| 100 | KCL | 72.00 ± 1.00 (62.0) | 81.00 ± 1.41 (71.0) |" in rows
    assert "| 100 | pixels | 60.00 (50.0) | 60.00 (50.0) |" in rows
    difference = lengths.difference_summary(found).splitlines()[2]
    assert_names(difference, "TSC − KCL", "−2.0 (−4.5 to +0.5; 3 seeds)", "**+2.0** (+2.0 to +2.0; 2 seeds)")
    assert "81.00 ± 1.41" in tables.summary(found)  # other tables are those of the longest length


def test_figure_has_a_point_per_length(finished_lengths):
    panel = lengths.accuracy(finished_lengths.results()).axes[0]
    bars = {bar.get_label(): bar for bar in panel.containers}
    points = {label: bar.lines[0].get_xydata().round(0).tolist() for label, bar in bars.items()}
    assert points["TSC"] == [[4, 70], [12, 83]] and points["pixels"] == [[4, 60], [12, 60]]
    bar_at_12 = bars["KCL"].lines[2][0].get_segments()[1]
    assert bar_at_12[:, 1].tolist() == pytest.approx([81 - 2**0.5, 81 + 2**0.5])


def test_unfinished_length_is_omitted(length_study):
    write_length(length_study, 4, {"kcl": (71, 73), "tsc": (70, 70), "ce": (75, 75)})
    write_length(length_study, 12, {"kcl": (80, 82), "tsc": (82,), "ce": (78, 78)})
    found = length_study.results()
    assert [*found.lengths] == [4] and found.groups == found.lengths[4] and found.plan.length == 4


def test_page_and_its_csv_have_all_lengths(finished_lengths, tmp_path):
    found = finished_lengths.results()
    page.write(found, tmp_path / "docs", "make results")
    text = (tmp_path / "docs" / "results_small.md").read_text()
    line_with(text, "results_small_lengths.png")
    assert "have a dash" not in text
    assert lengths.summary(found) in text and lengths.difference_summary(found) in text
    read = reading.read_table(finished_lengths.plan, tmp_path / "docs" / "results_small.csv")
    assert lengths.summary(read) == lengths.summary(found) and page.block(read) == page.block(found)


def test_sentence_names_the_best_methods_at_each_length(finished_lengths):
    """On validation, KCL is the best contrastive method at 4 epochs, TSC at 12."""
    found = finished_lengths.results()
    (sentence,) = lengths.sentences(found)
    assert_names(sentence, "KCL at 4 epochs and TSC at 12 epochs", "CE at 4 and 12 epochs")
    assert_names(sentence, "significantly worse at 4 epochs and not significantly different at 12 epochs")
    assert sentence in " ".join(page.block(found).split())


def test_sentence_groups_lengths_with_the_same_method(finished_lengths):
    found = finished_lengths.results()
    found = found._replace(lengths={4: found.lengths[4], 8: found.lengths[4], 1200: found.lengths[12]})
    assert_names(lengths.sentences(found)[0], "KCL at 4 and 8 epochs and TSC at 1,200 epochs")


def test_lengths_without_baseline_are_left_out_of_the_sentence(shorter_baseline):
    (sentence,) = lengths.sentences(shorter_baseline.results())
    assert_names(sentence, "KCL at 4 epochs.", "CE at 4 epochs.", "significantly worse at 4 epochs.")


def test_page_names_the_seeds_of_each_length(finished_lengths):
    assert page.describe_seeds(finished_lengths.results()) == "3 seeds at 4 epochs and 2 at 12"


@pytest.fixture
def shorter_baseline(finished_lengths) -> Study:
    """Cross-entropy is trained for 4 epochs only."""
    methods = finished_lengths.plan.methods
    finished_lengths.plan = finished_lengths.plan._replace(methods=methods | {"ce": methods["ce"]._replace(longest=4)})
    return finished_lengths


def test_method_is_trained_up_to_its_longest_length(shorter_baseline):
    shorter_baseline.plan = shorter_baseline.plan._replace(rates=("0.1", "0.4"))
    shorter_baseline.assume_rates()
    folders = {name: {trial.run_dir.name for trial in trials} for name, trials in shorter_baseline.stages()}
    has_baseline = {name: any(folder.startswith("ce_") for folder in names) for name, names in folders.items()}
    assert has_baseline == {f"{stage}, {n} epochs": n == 4 for n in (4, 12) for stage in ("learning rates", "methods")}


def test_tables_show_a_dash_where_a_method_was_not_trained(shorter_baseline, tmp_path):
    found = shorter_baseline.results()
    page.write(found, tmp_path / "docs", "python -m examples.results small")
    text = (tmp_path / "docs" / "results_small.md").read_text()
    assert line_with(lengths.summary(found), "CE").endswith("75.00 ± 0.00 (65.0) | – |")
    assert line_with(lengths.difference_summary(found), "KCL − CE").endswith("3 seeds) | – |")
    assert "have a dash" in text and "CE |" not in tables.summary(found)
    assert "CE |" not in tables.differences(found) + tables.seed_table(found)
    bars = {bar.get_label(): bar.lines[0].get_xdata().round() for bar in lengths.accuracy(found).axes[0].containers}
    assert [*bars["CE"]] == [4] and [*bars["KCL"]] == [4, 12]
    read = reading.read_table(shorter_baseline.plan, tmp_path / "docs" / "results_small.csv")
    assert page.block(read) == page.block(found)
