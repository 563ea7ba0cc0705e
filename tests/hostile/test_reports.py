"""Reports of run folders with malicious names, or with values that were not measured."""

import csv
import io
import json
import re

import pytest

from examples.results import figures as study_figures
from examples.results.figures import panels
from tests.hostile.table import copy_run, replace_value
from utils.files import format_csv
from utils.measure.results import format_markdown_table
from utils.report import __main__ as report
from utils.report.figures import curves, heads_dots
from utils.report.page import format_html_page
from utils.report.runs import read_results, read_stage
from utils.report.style import draw
from utils.run.logger import read_log

RESULTS = "results.json"


@pytest.fixture
def run(tsc_run, probe_run, tmp_path):
    """A copy of a run and its probe, without the files that a report does not read."""
    return copy_run(tsc_run, tmp_path)


def test_nan_in_log_is_read_as_not_measured(run):
    """Python writes NaN, which JSON does not have. This project writes null."""
    before = captions(run)
    log = run / "log.jsonl"
    log.write_text(re.sub(r'"(loss|seconds|lr)": [^,]*', r'"\1": NaN', log.read_text()))
    assert [record["loss"] for record in read_log(log)] == [None, None]
    assert any("loss" in caption for caption in before - captions(run))


def captions(run) -> set[str]:
    """Write a report and return the captions of its figures."""
    report.main([str(run)])
    return set(re.findall("<figcaption>([^<]*)", (run / "report.html").read_text()))


NAME = "_$\\frac{$<img src=x onerror=alert(1)>\x1b[31m\u202e$_^\udcff"


def test_malicious_names_are_escaped_in_reports(run, tmp_path):
    """The name of a run folder and the values of arguments are not read as formulas, HTML or control characters."""
    other = run.rename(tmp_path / NAME.replace("/", ""))
    path = other / "args.json"
    path.write_text(json.dumps(replace_value(json.loads(path.read_text()), ("args", "views"), NAME)))
    report.main([str(other)])
    for kind in ("html", "md"):
        text = (other / f"report.{kind}").read_text()
        assert r"\x1b[31m\u202e" in text and not re.search("[\x1b\u202e]", text)
    assert "<img src=x" not in (other / "report.html").read_text()


def test_malicious_names_are_drawn_as_text(tmp_path):
    lines = {NAME: ([1, 2], [3.0, 4.0]), "$a$": ([1, 2], [1.0, 2.0]), f"{NAME} (test)": ([1], [1.0])}
    figure = curves(lines, "loss", None)
    assert [text.get_text()[:2] for text in figure.legends[0].get_texts()] == [" _", r"\$", " _"]
    assert draw("n", "c", curves, lines, "loss", None, True).light.startswith(
        "<?xml"
    )  # the tick labels of a log axis are formulas
    entry = {"acc1": 1.0, "many": 1.0, "medium": None, "few": 2.0}
    draw("n", "c", heads_dots, {NAME: entry})
    figure, (panel,) = panels(1)
    panel.set(xlabel=r"$\frac{$ and $", ylabel="$_$")
    study_figures.save(figure, tmp_path / "a.png")


def test_markdown_cells_and_html_titles_are_escaped():
    assert format_markdown_table(["a|b"], [["c\n| d |"]]).splitlines()[2:] == [r"| c \| d \| |"]
    assert "<script" not in format_html_page("<script>", [])


def test_csv_text_is_not_a_formula():
    texts = ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "KCL", "\r=1", "a=b", "-1.5", "+2e3"]
    rows = [*csv.reader(io.StringIO(format_csv([texts, [-1.5, None, 2]]), newline=""))]
    assert rows[0] == [*(f"'{text}" for text in texts[:5]), "KCL", r"\r=1", *texts[7:]]
    assert rows[1][:3] == ["-1.5", "", "2"]


def test_written_runs_can_be_read(tsc_run, probe_run):
    assert read_stage(tsc_run).args["seed"] == 1 and len(read_results(probe_run / RESULTS)["train_counts"]) == 10
