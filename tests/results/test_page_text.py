"""What the page says about its images and machines, and that it can be written from an archive."""

import json
from pathlib import Path

import pytest

from examples.results import __main__ as command
from examples.results import page
from examples.results.reading import csv_table
from examples.results.running import write_archive
from tests.refusals import refusal


def page_text(results, folder: Path) -> str:
    page.write(results, folder, "make results")
    return (folder / f"{results.plan.page}.md").read_text()


@pytest.mark.parametrize(("split_per_seed", "sentence"), page.IMAGES.items())
def test_page_says_which_seeds_share_images(split_per_seed, sentence, study_results, tmp_path):
    results = study_results._replace(plan=study_results.plan._replace(split_per_seed=split_per_seed))
    assert f"\n{sentence}\n" in page_text(results, tmp_path)


def test_page_names_all_processors(finished_study, tmp_path):
    """The record of a run from before processors were stored has none, so the page names its device."""
    record = finished_study.folder / "rho10" / "tsc_s0" / "args.json"
    about = json.loads(record.read_text())
    del about["processor"]
    record.write_text(json.dumps(about))
    assert "Machines: box, Fast CPU, PyTorch 2; box, cpu, PyTorch 2." in page_text(finished_study.results(), tmp_path)


def test_page_is_written_from_an_archive(finished_study, tmp_path):
    archive = tmp_path / "study.zip"
    write_archive(finished_study.folder, archive)
    content = archive.read_bytes()
    folders = ["--folder", str(tmp_path / "elsewhere"), "--output", str(tmp_path / "docs")]
    command.main([str(tmp_path / "small.ini"), "--page", "--archive", str(archive), *folders])
    assert (tmp_path / "docs" / "results_small.csv").read_text() == csv_table(finished_study.results())
    assert archive.read_bytes() == content


def test_page_from_a_missing_archive_is_refused(write_plan, tmp_path):
    archive, folder = tmp_path / "study.zip", tmp_path / "runs"
    words = [str(write_plan()), "--page", "--archive", str(archive), "--folder", str(folder)]
    refusal(lambda: command.main(words), archive)
    assert not folder.exists()
