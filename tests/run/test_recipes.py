"""Recipes: files of flags passed as @FILE, and the recipes of the project."""

import errno
import os
import random
import re

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.splits.__main__ import get_args_parser as splits_parser
from tests import ROOT
from tests.refusals import at_line, exit_message, refusal
from tools.soak.mutations import damage_bytes
from utils.cli.numbers import positive_int
from utils.cli.parser import Parser
from utils.errors import InputError


@pytest.fixture
def parser():
    parser = Parser(description="a parser")
    parser.add_argument("--epochs", type=positive_int, default=1)
    parser.add_argument("--cos", action="store_true")
    parser.add_argument("--schedule", type=int, nargs="*")
    parser.add_argument("--name", default="")
    parser.add_argument("--folder")
    return parser


@pytest.fixture
def write_recipe(tmp_path):
    def write(text: str, name: str = "recipe.txt") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return f"@{tmp_path / name}"

    return write


def test_recipe_lines_have_flags_values_and_comments(parser, write_recipe):
    argument = write_recipe(
        "# all of it\n\n--epochs 5 --cos  # five\n--schedule 2 3\n   \n--name 'two words # no comment'\n"
    )
    args = parser.parse_args([argument])
    assert vars(args) == {
        "epochs": 5,
        "cos": True,
        "schedule": [2, 3],
        "name": "two words # no comment",
        "folder": None,
    }


def test_later_flags_override_earlier_flags(parser, write_recipe):
    argument = write_recipe("--epochs 5\n--epochs 6")
    assert parser.parse_args([argument]).epochs == 6
    assert parser.parse_args([argument, "--epochs", "7"]).epochs == 7
    assert parser.parse_args(["--epochs", "7", argument]).epochs == 6


def test_recipe_includes_recipe_relative_to_itself(parser, write_recipe, tmp_path, monkeypatch):
    write_recipe("--epochs 5 --cos", "inner/base.txt")
    write_recipe("@base.txt\n--epochs 6", "inner/middle.txt")
    argument = write_recipe("@inner/middle.txt  # and more\n--name x")
    monkeypatch.chdir("/")
    args = parser.parse_args([argument])
    assert (args.epochs, args.cos, args.name) == (6, True, "x")


def test_value_may_begin_with_at_sign(parser):
    assert parser.parse_args(["--name=@home"]).name == "@home"


@pytest.mark.parametrize(
    ("text", "number", "facts"),
    [
        ("--epochs 5\n\n--epoch 6", 3, ["--epoch", "6"]),
        ("--epochs five", 1, ["--epochs", "five"]),
        ("--epochs 0", 1, ["--epochs", "0"]),
        ("--epochs", 1, ["--epochs"]),
        ("--schedule 2\n--name x --schedule ''", 2, ["--schedule", "''"]),
        ("\n--folder ''", 2, ["--folder"]),
        ("epochs 5", 1, ["epochs 5"]),
        ("--cos 'open", 1, []),
        ("\n@absent.txt", 2, ["absent.txt", os.strerror(errno.ENOENT)]),
        ("@recipe.txt", 1, []),
        ("@a\0b.txt", 1, []),
        ("@a.txt --cos", 1, ["--cos", "@a.txt"]),
    ],
)
def test_invalid_line_is_named_by_file_and_number(text, number, facts, parser, tmp_path):
    (tmp_path / "recipe.txt").write_text(text)
    refusal(lambda: parser.parse_args([f"@{tmp_path / 'recipe.txt'}"]), at_line("recipe.txt", number), *facts)


def test_recipe_that_is_not_utf8_is_refused(parser, tmp_path):
    (tmp_path / "recipe.txt").write_bytes(b"--cos\n\xff")
    refusal(lambda: parser.parse_args([f"@{tmp_path / 'recipe.txt'}"]), "recipe.txt", "UTF-8")


def test_parser_is_usable_after_recipe_error(parser, write_recipe, capsys):
    with pytest.raises(InputError):
        parser.parse_args([write_recipe("--epochs 0")])
    exit_message(lambda: parser.parse_args(["--epochs", "0"]), capsys, "--epochs", "0")


def test_recursive_recipes_are_refused(parser, write_recipe, tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "link.txt")
    refusal(lambda: parser.parse_args([f"@{tmp_path / 'link.txt'}"]), tmp_path / "link.txt")
    write_recipe("--cos\n@recipe.txt", "other.txt")
    argument = write_recipe("@other.txt")
    refusal(lambda: parser.parse_args([argument]), at_line("other.txt", 2), "recipe.txt")


def test_chain_of_many_recipes_is_refused(parser, write_recipe):
    for number in range(1200):
        write_recipe(f"@{number + 1}.txt", f"{number}.txt")
    refusal(lambda: parser.parse_args([write_recipe("@0.txt")]), re.compile(r"\d+\.txt"))


@pytest.mark.parametrize("line", ["--cos\n", "--epochs 123456789\n"])
def test_huge_recipe_is_refused(line, parser, write_recipe):
    refusal(lambda: parser.parse_args([write_recipe(line * 200_000)]), "recipe.txt")


def test_recipes_that_include_others_twice_are_refused(parser, write_recipe):
    """Each file doubles the number of lines."""
    for number in range(15):
        write_recipe(f"@{number + 1}.txt\n@{number + 1}.txt", f"{number}.txt")
    write_recipe("--cos", "15.txt")
    refusal(lambda: parser.parse_args([write_recipe("@0.txt")]), "1000")


def test_home_and_variables_in_paths_are_expanded(write_recipe, monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("ABSENT", raising=False)
    parser = Parser()
    parser.add_argument("--folder", metavar="DIR")
    parser.add_argument("--name")
    args = parser.parse_args([write_recipe("--folder '$HOME/runs'\n--name '$HOME'")])
    assert (args.folder, args.name) == ("/home/me/runs", "$HOME")
    assert parser.parse_args(["--folder=~/runs"]).folder == "/home/me/runs"
    exit_message(lambda: parser.parse_args([write_recipe("--folder $ABSENT/runs")]), capsys, "--folder", "$ABSENT")


def test_recipe_after_subcommand_uses_its_flags(write_recipe):
    args = splits_parser().parse_args(["make", "cifar10", write_recipe("--imbalance 7")])
    assert (args.command, args.source, args.imbalance) == ("make", "cifar10", 7)
    argument = write_recipe("--repeat")
    refusal(lambda: splits_parser().parse_args(["make", "cifar10", argument]), at_line("recipe.txt", 1), "--repeat")


def test_help_mentions_recipes():
    for script in (stage1, stage2):
        assert "@FILE" in script.get_args_parser().format_help()


@pytest.mark.parametrize("name", ["cifar", "imagenet_tsc"])
def test_damaged_recipe_is_read_or_refused_in_one_line(name, tmp_path, capsys):
    rng, parser = random.Random(0), stage1.get_args_parser()
    for other in (ROOT / "recipes").glob("*.txt"):
        (tmp_path / other.name).write_bytes(other.read_bytes())
    path, refused = tmp_path / f"{name}.txt", 0
    for _ in range(100):
        path.write_bytes(damage_bytes((ROOT / "recipes" / path.name).read_bytes(), rng))
        try:
            parser.parse_args([f"@{path}"])
        except InputError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert 5 < refused < 95 and not any(capsys.readouterr())


RECIPES = sorted((ROOT / "recipes").glob("*.txt"))


def script_for(path):
    return stage2 if path.stem.endswith(("probe", "drw")) else stage1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_bundled_recipe_is_valid(path):
    script_for(path).get_args_parser().parse_args([f"@{path}"])
    assert path.read_text().startswith("# ")  # a comment with source and result


def test_every_row_of_the_papers_tables_has_a_recipe():
    rows = {f"{data}_{method}" for data in ("imagenet", "inat") for method in ("kcl", "tsc", "probe")}
    rows |= {f"cifar{c}_{method}_{rho}" for c in (10, 100) for method in ("kcl", "tsc") for rho in (100, 50, 10)}
    assert rows <= {path.stem for path in RECIPES}


def recipe_args(name: str) -> dict:
    path = ROOT / "recipes" / f"{name}.txt"
    return vars(script_for(path).get_args_parser().parse_args([f"@{path}"]))


TARGETS = {"targeted": (False, True), "tw": (1.0, 0.2)}


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ("imagenet_kcl", "imagenet_tsc", {**TARGETS, "sep_t": (False, True), "epochs": (200, 400)}),
        ("imagenet_kcl", "inat_kcl", {"dataset": ("imagenet", "inat")}),
        ("imagenet_tsc", "inat_tsc", {"dataset": ("imagenet", "inat")}),
        ("imagenet_probe", "inat_probe", {"dataset": ("imagenet", "inat"), "lr": (10, 30)}),
        ("cifar10_kcl_100", "cifar10_tsc_100", TARGETS),
        ("cifar10_kcl_100", "cifar100_kcl_100", {"dataset": ("cifar10", "cifar100")}),
        ("cifar10_tsc_100", "cifar100_tsc_50", {"dataset": ("cifar10", "cifar100"), "imbalance": (100, 50)}),
        ("cifar100_kcl_10", "cifar100_tsc_10", TARGETS),
    ],
)
def test_recipes_differ_only_as_their_names_imply(one, other, difference):
    one, other = recipe_args(one), recipe_args(other)
    assert {name: (one[name], other[name]) for name in one if one[name] != other[name]} == difference


def test_recipe_of_the_kcl_authors_differs_from_that_of_the_tsc_authors_where_their_code_does():
    theirs, ours = recipe_args("imagenet_kcl_authors"), recipe_args("imagenet_kcl")
    changed = {name: theirs[name] for name in ours if theirs[name] != ours[name]}
    queue = {"queue_init": "keys", "positives": "first"}
    assert changed == {"mlp": False, "views": "plain", "weight_decay": 5e-4, **queue}
    probe = recipe_args("imagenet_kcl_authors_probe")
    assert (probe["sampling"], probe["lr"], probe["weight_decay"], probe["epochs"]) == ("instance", 30, 0, 100)


def test_recipes_have_published_hyperparameters():
    imagenet, cifar, release = (
        recipe_args("imagenet_kcl"),
        recipe_args("cifar10_kcl_100"),
        recipe_args("cifar10_tsc_release"),
    )
    facts = ("contrast", "batch_size", "lr", "cos", "lr_end", "warmup_epochs", "epochs", "K", "moco_dim", "mlp")
    assert [imagenet[fact] for fact in facts] == ["queue", 256, 0.1, True, 0, 0, 200, 6, 128, True]
    assert [cifar[fact] for fact in facts] == ["batch", 1024, 0.5, True, 0.5e-3, 10, 1000, 6, 128, True]
    assert [release[fact] for fact in facts] == ["batch", 256, 0.05, True, 0.05e-3, 0, 1000, 6, 10, True]
    assert (release["tr"], release["loss_form"], release["kcl_epochs"]) == (25, "release", 0)
    assert (cifar["device_aug"], release["device_aug"]) == ("auto", "off")
    ldam = recipe_args("cifar_ldam_drw")
    facts = ("finetune", "head", "epochs", "schedule", "lr", "batch_size", "weight_decay", "views")
    assert [ldam[fact] for fact in facts] == [True, "ldam", 200, [140, 180, 190], 0.1, 128, 2e-4, "padded"]
