"""Reports of run folders that are damaged, or named to do harm: shown, or refused in a line."""

import csv
import io
import json
import re
import shutil

import pytest

from examples.results import figures as study_figures
from examples.results.figures import panels
from utils.errors import InputError
from utils.files import csv_text
from utils.measure.results import markdown
from utils.report import __main__ as report
from utils.report.figures import curves, heads_dots
from utils.report.page import html_page
from utils.report.runs import read_results, read_run, read_stage
from utils.report.style import draw
from utils.run.logger import RunLog, read_log

RESULTS = "results.json"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def run(tsc_run, probe_run, tmp_path):
    """A copy of a run and its probe, without what a report does not read."""
    ignored = shutil.ignore_patterns("*.pth.tar", "train", "val", "test", "*.safetensors")
    return shutil.copytree(tsc_run, tmp_path / "run", ignore=ignored)


def changed(value, at: tuple, new):
    """JSON with something else at a place; new: None of a key, to leave it out, is `...`."""
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return value


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (("selected",), [1], r"'selected' is \[1\], expected a table"),
        (("selected", "acc1"), "90", "'selected' acc1 is '90', expected percent"),
        (("last", "acc1"), None, "'last' acc1 is None"),
        (("last", "few"), 101, "'last' few is 101"),
        (("best_on_test", "balanced"), {"a": 1}, r"balanced is \{'a': 1\}"),
        (("selected", "per_class", 0), "x", r"per_class is \['x', "),
        (("selected", "per_class", 0), ..., r"per_class is of \[9, 10\] classes, train_counts of 10"),
        (("selected", "epoch"), [2], r"epoch \[2\] and seconds None, expected numbers"),
        (("selected", "values"), 0, "values is 0, expected numbers by name"),
        (("train_counts", 3), -1, r"train_counts is \[120, 77, 50, -1"),
        (("train_counts",), [0] * 10, "train_counts is .*, expected the training images of each class"),
        (("chosen",), "val", "chosen is 'val'"),
        (("chosen", "on"), 5, "chosen is"),
        (("heads",), [], r"heads is \[\], expected an entry for each"),
        (("heads",), {"ncm": None}, "head 'ncm' is None, expected a table"),
    ],
)
def test_results_that_no_probe_writes_are_named(at, new, message, run):
    path = run / "probe" / RESULTS
    path.write_text(json.dumps(changed(json.loads(path.read_text()), at, new)))
    with pytest.raises(InputError, match=rf"results\.json: .*{message}"):
        report.main([str(run)])
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"", b"5", b"[1]", b"null", DEEP.encode(), b'{"a": 1e'])
@pytest.mark.parametrize("name", ["args.json", "probe/results.json"])
def test_a_file_that_is_no_object_is_named(name, content, run):
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: (not JSON|holds a .*, expected an object)") as error:
        report.main([str(run)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (("args",), [], "has no 'args' with a seed"),
        (("args", "seed"), "1", "has no 'args' with a seed"),
        (("args", "seed"), ..., "has no 'args' with a seed"),
        (("args", "tw"), {"a": 1}, r"its argument 'tw' is \{'a': 1\}, expected what a command line gives"),
        (("args", "schedule"), [[1]], r"'schedule' is \[\[1\]\]"),
        (("args", "views"), "a\0b", r"'views' is 'a\\x00b'"),
        (("args", "pretrained"), 5, "'pretrained' is 5"),
        (("args", "lr"), 10**400, "'lr' is 1000"),
    ],
)
def test_arguments_that_no_run_has_are_named(at, new, message, run):
    path = run / "args.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), at, new)))
    with pytest.raises(InputError, match=rf"args\.json: .*{message}"):
        read_run(run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"5", "found 5, expected an object with the number of an epoch"),
        (b"{}", r"found \{\}, expected an object with the number of an epoch"),
        (b'{"epoch": "1"}', r"found \{'epoch': '1'\}"),
        (b'{"epoch": 1e3}', "found"),
        (b'{"epoch": 10000000000000000000}', "found"),
        (b'{"epoch": 1, "loss": "low"}', "'loss' is 'low', expected a number"),
        (b'{"epoch": 1, "loss": 1e999}', "'loss' is inf, expected a number"),
        (b'{"epoch": 1, "val": {"top1": [1]}}', r"'val_top1' is \[1\]"),
        (b'{"epoch": 1, "val": {"top1": {}}}', r"'val_top1' is \{\}"),
        (b"\xff\xfe\x00\x9f", "not a JSON object"),
        (DEEP.encode(), r"not a JSON object \(nested too deeply\)"),
    ],
)
def test_a_log_that_no_run_writes_is_named_and_a_run_writes_nothing(line, message, tmp_path):
    """Also where a run goes on: its folder stays as it is."""
    (tmp_path / "log.jsonl").write_bytes(b'{"epoch": 1, "loss": 2}\n' + line + b'\n{"epoch": 3}\n')
    for read in (read_log, lambda path: RunLog(path.parent, {"seed": 1}, (), 3)):
        with pytest.raises(InputError, match=rf"log\.jsonl:2: {message}.*; mend the line, or move the file away"):
            read(tmp_path / "log.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_number_that_is_none_is_a_value_that_was_not_measured(run):
    """Python and others write NaN; JSON has no such thing, and what this project writes is null."""
    log = run / "log.jsonl"
    log.write_text(re.sub(r'"(loss|seconds|lr)": [^,]*', r'"\1": NaN', log.read_text()))
    assert [record["loss"] for record in read_log(log)] == [None, None]
    report.main([str(run)])
    assert "<figcaption>loss, pre-training" not in (run / "report.html").read_text()


NAME = "_$\\frac{$<img src=x onerror=alert(1)>\x1b[31m\u202e$_^\udcff"


def test_a_name_is_letters_in_pages_and_pictures(run, tmp_path):
    """A run folder's name is no formula, no HTML and no control character; an argument's value neither."""
    other = run.rename(tmp_path / NAME.replace("/", ""))
    path = other / "args.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), ("args", "views"), NAME)))
    report.main([str(other)])
    for kind in ("html", "md"):
        text = (other / f"report.{kind}").read_text()
        assert r"\x1b[31m\u202e" in text and not re.search("[\x1b\u202e]", text)
    assert "<img src=x" not in (other / "report.html").read_text()


def test_names_in_pictures_are_drawn(tmp_path):
    lines = {NAME: ([1, 2], [3.0, 4.0]), "$a$": ([1, 2], [1.0, 2.0]), f"{NAME} (test)": ([1], [1.0])}
    figure = curves(lines, "loss", None)
    assert [text.get_text()[:2] for text in figure.legends[0].get_texts()] == [" _", r"\$", " _"]
    assert draw("n", "c", curves, lines, "loss", None, True).light.startswith("<?xml")  # log: the ticks are formulas
    entry = {"acc1": 1.0, "many": 1.0, "medium": None, "few": 2.0}
    draw("n", "c", heads_dots, {NAME: entry})
    figure, (panel,) = panels(1)
    panel.set(xlabel=r"$\frac{$ and $", ylabel="$_$")
    study_figures.save(figure, tmp_path / "a.png")


def test_a_cell_is_one_cell():
    assert markdown(["a|b"], [["c\n| d |"]]).splitlines()[2:] == [r"| c \| d \| |"]
    assert "<script" not in html_page("<script>", [])


def test_no_text_of_a_table_is_a_formula():
    texts = ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "KCL", "\r=1", "a=b", "-1.5", "+2e3"]
    rows = [*csv.reader(io.StringIO(csv_text([texts, [-1.5, None, 2]]), newline=""))]
    assert rows[0] == [*(f"'{text}" for text in texts[:5]), "KCL", r"\r=1", *texts[7:]]
    assert rows[1][:3] == ["-1.5", "", "2"]


def test_what_is_read_is_what_was_written(tsc_run, probe_run):
    assert read_stage(tsc_run).args["seed"] == 1 and len(read_results(probe_run / RESULTS)["train_counts"]) == 10
