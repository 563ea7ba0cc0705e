"""report.html and report.md: their content, and their messages about missing files."""

import json
import re
import resource
import shutil
import sys

import pytest
from matplotlib.figure import Figure

from tests.refusals import exit_message, refusal
from utils.errors import run as run_main
from utils.measure.feature_file import NAME
from utils.report import __main__ as report
from utils.report import build, sections
from utils.report.figures import curves
from utils.report.page import Section, Table, format_html_page, format_markdown_page
from utils.report.runs import read_run
from utils.report.style import draw, save_figure


@pytest.fixture(scope="module")
def pages(reported_run, tmp_path_factory):
    """Return the HTML and Markdown report of `reported_run` and of a copy without features."""
    folder = tmp_path_factory.mktemp("report")
    other = folder / "other"
    shutil.copytree(reported_run, other, ignore=shutil.ignore_patterns(NAME))
    args = json.loads((other / "args.json").read_text())
    args["args"] |= {"tw": 0.7, "dataset": "mine"}
    args["command"] = "python train.py --dataset mine"
    (other / "args.json").write_text(json.dumps(args))
    report.main([str(reported_run / "probe"), str(other), "--output", str(folder / "out")])
    return {kind: (folder / "out" / f"report.{kind}").read_text() for kind in ("html", "md")} | {"out": folder / "out"}


def paragraphs(html: str, *facts: str) -> list[str]:
    """Return the paragraphs that contain every fact."""
    found = re.findall(r"<p>(.*?)</p>", html)
    return [text for text in found if all(fact in text for fact in facts)]


def captions(html: str, *facts: str) -> list[str]:
    found = re.findall(r"<figcaption>(.*)</figcaption>", html)
    return [text for text in found if all(fact in text for fact in facts)]


def test_html_and_markdown_have_same_sections(pages):
    html_titles, md_titles = (
        re.findall("<h2>(.*)</h2>", pages["html"]),
        re.findall("^## (.*)$", pages["md"], re.MULTILINE),
    )
    assert html_titles == md_titles and len({*html_titles}) == len(html_titles) == 9
    first, second, *_, commands, arguments = pages["md"].split("\n## ")[1:]
    assert "| selected (" in first and "/loss.svg)" in second
    assert "python train.py" in commands and "<details>" in arguments
    figures = [name for name in re.findall(r"/(\w+)\.svg\)", pages["md"]) if name.endswith("_0")]
    assert figures == ["confusion_0", "centres_0", "targets_0", "map_0"]


def test_only_differing_arguments_are_listed(pages):
    section = pages["md"].split("\n## ")[-1].split("<details>")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    assert [(row[0].split()[0], *row[1:]) for row in rows] == [("dataset", "custom", "mine"), ("tw", "0.2", "0.7")]


def test_report_table_has_the_results(pages, probe_run):
    results = json.loads((probe_run / "results.json").read_text())
    assert pages["md"].count(f"| selected ({results['selected']['epoch']}) |") == 2
    assert f"{results['best_on_test']['acc1']:.2f}" in pages["html"]


def test_curves_match_the_logs(reported_run, monkeypatch):
    drawn = {}
    monkeypatch.setattr(sections, "draw", lambda name, caption, figure, lines, *_: drawn.update({name: lines}))
    run = read_run(reported_run)
    sections.curves([run])
    first, second = run.pretraining.epochs, run.probe.epochs
    assert drawn["loss"] == {run.name: ([1, 2], [record["loss"] for record in first])}
    assert drawn["target_cosine"] == {run.name: ([2], [first[1]["target_cosine"]])}  # the KCL epoch has no value
    for name, split in ((run.name, "val"), (f"{run.name} (test)", "test")):
        assert drawn["probe"][name] == ([1, 2], [record[split]["top1"] for record in second])


def test_missing_features_section_names_file_and_command(pages):
    command = "<code>python train.py --dataset mine --resume auto --monitor-freq 1</code>"
    assert len(paragraphs(pages["html"], "other/features.npz", command)) == 3


def test_captions_name_the_epoch_of_the_features(pages):
    assert len(captions(pages["html"], "run/probe", "epoch 2")) == 3
    assert re.search(r"\| U_k \| NC1 \| NC2 \|\n.*\n\| .*run/probe \| 2 \| \d", pages["md"])


def test_html_report_is_self_contained(pages):
    addresses = re.findall(r"""(?:src|srcset|href|url)[=(]["']?([^"')\s>]+)""", pages["html"])
    assert len(addresses) > 10 and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "<script" not in pages["html"]


def test_markdown_figures_exist(pages):
    pictures = re.findall(r"!\[.*\]\((.*)\)", pages["md"])
    assert len(pictures) == len(set(pictures)) >= 8
    assert all((pages["out"] / picture).read_text().startswith("<?xml") for picture in pictures)


def test_runs_after_the_first_are_in_the_tables_only(reported_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "MAX_DRAWN", 1)
    for name in ("one", "two"):
        shutil.copytree(reported_run, tmp_path / name, ignore=shutil.ignore_patterns(NAME))
    report.main([str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text()
    assert paragraphs(page, "first 1: one.")
    assert captions(page, "one") and not captions(page, "two")
    assert page.count('<td class="word">two</td>') == page.count('<td class="word">one</td>') > 0


def test_legend_of_all_drawn_runs_leaves_room_for_the_curves(recwarn):
    names = [f"run {i}{split}" for i in range(sections.MAX_DRAWN) for split in ("", " (test)")]
    draw("n", "c", curves, {name: ([1, 2], [3.0, 4.0]) for name in names}, "loss", None)
    assert not recwarn.list


def test_run_without_probe_or_checkpoint_has_report(tsc_run, tmp_path):
    run = tmp_path / "<run> & co"
    run.mkdir()
    shutil.copy(tsc_run / "args.json", run)
    report.main([str(run)])
    page = (run / "report.html").read_text()
    for file in ("results.json", "log.jsonl", "features.npz"):
        assert paragraphs(page, file), file
    assert "&lt;run&gt; &amp; co" in page and "<run>" not in page


def test_damaged_features_are_named_with_command(reported_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reported_run, run)
    (run / NAME).write_bytes((run / NAME).read_bytes()[:1000])
    report.main([str(run)])
    assert len(paragraphs((run / "report.html").read_text(), NAME, "--resume auto --monitor-freq 1</code>")) == 3


def test_run_of_older_version_has_report(reported_run, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(reported_run, run)
    record = json.loads((run / "args.json").read_text())
    del record["args"]["moco_dim"]
    (run / "args.json").write_text(json.dumps(record))
    report.main([str(run)])
    assert len(captions((run / "report.html").read_text(), "old", "epoch 2")) == 3


@pytest.fixture(scope="module")
def pictures(reported_run, tmp_path_factory) -> dict[str, str]:
    """Return the figures of the report of `reported_run` alone, by file name."""
    out = tmp_path_factory.mktemp("alone")
    report.main([str(reported_run), "--output", str(out)])
    return {path.name: path.read_text() for path in (out / "report_figures").iterdir()}


@pytest.mark.parametrize("data_exists", [False, True])
def test_report_reads_only_the_run_folder(data_exists, reported_run, pictures, tmp_path, capsys):
    """The report is the same without data and checkpoints, and with an empty data folder."""
    run, root, out = (tmp_path / name for name in ("run", "data", "out"))
    shutil.copytree(reported_run, run, ignore=shutil.ignore_patterns("*.pth.tar"))
    record = json.loads((run / "args.json").read_text())
    record["args"]["data_root"] = str(root)
    (run / "args.json").write_text(json.dumps(record))
    if data_exists:
        root.mkdir()
    report.main([str(run), "--output", str(out)])
    assert list(tmp_path.rglob("data*")) == ([root] if data_exists else [])
    assert NAME not in (out / "report.html").read_text()
    assert {path.name: path.read_text() for path in (out / "report_figures").iterdir()} == pictures
    assert len(pictures) >= 8
    assert (out / "report.html").as_uri() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("", ("RUN", "--trials")),
        ("{run} {run}", ("RUN",)),
        ("{run}/probe/train", ("probe/train", "args.json")),
        ("--trials x --output y", ("--output", "RUN")),
    ],
)
def test_bad_arguments_are_refused(words, facts, tsc_run, probe_run):
    refusal(lambda: report.main(words.format(run=tsc_run).split()), *facts)


def test_runs_are_named_by_differing_path_parts(tsc_run, probe_run, tmp_path):
    for name in ("kcl", "tsc"):
        shutil.copytree(tsc_run, tmp_path / name / "run")
    runs = [read_run(tmp_path / name / "run" / "probe") for name in ("kcl", "tsc")]
    assert [run.name for run in build.with_short_names(runs)] == ["kcl", "tsc"]
    assert build.with_short_names(runs[:1])[0].name == "probe"
    nested = [read_run(path) for path in (tmp_path / "kcl" / "run", tmp_path / "kcl" / "run" / "probe")]
    assert [run.name for run in build.with_short_names(nested)] == ["run", "run/probe"]


def test_text_is_escaped_and_backticks_become_code():
    section = Section("T", ("a `b<c` d",), (Table(["h"], [["m | n"]], 1, "above"),))
    html, text = format_html_page("t", [section]), format_markdown_page("t", [section], "f")
    assert (
        "<p>a <code>b&lt;c</code> d</p>" in html and '<td class="word">m | n</td>' in html and "<h3>above</h3>" in html
    )
    assert "| m \\| n |" in text and "### above" in text


def test_full_disk_names_the_picture(tmp_path, capsys, monkeypatch):
    """A limit on the file size simulates a full disk."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restore it, because `run_main` replaces it
    picture, (soft, hard) = tmp_path / "heads.png", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        exit_message(lambda: run_main(lambda: save_figure(Figure(), picture, dpi=100)), capsys, picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_figures_are_deterministic_and_have_two_themes():
    first, second = (draw("n", "c", curves, {"a": ([1, 2], [3.0, 4.0])}, "loss", None) for _ in range(2))
    assert first == second
    assert first.light != first.dark
    assert "#e6e8eb" in first.dark and "#e6e8eb" not in first.light
