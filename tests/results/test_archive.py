"""A study continues from its archive on another machine, which has no other files of it."""

import zipfile
from pathlib import Path

import pytest
import torch

from examples.results import tables, trials
from examples.results.reading import csv_table
from examples.results.running import unpack_archive, write_archive
from examples.results.study import Study
from examples.results.trials import Cell, Trial, main_cells
from tests.refusals import refusal


@pytest.fixture
def unpacked_study(finished_study, tmp_path):
    """The finished study on another machine. There, KCL with seed 1 has no classifiers yet."""
    kcl = finished_study.trial(Cell(10, finished_study.plan.methods["kcl"]), 1)
    (kcl.run_dir / "heads" / "results.json").unlink()
    write_archive(finished_study.folder, tmp_path / "study.zip")
    return unpack(tmp_path / "study.zip", Study(finished_study.plan, tmp_path / "elsewhere", finished_study.device))


def unpack(archive: Path, study: Study) -> Study:
    """Unpack an archive into the folder of a study, and return the study."""
    study.folder.mkdir(exist_ok=True)
    unpack_archive(archive, study)
    return study


def kcl_trial(study: Study) -> Trial:
    return study.trial(Cell(10, study.plan.methods["kcl"]), 0)


def set_back(study: Study) -> None:
    """Set a finished trial back to the first of its two epochs."""
    run_dir = kcl_trial(study).run_dir
    (run_dir / "heads" / "results.json").unlink()
    (run_dir / "features.npz").unlink()
    log = run_dir / "log.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    torch.save({"epoch": 1, "state_dict": {}}, run_dir / "last.pth.tar")


def test_only_unfinished_trials_run_again(unpacked_study):
    all_trials = unpacked_study.trials(main_cells(unpacked_study.plan), range(2))
    unfinished = [part for trial in all_trials if (part := trials.unfinished_part(trial)).commands]
    assert [part.run_dir.name for part in unfinished] == ["kcl_s1"]
    assert [command[0] for command in unfinished[0].commands] == ["main_lincls_imba.py"]


def test_results_are_those_of_the_first_machine(unpacked_study, finished_study):
    """Both lack KCL with seed 1 at imbalance 10. Of finished trials, only TSC's features are in the archive."""
    assert csv_table(unpacked_study.results()) == csv_table(finished_study.results())
    assert [path.parent.name for path in unpacked_study.folder.rglob("last.pth.tar")] == ["kcl_s1"]
    with_features = [path.parent.name for path in (unpacked_study.folder / "rho10").rglob("features.npz")]
    assert sorted(with_features) == ["kcl_s1", "tsc_s0", "tsc_s1"]


def test_runs_with_other_arguments_are_refused(unpacked_study):
    plan = unpacked_study.plan
    method = plan.methods["tsc"]._replace(flags=("--targeted", "--tw", "0.5"))
    refusal(lambda: trials.unfinished_part(unpacked_study.trial(Cell(10, method), 0)), "tsc_s0", "tw")


def test_page_needs_two_seeds_of_each_method(finished_study):
    assert finished_study.page_results()
    trial = finished_study.trial(Cell(10, finished_study.plan.methods["kcl"]), 1)
    (trial.run_dir / "heads" / "results.json").unlink()
    assert finished_study.page_results() is None


def test_later_state_of_a_trial_is_kept(finished_study, tmp_path):
    """The study continued on another machine, whose archive returns to the first one, or the other way round."""
    write_archive(finished_study.folder, tmp_path / "late.zip")
    set_back(finished_study)
    write_archive(finished_study.folder, tmp_path / "early.zip")
    for archive in ("late.zip", "early.zip"):
        unpack(tmp_path / archive, finished_study)
        run_dir = kcl_trial(finished_study).run_dir
        assert len((run_dir / "log.jsonl").read_text().splitlines()) == 2, archive
        assert (run_dir / "heads" / "results.json").exists() and not (run_dir / "last.pth.tar").exists(), archive


def no_zip(file: Path) -> str:
    file.write_text("no zip file")
    return "not an archive"


def damaged(file: Path) -> str:
    """Overwrite some of the data of the archive, but not its table of contents at the end."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 - 200 : len(data) // 2] = b"?" * 200
    file.write_bytes(data)
    return "not an archive"


def without_runs_of_the_plan(file: Path) -> str:
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("rho10/bcl_s0/args.json", "{}")
    return "Small"


def of_something_else(file: Path) -> str:
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("photo.png", "")
    return "photo.png"


@pytest.mark.parametrize("write", [no_zip, damaged, without_runs_of_the_plan, of_something_else])
def test_other_file_is_refused_before_anything_is_unpacked(write, finished_study, tmp_path):
    archive, study = tmp_path / "study.zip", Study(finished_study.plan, tmp_path / "elsewhere", finished_study.device)
    write_archive(finished_study.folder, archive)
    fact = write(archive)
    refusal(lambda: unpack(archive, study), archive, fact)
    assert not [*study.folder.iterdir()]


def test_archive_with_other_arguments_is_refused_before_anything_is_unpacked(finished_study, tmp_path):
    write_archive(finished_study.folder, tmp_path / "study.zip")
    methods = finished_study.plan.methods
    other = methods | {"tsc": methods["tsc"]._replace(flags=("--targeted", "--tw", "0.5"))}
    plan = finished_study.plan._replace(methods=other, sweeps=())
    study = Study(plan, tmp_path / "elsewhere", finished_study.device)
    refusal(lambda: unpack(tmp_path / "study.zip", study), "study.zip", "tsc_s0", "tw")
    assert not [*study.folder.iterdir()]


def test_minutes_are_those_of_the_most_frequent_device(study_results):
    """Two of the four runs of TSC, on a GPU, took no time. The others took a minute on the CPU."""
    for run in study_results.groups[10, "tsc"]:
        run.stage.args["device"], run.stage.epochs[:] = "cuda:0", [{"seconds": 0, "val": {}}]
    header, _, _, _, tsc, _ = tables.summary(study_results).splitlines()
    assert "minutes per run (cpu only)" in header and tsc.endswith("| 1.0 |")
