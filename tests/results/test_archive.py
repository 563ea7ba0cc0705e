"""A study continues from its archive on another machine, which has no other files of it."""

import pytest

from examples.results import tables, trials
from examples.results.reading import csv_table
from examples.results.running import unpack_archive, write_archive
from examples.results.study import Study
from examples.results.trials import Cell, main_cells
from tests.refusals import refusal


@pytest.fixture
def unpacked_study(finished_study, tmp_path):
    """The finished study on another machine. There, KCL with seed 1 has no classifiers yet."""
    kcl = finished_study.trial(Cell(10, finished_study.plan.methods["kcl"]), 1)
    (kcl.run_dir / "heads" / "results.json").unlink()
    write_archive(finished_study.folder, tmp_path / "study.zip")
    study = Study(finished_study.plan, tmp_path / "elsewhere", finished_study.device)
    unpack_archive(tmp_path / "study.zip", study.folder)
    return study


def test_only_unfinished_trials_run_again(unpacked_study):
    all_trials = unpacked_study.trials(main_cells(unpacked_study.plan), range(2))
    unfinished = [part for trial in all_trials if (part := trials.unfinished_part(trial)).commands]
    assert [part.run_dir.name for part in unfinished] == ["kcl_s1"]
    assert [command[0] for command in unfinished[0].commands] == ["main_lincls_imba.py"]


def test_results_are_those_of_the_first_machine(unpacked_study, finished_study):
    """Both lack KCL with seed 1 at imbalance 10. Checkpoints of finished trials are not in the archive."""
    assert csv_table(unpacked_study.results()) == csv_table(finished_study.results())
    assert [path.parent.name for path in unpacked_study.folder.rglob("last.pth.tar")] == ["kcl_s1"]


def test_runs_with_other_arguments_are_refused(unpacked_study):
    plan = unpacked_study.plan
    method = plan.methods["tsc"]._replace(flags=("--targeted", "--tw", "0.5"))
    refusal(lambda: trials.unfinished_part(unpacked_study.trial(Cell(10, method), 0)), "tsc_s0", "tw")


def test_other_file_is_refused(tmp_path):
    (tmp_path / "study.zip").write_text("no zip file")
    refusal(lambda: unpack_archive(tmp_path / "study.zip", tmp_path / "runs"), tmp_path / "study.zip")


def test_minutes_are_those_of_the_most_frequent_device(study_results):
    """One run of TSC, on a GPU, took no time. The others took a minute on the CPU."""
    gpu_run = study_results.groups[10, "tsc"][0].stage
    gpu_run.args["device"], gpu_run.epochs[:] = "cuda:0", [{"seconds": 0, "val": {}}]
    header, _, _, _, tsc, _ = tables.summary(study_results).splitlines()
    assert "minutes per run (cpu only)" in header and tsc.endswith("| 1.0 |")
