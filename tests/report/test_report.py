"""report.html and report.md: what they contain, and what they report where something is missing."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.refusals import refusal
from utils.measure.feature_file import NAME
from utils.report import __main__ as report
from utils.report import sections
from utils.report.figures import curves
from utils.report.page import Section, Table, html_page, markdown_page
from utils.report.runs import read_run
from utils.report.sections import in_two_dimensions, spread_out
from utils.report.style import draw


@pytest.fixture(scope="module")
def pages(reported_run, tmp_path_factory):
    """The two pages of `reported_run` beside a copy of it, which has no features."""
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
    """The paragraphs that name every fact."""
    found = re.findall(r"<p>(.*?)</p>", html)
    return [text for text in found if all(fact in text for fact in facts)]


def captions(html: str, *facts: str) -> list[str]:
    found = re.findall(r"<figcaption>(.*)</figcaption>", html)
    return [text for text in found if all(fact in text for fact in facts)]


def test_both_pages_show_the_same_sections_the_result_first(pages):
    of_html, of_md = re.findall("<h2>(.*)</h2>", pages["html"]), re.findall("^## (.*)$", pages["md"], re.MULTILINE)
    assert of_html == of_md and len({*of_html}) == len(of_html) == 8
    first, second, *_, commands, arguments = pages["md"].split("\n## ")[1:]
    assert "| selected (" in first and "/loss.svg)" in second
    assert "python train.py" in commands and "<details>" in arguments
    of_features = [name for name in re.findall(r"/(\w+)\.svg\)", pages["md"]) if name.endswith("_0")]
    assert of_features == ["centres_0", "targets_0", "map_0"]


def test_arguments_that_differ_and_no_others(pages):
    section = pages["md"].split("\n## ")[-1].split("<details>")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    assert [(row[0].split()[0], *row[1:]) for row in rows] == [("dataset", "custom", "mine"), ("tw", "0.2", "0.7")]


def test_the_table_has_the_results(pages, probe_run):
    results = json.loads((probe_run / "results.json").read_text())
    assert pages["md"].count(f"| selected ({results['selected']['epoch']}) |") == 2
    assert f"{results['best_on_test']['acc1']:.2f}" in pages["html"]


def test_curves_are_those_of_the_logs(reported_run, monkeypatch):
    drawn = {}
    monkeypatch.setattr(sections, "draw", lambda name, caption, figure, lines, *_: drawn.update({name: lines}))
    run = read_run(reported_run)
    sections.curves([run])
    first, second = run.pretraining.epochs, run.probe.epochs
    assert drawn["loss"] == {run.name: ([1, 2], [record["loss"] for record in first])}
    assert drawn["target_cosine"] == {run.name: ([2], [first[1]["target_cosine"]])}  # KCL has none
    for name, split in ((run.name, "val"), (f"{run.name} (test)", "test")):
        assert drawn["probe"][name] == ([1, 2], [record[split]["top1"] for record in second])


def test_each_section_without_features_names_the_file_and_the_command_that_writes_it(pages):
    command = "<code>python train.py --dataset mine --resume auto --monitor-freq 1</code>"
    assert len(paragraphs(pages["html"], "other/features.npz", command)) == 3


def test_sections_name_the_epoch_of_the_features(pages):
    assert len(captions(pages["html"], "run/probe", "epoch 2")) == 3
    assert re.search(r"\| U_k \| NC1 \| NC2 \|\n.*\n\| .*run/probe \| 2 \| \d", pages["md"])


def test_the_html_needs_nothing_but_itself(pages):
    addresses = re.findall(r"""(?:src|srcset|href|url)[=(]["']?([^"')\s>]+)""", pages["html"])
    assert len(addresses) > 10 and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "<script" not in pages["html"]


def test_the_markdowns_pictures_are_beside_it(pages):
    pictures = re.findall(r"!\[.*\]\((.*)\)", pages["md"])
    assert len(pictures) == len(set(pictures)) >= 8
    assert all((pages["out"] / picture).read_text().startswith("<?xml") for picture in pictures)


def test_a_run_without_probe_or_checkpoint_still_has_a_report(tsc_run, tmp_path):
    run = tmp_path / "<run> & co"
    run.mkdir()
    shutil.copy(tsc_run / "args.json", run)
    report.main([str(run)])
    page = (run / "report.html").read_text()
    for file in ("results.json", "log.jsonl", "features.npz"):
        assert paragraphs(page, file), file
    assert "&lt;run&gt; &amp; co" in page and "<run>" not in page


def test_a_damaged_file_is_named_with_the_command_that_writes_it(reported_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reported_run, run)
    (run / NAME).write_bytes((run / NAME).read_bytes()[:1000])
    report.main([str(run)])
    assert len(paragraphs((run / "report.html").read_text(), NAME, "--resume auto --monitor-freq 1</code>")) == 3


def test_a_folder_of_another_version_has_a_report(reported_run, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(reported_run, run)
    about = json.loads((run / "args.json").read_text())
    del about["args"]["moco_dim"]
    (run / "args.json").write_text(json.dumps(about))
    report.main([str(run)])
    assert len(captions((run / "report.html").read_text(), "old", "epoch 2")) == 3


@pytest.fixture(scope="module")
def pictures(reported_run, tmp_path_factory) -> dict[str, str]:
    """Those of the report of `reported_run` alone."""
    out = tmp_path_factory.mktemp("alone")
    report.main([str(reported_run), "--output", str(out)])
    return {path.name: path.read_text() for path in (out / "report_figures").iterdir()}


@pytest.mark.parametrize("data_exists", [False, True])
def test_a_report_reads_only_the_folder_and_makes_no_data(data_exists, reported_run, pictures, tmp_path, capsys):
    """Data and checkpoints are gone, or an empty folder is where the data was: the same report."""
    run, root, out = (tmp_path / name for name in ("run", "data", "out"))
    shutil.copytree(reported_run, run, ignore=shutil.ignore_patterns("*.pth.tar"))
    about = json.loads((run / "args.json").read_text())
    about["args"]["data_root"] = str(root)
    (run / "args.json").write_text(json.dumps(about))
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
def test_bad_input(words, facts, tsc_run, probe_run):
    refusal(lambda: report.main(words.format(run=tsc_run).split()), *facts)


def test_names_are_what_sets_paths_apart(tsc_run, probe_run, tmp_path):
    for name in ("kcl", "tsc"):
        shutil.copytree(tsc_run, tmp_path / name / "run")
    runs = [read_run(tmp_path / name / "run" / "probe") for name in ("kcl", "tsc")]
    assert [run.name for run in report.named(runs)] == ["kcl", "tsc"]
    assert report.named(runs[:1])[0].name == "probe"
    nested = [read_run(path) for path in (tmp_path / "kcl" / "run", tmp_path / "kcl" / "run" / "probe")]
    assert [run.name for run in report.named(nested)] == ["run", "run/probe"]


def test_text_is_escaped_and_backticks_become_code():
    section = Section("T", ("a `b<c` d",), (Table(["h"], [["m | n"]], 1, "above"),))
    html, text = html_page("t", [section]), markdown_page("t", [section], "f")
    assert (
        "<p>a <code>b&lt;c</code> d</p>" in html and '<td class="word">m | n</td>' in html and "<h3>above</h3>" in html
    )
    assert "| m \\| n |" in text and "### above" in text


def test_the_same_run_draws_the_same_picture_in_two_themes():
    one, again = (draw("n", "c", curves, {"a": ([1, 2], [3.0, 4.0])}, "loss", None) for _ in range(2))
    assert one == again
    assert one.light != one.dark
    assert "#e6e8eb" in one.dark and "#e6e8eb" not in one.light


def test_few_images_of_a_sorted_list_are_from_all_of_it():
    assert spread_out(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread_out(101, 3).tolist() == [0, 50, 100]


def test_two_dimensions_are_shown_as_they_are_and_more_by_neighbours():
    plane = np.eye(2)
    assert in_two_dimensions(plane)[0] is plane
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(5)[:2], 10, axis=0) + 0.01 * rng.normal(size=(20, 5))
    points, how = in_two_dimensions(groups)
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    assert how.startswith("t-SNE")
    assert (distances.argsort(axis=1)[:, 1] // 10 == np.arange(20) // 10).all()  # the nearest is of the same group
