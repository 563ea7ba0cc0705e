"""Arguments in a report: the command of each stage, and a folded table of all arguments."""

import argparse
import json
import re
import shutil
import sys
from html import unescape
from pathlib import Path

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy
from tests.refusals import line_with
from utils.report import __main__ as report
from utils.report.runs import read_run
from utils.report.typed import argument_name, typed_flags
from utils.run.logger import describe_run

COMMANDS = {
    "run": "python main_moco_supcon_imba.py --dataset digits --lr 0.03 -b 64 --seed 1 --run-dir 'a b' -j 0 --lr 0.1",
    "probe": "python main_lincls_imba.py --dataset digits --schedule 1 2 --resume auto --pretrained a/last.pth.tar",
}
SHORT_COMMANDS = {"run": "main_moco_supcon_imba.py --dataset digits -b 64 --lr 0.1"}
SHORT_COMMANDS["probe"] = "main_lincls_imba.py --dataset digits --schedule 1 2"


@pytest.fixture(scope="module")
def old_run(tsc_run, probe_run, tmp_path_factory) -> Path:
    """Return a run folder and its probe whose args.json hold only command and arguments, one of them hostile."""
    run = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(tsc_run, run)
    for folder in (run, run / "probe"):
        args = json.loads((folder / "args.json").read_text())["args"]
        hostile = {"views": "</details><script>alert(1)</script>"} if folder == run else {}
        (folder / "args.json").write_text(json.dumps({"command": COMMANDS[folder.name], "args": args | hostile}))
    return run


@pytest.fixture(scope="module")
def pages(old_run):
    report.main([str(old_run)])
    return {kind: (old_run / f"report.{kind}").read_text() for kind in ("html", "md")}


def test_report_shows_the_command_of_each_stage(pages):
    for number, name in enumerate(("run", "probe"), start=1):
        line_with(pages["html"], "run", f"stage {number}", f"<code>{SHORT_COMMANDS[name]}</code>")
        line_with(pages["md"], "run", f"stage {number}", f"`{SHORT_COMMANDS[name]}`")


def test_all_arguments_are_in_one_folded_table(old_run, pages):
    """A single run has no table of differences, so its arguments appear only in the folded table."""
    run = read_run(old_run)
    names = [f"{name} (stage {number})" for number, stage in run.stages.items() for name in stage.args]
    rows = {"html": r'<td class="word">(\w+ \(stage \d\))</td>', "md": r"^\| (\w+ \(stage \d\)) \|"}
    for kind, page in pages.items():
        assert re.findall("<details.*", page) == ["<details>"]  # one fold, which is closed
        before, inside = page.split("<details>\n<summary>")
        assert "(stage " not in before.split("<h2>" if kind == "html" else "\n## ")[-1]
        assert re.findall(rows[kind], inside.split("</details>")[0], re.MULTILINE) == names
    counts = ", ".join(map(str, run.results["train_counts"]))
    assert f"| {counts} |\n\n</details>\n" in pages["md"]


@pytest.mark.parametrize("kind", ["html", "md"])
def test_argument_values_are_escaped(kind, pages):
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert kind == "md" or f'content="{policy}"' in pages[kind]
    assert pages[kind].count("</details>") == 1 and "<script" not in pages[kind]
    assert "</details><script>alert(1)</script>" in unescape(pages[kind].split("<details>")[1])


def test_equal_runs_have_no_table_of_differences(old_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(old_run, other)
    report.main([str(old_run), str(other), "--output", str(tmp_path)])
    text = (tmp_path / "report.md").read_text().split("\n## ")[-1]
    before, _ = text.split("<details>")
    assert "seed" in before.splitlines()[-2] and "|" not in before
    assert text.count(f"stage 1: `{SHORT_COMMANDS['run']}`") == 2


def test_run_without_command_has_report(old_run, tmp_path):
    shutil.copytree(old_run, tmp_path / "run", ignore=shutil.ignore_patterns("probe"))
    record = json.loads((old_run / "args.json").read_text())
    (tmp_path / "run" / "args.json").write_text(json.dumps({"args": record["args"]}))
    report.main([str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.md").read_text()
    assert len(re.findall("run, stage 1: `.+`", text)) == 2  # command and arguments


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--lr 1 --cos --seed 0 --workers 3 -p 0 --mlp", "--lr 1 --cos --mlp"),
        ("--run-dir=a/b --lr=1 -j4 -b8 --gpu 0", "--lr=1 -b8"),
        ("--init-from w.pth --train-txt t.txt --data-root d", "--init-from w.pth --train-txt t.txt"),
        ("--crop-scale 0.2 1 --rank -1 --tw 1 --schedule --K 0", "--crop-scale 0.2 1 --tw 1 --schedule --K 0"),
        ("-b 8 --lr 1 --batch-size 16 --learning-rate 2", "--batch-size 16 --learning-rate 2"),
        ("--name '-b 8 x' --views 'a  b'", "--views 'a  b'"),
        ("--lr 1 --seed 0 @recipes/x.txt --lr 2", "@recipes/x.txt --lr 2"),  # older versions stored the recipe
        ("--name it's --lr 1", "--lr 1"),  # the first version stored commands without quotes
        ("tests/report --lr 1", "tests/report --lr 1"),
        ("", ""),
    ],
)
def test_typed_keeps_flags_that_affect_results(words, expected):
    assert typed_flags(f"python some/where/train.py {words}") == f"train.py {expected}".rstrip()


def test_recipe_flags_count_as_typed(tmp_path, monkeypatch):
    (tmp_path / "recipe.txt").write_text("--lr 1 -b 8  # high\n--seed 0\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"@{tmp_path / 'recipe.txt'}", "--lr", "2"])
    assert typed_flags(describe_run({})["command"]) == "train.py -b 8 --lr 2"


@pytest.mark.parametrize("script", [stage1, stage2, cross_entropy])
def test_argument_of_knows_every_flag(script):
    actions = [a for a in script.get_args_parser()._actions if not isinstance(a, argparse._HelpAction)]
    flags = {flag: action.dest for action in actions for flag in action.option_strings}
    assert {flag: argument_name(flag) for flag in flags} == flags
