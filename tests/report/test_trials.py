"""The trials table: hand-computed numbers and refused input."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from tests.refusals import line_with, refusal
from utils.report import __main__ as report
from utils.report.runs import read_run
from utils.report.trials import paired_difference, read_groups, section, table


def write_run(folder, seed, acc1, stage_1=(), stage_2=(), seed_2=None):
    """Write a minimal stage-1 folder with its probe."""
    entry = {"epoch": 3, "acc1": acc1, "acc5": 100.0, "many": acc1 + 1, "medium": None, "few": acc1 - 1}
    entry["per_class"] = [acc1, acc1]
    record = {"args": {"lr": 0.1, "tw": 0, "run_dir": str(folder), "seed": seed} | dict(stage_1), "git": "c0ffee"}
    args = {"pretrained": str(folder / "last.pth.tar"), "seed": seed if seed_2 is None else seed_2, "lr": 1}
    results = {"selected": entry, "last": entry | {"acc1": 0.0}, "best_on_test": entry, "train_counts": [100, 2]}
    (folder / "probe").mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(record))
    (folder / "probe" / "args.json").write_text(json.dumps({"args": args | dict(stage_2)}))
    (folder / "probe" / "results.json").write_text(json.dumps(results))


@pytest.fixture
def runs(tmp_path):
    """Write three trials of two methods, with accuracies 50, 52, 54 (KCL) and 51, 54, 54 (TSC)."""
    for seed, (kcl, tsc) in enumerate(((50, 51), (52, 54), (54, 54))):
        write_run(tmp_path / f"kcl_s{seed}", seed, kcl)
        write_run(tmp_path / f"tsc_s{seed}", seed, tsc, {"targeted": True, "tw": 0.2})
    return tmp_path


def kcl_and_tsc_groups(runs, other="tsc"):
    return read_groups([f"{runs}/kcl_s*", f"{runs}/{other}_s*"])


def read_group(pattern):
    return read_groups([pattern])[0]


def test_mean_std_and_paired_interval_by_hand(runs):
    """Differences 1, 2, 0: mean 1, std 1. The 97.5 % quantile of t with 2 df is 4.303: ± 4.303 / √3 = 2.48."""
    _, rows = table(kcl_and_tsc_groups(runs), "selected")
    assert [row[-1] for row in rows] == [
        *("50.00", "52.00", "54.00", "51.00", "54.00", "54.00"),
        "52.00 ± 2.00",
        "53.00 ± 1.73",
        "+1.00 [-1.48, +3.48]",
    ]
    assert [row[3] for row in rows[:2]] == ["51.00", "53.00"]  # many
    assert {row[4] for row in rows} == {"–"}  # there is no medium-shot class
    assert [row[1] for row in rows[:3]] == ["0", "1", "2"]


def compare_heads(folder, acc1, **stage_2):
    """Write the results of --compare-heads, which selects ncm, into a run folder. Its seed is random."""
    (folder / "heads").mkdir()
    entry = {"values": {"C": 2}, "acc1": acc1, "acc5": 100.0, "many": acc1, "medium": None, "few": acc1}
    entry |= {"per_class": [acc1, acc1], "val_balanced": 80}
    heads = {"logistic, post": entry | {"acc1": 99, "val_balanced": 79}, "ncm": entry}
    results = {"selected": entry, "heads": heads, "train_counts": [100, 2], "chosen": {"on": "val"}}
    args = {"pretrained": str(folder / "last.pth.tar"), "seed": acc1, "compare_heads": True} | stage_2
    (folder / "heads" / "args.json").write_text(json.dumps({"args": args}))
    (folder / "heads" / "results.json").write_text(json.dumps(results))


@pytest.fixture
def compared_runs(runs):
    """Write three runs of KCL with --compare-heads alone, and of cross-entropy, which also has its own last layer."""
    for seed in range(3):
        shutil.rmtree(runs / f"kcl_s{seed}" / "probe")
        compare_heads(runs / f"kcl_s{seed}", 50 + seed)
        ce = runs / f"ce_s{seed}"
        shutil.copytree(runs / f"tsc_s{seed}" / "probe", ce)
        (ce / "args.json").write_text(json.dumps({"args": {"pretrained": None, "seed": seed}}))
        compare_heads(ce, 60 + 3 * seed)
    return runs


@pytest.mark.parametrize("within", ["", "/heads"])
def test_comparisons_are_paired_by_the_seed_of_the_training(within, compared_runs, capsys):
    """KCL: 50, 51, 52. Cross-entropy: 60, 63, 66. Differences 10, 12, 14: 12 ± 4.303 · 2 / √3."""
    report.main(["--trials", f"{compared_runs}/kcl_s*{within}", f"{compared_runs}/ce_s*{within}"])
    text = capsys.readouterr().out
    assert "| kcl_s0 | 0 | ncm | 50.00 |" in text and "| ce_s2 | 2 | ncm | 66.00 |" in text
    line_with(text, "`ce_s*` − `kcl_s*`", "+12.00 [+7.03, +16.97]")


def test_comparisons_on_different_lists_are_refused(compared_runs):
    shutil.rmtree(compared_runs / "kcl_s1" / "heads")
    compare_heads(compared_runs / "kcl_s1", 51, test_list="other")
    refusal(lambda: kcl_and_tsc_groups(compared_runs, "ce"), "test_list", "other", "kcl_s1")


def test_run_without_comparison_is_refused(compared_runs):
    """Without it, the accuracies are those of single classifiers, which the runs of KCL do not have."""
    shutil.rmtree(compared_runs / "ce_s1" / "heads")
    refusal(lambda: kcl_and_tsc_groups(compared_runs, "ce"), "kcl_s0", "--compare-heads")


def test_comparisons_precede_saved_classifiers_if_all_runs_have_one(runs):
    for folder in (runs / f"{name}_s{seed}" for name in ("kcl", "tsc") for seed in range(3)):
        compare_heads(folder, 70)
    kcl, tsc = kcl_and_tsc_groups(runs)
    assert [run.results["selected"]["acc1"] for run in kcl.runs + tsc.runs] == [70] * 6
    shutil.rmtree(runs / "tsc_s2" / "heads")
    assert [run.results["selected"]["acc1"] for run in kcl_and_tsc_groups(runs)[0].runs] == [50, 52, 54]


def test_paired_interval_matches_scipy():
    values = np.array([0.3, -1.2, 2.0, 0.7, 0.1])
    mean, *interval = paired_difference(values)
    expected = stats.ttest_rel(values, np.zeros(5)).confidence_interval(0.95)
    assert mean == pytest.approx(0.38)
    assert interval == pytest.approx(list(expected))


@pytest.mark.parametrize("folder", ["runs [a]", "kcl[1]"])
def test_brackets_in_a_folder_name_are_accepted(folder, tmp_path):
    for seed in range(2):
        write_run(tmp_path / folder / f"kcl[2]_s{seed}", seed, 50)
    for name in ("kcl[2]_s*", "kcl*_s[01]"):
        assert len(read_group(f"{tmp_path / folder}/{name}").runs) == 2


def test_each_epoch_selection_has_a_table(runs, capsys):
    report.main(["--trials", f"{runs}/kcl_s*", f"{runs}/tsc_s*"])
    text = capsys.readouterr().out
    selected, last, best = text.split("\n### ")[1:]
    assert selected.startswith("selected: ") and last.startswith("last: ") and best.startswith("best_on_test: ")
    assert "| 0.00 |" in last and "| 0.00 |" not in selected
    line_with(text, "arguments that some of the groups do not have", "targeted (stage 1)")
    line_with(text, "tw (stage 1)", "0 in `kcl_s*`", "0.2 in `tsc_s*`")
    assert "| kcl_s0 | 0 | 3 |" in selected
    line_with(selected, "`tsc_s*` − `kcl_s*`", "+1.00 [-1.48, +3.48]")


def test_probe_folder_names_its_run(runs):
    probe_run = read_run(runs / "kcl_s1" / "probe")
    assert probe_run.results == read_run(runs / "kcl_s1").results
    assert probe_run.deciding_arguments() == read_run(runs / "kcl_s1").deciding_arguments()
    assert read_group(f"{runs}/kcl_s*/probe").runs[2].seeds == (2, 2)


def test_moved_probe_finds_its_run(runs):
    shutil.move(runs / "kcl_s1" / "probe", runs / "elsewhere")
    assert read_run(runs / "elsewhere").pretraining.folder == runs / "kcl_s1"


def test_trained_run_is_read(tsc_run, probe_run):
    run = read_run(tsc_run)
    assert run.probe.folder == probe_run and run.seeds == (1, 1)
    assert len(run.pretraining.epochs) == len(run.probe.epochs) == 2
    assert run.deciding_arguments()["tw (stage 1)"] == 0.2
    assert not {"workers (stage 1)", "seed (stage 2)"} & set(run.deciding_arguments())


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"stage_1": {"lr": 0.2}}, ("lr", 1, "0.1", "kcl_s0", "kcl_s2", "0.2", "kcl_s1")),
        ({"stage_2": {"lr": 2}}, ("lr", 2, "1", "kcl_s0", "kcl_s2", "2", "kcl_s1")),
        ({"stage_1": {"new": 2}}, ("new", 1, "None", "kcl_s0", "kcl_s2", "2", "kcl_s1")),
        ({"seed": 2}, ("kcl_s1", "kcl_s2", "2")),
        ({"seed": 7}, ("kcl_s*", "7", "tsc_s*", "1")),
    ],
)
def test_trials_with_different_arguments_are_refused(change, facts, runs):
    shutil.rmtree(runs / "kcl_s1")
    write_run(runs / "kcl_s1", **({"seed": 1, "acc1": 50} | change))
    refusal(lambda: kcl_and_tsc_groups(runs), *facts)


def test_trials_may_differ_in_workers_and_paths(runs):
    shutil.rmtree(runs / "kcl_s1")
    write_run(runs / "kcl_s1", 1, 50, {"workers": 3, "data_root": "elsewhere"})
    assert len(kcl_and_tsc_groups(runs)) == 2


def test_trials_with_different_class_counts_are_refused(runs):
    path = runs / "kcl_s2" / "probe" / "results.json"
    path.write_text(path.read_text().replace("[100, 2]", "[90, 2]"))
    refusal(lambda: kcl_and_tsc_groups(runs), "[100, 2]", "[90, 2]", "kcl_s2")


def test_trials_section_follows_the_accuracy_section(runs):
    report.main([str(runs / "kcl_s0"), "--trials", f"{runs}/kcl_s*", f"{runs}/tsc_s*", "--output", str(runs / "out")])
    titles = [line for line in (runs / "out" / "report.md").read_text().splitlines() if line.startswith("## ")]
    assert titles.index(f"## {section(kcl_and_tsc_groups(runs)).title}") == 1


@pytest.mark.parametrize(
    ("pattern", "facts"),
    [("none*", ("--trials",)), ("kcl_s0", ("--trials", "kcl_s0")), ("*", ("targeted", "kcl_s1", "tsc_s1"))],
)
def test_pattern_without_valid_group_is_refused(pattern, facts, runs):
    refusal(lambda: read_group(f"{runs}/{pattern}"), f"{runs}/{pattern}", *facts)


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (lambda run: (run / "probe" / "results.json").unlink(), ("results.json",)),
        (lambda run: (run / "probe" / "results.json").write_text("{}"), ("results.json", "selected", "acc1")),
        (lambda run: (run / "args.json").unlink(), ("args.json",)),
        (lambda run: (run / "args.json").write_text("[1"), ("args.json", "JSON")),
        (lambda run: (run / "args.json").write_text("{}"), ("args.json", "'args'", "seed")),
        (lambda run: (run / "log.jsonl").write_text("x}\n{}\n"), ("log.jsonl:1",)),
        (lambda run: shutil.copytree(run / "probe", run / "probe_2"), ("2", "probe, probe_2")),
    ],
)
def test_unfinished_or_damaged_run_is_refused(damage, facts, runs):
    damage(runs / "kcl_s1")
    refusal(lambda: read_group(f"{runs}/kcl_s*"), runs / "kcl_s1", *facts)
