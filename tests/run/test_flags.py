"""A flag declares all facts about itself in its one `add_argument`."""

from argparse import Namespace

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy
from tests.refusals import exit_message, line_with
from utils.cli.flags import When, declared_flags, describe_arguments, effect_of
from utils.cli.parser import Parser, parse

FAST = When("with --fast", lambda args: args.fast)
SMALL = When("with --size {size}", lambda args: args.size < 3)


@pytest.fixture
def parser() -> Parser:
    parser = Parser()
    group = parser.add_argument_group("Group")
    group.add_argument("--size", type=int, default=5)
    group.add_argument("--fast", action="store_true", legacy=False)
    group.add_argument("--folder", affects_result=False)
    group.add_argument("--list", affects_result=False, by_content=True)
    group.add_argument("--stop", type=int, affects_result=False, same_everywhere=True)
    group.add_argument("-p", "--power", type=float, default=1.0, ignored=(FAST,), refused=(SMALL,))
    group.add_argument("--shape", default="round", legacy=lambda args: f"shape of {args.size}")
    return parser


def test_values_of_a_list_may_follow_a_flag():
    parser = Parser()
    parser.add_argument("first")
    parser.add_argument("others", nargs="*")
    parser.add_argument("--size", type=int)
    assert parser.parse_args(["a", "--size", "3", "b", "c"]).others == ["b", "c"]
    assert parser.parse_args(["a", "b", "--size", "3", "c"]).others == ["b", "c"]


def described(parser: Parser, words: str, **given):
    return describe_arguments(parser, parse(parser, words.split()), **given)


def test_flag_is_ignored_with_a_note_only_if_typed(parser, capsys):
    parse(parser, ["--fast"])
    assert not capsys.readouterr().out
    parse(parser, ["--fast", "--power", "1"])
    line_with(capsys.readouterr().out, "note", "--power", "--fast")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("--knn-k 5", ("--knn-k", "--monitor-freq")),
        ("--knn-vote class-balanced --online-probe adjusted", ("--knn-vote", "--monitor-freq")),
        ("--name a --save-folder b --run-dir c", ("--name", "--save-folder", "--run-dir")),
    ],
)
def test_stage1_reports_flags_without_effect(words, facts, capsys):
    parse(stage1.get_args_parser(), words.split())
    line_with(capsys.readouterr().out, "note", *facts)


def test_flag_is_refused_with_the_value_of_the_other_flag(parser, capsys):
    parse(parser, ["--size", "2"])
    assert "--size 2" in exit_message(lambda: parse(parser, ["--size", "2", "-p", "3"]), capsys)


def test_only_flags_that_affect_the_result_count_as_changed(parser):
    then = described(parser, "--size 4 --folder a --list a --stop 1").values
    now = described(parser, "--size 5 --folder b --list b --stop 2")
    assert now.changes_since(then) == {"size": "4 -> 5"}


def test_missing_value_of_old_checkpoint_is_the_declared_one(parser):
    now = described(parser, "--fast", facts={"hash": "x", "mode": "new"}, legacy={"mode": "old"})
    assert now.changes_since({"size": 5}) == {
        "fast": "False -> True",
        "mode": "old -> new",
        "shape": "shape of 5 -> round",
    }


def test_flags_of_the_result_and_those_declared_so_agree_in_all_processes(parser):
    agreed = described(parser, "--stop 3", facts={"hash": "x"}).agreed()
    assert agreed == {"size": 5, "fast": False, "stop": 3, "power": 1.0, "shape": "round", "hash": "x"}


def test_values_are_plain_and_sorted(parser):
    values = describe_arguments(parser, Namespace(size=5, where=parser.prog.__class__, list=[1])).values
    assert [*values] == ["list", "size", "where"] and values["where"] == "<class 'str'>"


def test_new_flag_is_one_declaration(monkeypatch):
    """A flag that is added to a script's parser is known to checks of resumed runs and to reports."""
    plain = stage1.get_args_parser

    def with_new_flag() -> Parser:
        parser = plain()
        parser.add_argument_group("New").add_argument("--new", type=int, default=1, affects_result=False)
        return parser

    monkeypatch.setattr(stage1, "get_args_parser", with_new_flag)
    declared_flags.cache_clear()
    try:
        (new,) = (flag for flag in declared_flags() if flag.dest == "new")
        assert not effect_of(new).affects_result
    finally:
        declared_flags.cache_clear()


@pytest.mark.parametrize("script", [stage1, stage2, cross_entropy])
def test_every_flag_of_a_script_declares_its_effect(script):
    flags = [action for action in script.get_args_parser()._actions if action.dest != "help"]
    assert all(hasattr(flag, "effect") for flag in flags)
    free = {flag.dest for flag in flags if not effect_of(flag).affects_result}
    assert {"run_dir", "resume", "workers", "device"} <= free and not free & {"lr", "epochs", "arch", "amp", "dataset"}
