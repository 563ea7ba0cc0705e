"""What the page says about its images, machines and learning rates; and a page that is written from an archive."""

import json
from pathlib import Path

import pytest

from examples.results import __main__ as command
from examples.results import page
from examples.results.reading import csv_table
from examples.results.running import write_archive
from examples.results.trials import Cell
from tests.refusals import refusal


def page_text(results, folder: Path) -> str:
    page.write(results, folder, "make results")
    return (folder / f"{results.plan.page}.md").read_text()


@pytest.mark.parametrize(("split_per_seed", "sentence"), page.IMAGES.items())
def test_page_says_which_seeds_share_images(split_per_seed, sentence, study_results, tmp_path):
    results = study_results._replace(plan=study_results.plan._replace(split_per_seed=split_per_seed))
    assert f"\n{sentence}\n" in page_text(results, tmp_path)


def test_page_names_all_processors(finished_study, tmp_path):
    """One run began on another machine, and was continued when records did not name processors. Damage is skipped."""
    record = finished_study.folder / "rho10" / "tsc_s0" / "args.json"
    about = json.loads(record.read_text())
    del about["processor"]
    about["earlier"] = [{"git": "beef", "machine": "farm-7", "processor": "GPU", "versions": {"torch": "3"}}]
    about["earlier"] += ["damaged", {"machine": "farm-7"}]
    record.write_text(json.dumps(about))
    text = page_text(finished_study.results(), tmp_path)
    assert "Machines: box, Fast CPU, PyTorch 2; box, cpu, PyTorch 2; farm, GPU, PyTorch 3." in text
    assert "Commits: beef and c0ffee." in text


def test_page_names_uncommitted_changes(finished_study, tmp_path):
    record = finished_study.folder / "rho10" / "tsc_s0" / "args.json"
    record.write_text(record.read_text().replace("c0ffee", "c0ffee000000000-dirty"))
    assert "Commits: c0ffee and c0ffee0000-dirty." in page_text(finished_study.results(), tmp_path)


def test_page_names_methods_with_their_own_learning_rate(study_results, tmp_path):
    plan = study_results.plan._replace(rates=("0.1", "0.3"))
    methods = plan.methods | {"ce": plan.methods["ce"]._replace(flags=("--balance", "none", "--lr", "0.7"))}
    of_all, of_some = "rate of each method is selected", "rate of each method whose flags set none is selected"
    for results, sentence in ((plan, of_all), (plan._replace(methods=methods), of_some)):
        assert sentence in page_text(study_results._replace(plan=results), tmp_path)


def test_block_of_a_method_without_runs_is_refused(study_results, write_plan, tmp_path):
    page.write(study_results, tmp_path / "docs", "make results")
    plan = str(write_plan(("[method kcl]", "[method new]\ntitle = New\nstage1 = contrast\n\n[method kcl]")))
    refusal(lambda: command.main([plan, "--block", "--output", str(tmp_path / "docs")]), "results_small.csv", "--page")


def test_sweep_over_files_has_one_folder_per_run(plan):
    """A slash in a value does not create a folder, which an archive would not contain."""
    assert Cell(10, plan.methods["kcl"], ("--init-from", "runs/a")).name == "kcl_init_from_runs_a"


def test_page_is_written_from_an_archive(finished_study, tmp_path):
    archive = tmp_path / "study.zip"
    write_archive(finished_study.folder, archive)
    content = archive.read_bytes()
    folder = tmp_path / "elsewhere"
    folders = ["--folder", str(folder), "--output", str(tmp_path / "docs")]
    command.main([str(tmp_path / "small.ini"), "--page", "--archive", str(archive), *folders])
    assert (tmp_path / "docs" / "results_small.csv").read_text() == csv_table(finished_study.results())
    assert archive.read_bytes() == content and not folder.exists()


def test_page_from_a_missing_archive_is_refused(write_plan, tmp_path):
    archive, folder = tmp_path / "study.zip", tmp_path / "runs"
    words = [str(write_plan()), "--page", "--archive", str(archive), "--folder", str(folder)]
    refusal(lambda: command.main(words), archive)
    assert not folder.exists()
