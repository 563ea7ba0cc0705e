"""Reading a plan file, and refusing an invalid one."""

from itertools import pairwise

import pytest

from examples.results import __main__ as results
from examples.results.plan import PLANS_DIR
from examples.results.plan_file import read_plan
from examples.results.trials import Cell, main_cells, sweep_cells, tuning_cells
from tests.refusals import refusal


def test_plan_is_read(plan):
    assert (plan.name, plan.page, plan.imbalances, plan.seeds, plan.more_seeds) == (
        "small", "results_small", (10.0, 100.0), 2, 2,
    )  # fmt: skip
    assert [*plan.methods] == ["pixels", "kcl", "tsc", "ce"] and plan.pairs == (("tsc", "kcl"), ("kcl", "ce"))
    assert plan.methods["tsc"].flags == ("--targeted", "--tw", "0.2")
    assert plan.sweeps[0].values == ("0.2", "1") and plan.sweeps[0].methods == ("tsc",)
    assert plan.flags["cross-entropy"][:2] == ("--epochs", "4")


@pytest.mark.parametrize("file", sorted(PLANS_DIR.glob("*.ini")), ids=lambda file: file.stem)
def test_bundled_plan_is_valid(file):
    assert read_plan(file.stem).methods


def test_byte_order_mark_is_ignored(write_plan):
    path = write_plan()
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_plan(str(path)).title == "Small"


STUDY, TSC, TW = "[study]", "[method tsc]", "[sweep tw]"


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (("title = Small\n", ""), (STUDY, "title")),
        (("seeds = 2\ndata", "seeds = 1\ndata"), (STUDY, "seeds", 1, 2)),
        (("seeds = 2\ndata", "seeds = two\ndata"), (STUDY, "seeds")),
        (("seeds = 2\ndata", "seeds = 99999999999999999999\ndata"), (STUDY, "seeds", 1000)),
        (("seeds = 2\ndata", "seeds = 2 3\ndata"), (STUDY, "seeds", 2)),
        (("imbalances = 10 100", "imbalances ="), (STUDY, "imbalances")),
        (("imbalances = 10 100", "imbalances = 10 -1"), (STUDY, "imbalances", 0)),
        (("rates = 0.1", "epochs = 3"), (STUDY, "epochs", 1, 2)),
        (("rates = 0.1", "speed = 0.1"), (STUDY, "speed")),
        (("rates = 0.1", "rates = fast"), (STUDY, "rates")),
        (("rates = 0.1", "heads = --typo"), (STUDY, "--typo")),
        (("rates = 0.1", "split_per_seed = maybe"), (STUDY, "split_per_seed", "maybe", "yes", "no")),
        (("--image-size 8", "--split-seed 1\nsplit_per_seed = yes"), (STUDY, "--split-seed")),
        (("--image-size 8", "--splits LISTS\nsplit_per_seed = yes"), (STUDY, "split_per_seed", "lists")),
        (("--image-size 8", "\nsplit_per_seed = yes"), (STUDY, "split_per_seed", "pixels")),
        (("--dataset digits --image-size 8", "--dataset cifar10\nsplit_per_seed = yes"), (STUDY, "cifar10", "digits")),
        (("rates = 0.1", "more_seeds = 1"), (STUDY, "more_seeds", 1, 2)),
        (("imbalances = 10 100", "imbalances = 10 10"), (STUDY, "imbalances")),
        (("imbalances = 10 100", "imbalances = 10 500"), (STUDY, "--imbalance", 500, 120)),
        (("--dataset digits", "--dataset custom"), (STUDY, "--dataset custom", "cifar10")),
        (("flag = --tw", "flag = '--tw"), (TW, "flag", "'--tw")),
        (("--tw 0.2\n", "--tw 0.2\nflag = --K\n"), (TSC, "flag")),
        (("axis = weight", "axes = weight"), (TW, "axis")),
        (("flags = --targeted", "flags = @recipes/cifar.txt --typo"), (TSC, "--typo")),
        (("title = KCL", 'title = KCL\nflags = "'), ("[method kcl]", "flags")),
        (
            ("stage1 = pixels", "stage1 = paint"),
            ("[method pixels]", "stage1", "paint", "contrast, cross-entropy, pixels"),
        ),
        (("--tw 0.2\n", "--tw 0.2 --imbalance 10\n"), (TSC, "--imbalance")),
        (("--tw 0.2\n", "--tw 0.2 --targets my.npy\n"), (TSC, "--targets")),
        (("--tw 0.2\n", "--tw 0.2 --image-size 16\n"), (TSC, "--image-size", "data")),
        (("imbalance = 100", "imbalance = 500"), (TW, "--imbalance", 500, 120)),
        (("rates = 0.1", "heads = --resume auto"), (STUDY, "--resume")),
        (("--tw 0.2\n", "--weight 0.2\n"), (TSC, "--weight 0.2")),
        (("--tw 0.2\n", "--tw 0.2 --help\n"), (TSC, "--help")),
        (("--tw 0.2\n", "--tw 0.2 --contrast bcl\n"), (TSC, "--mlp", "--contrast bcl")),
        (("[method ce]", "[methods ce]"), ("[methods ce]", STUDY, "[method KEY]", "[sweep KEY]")),
        (("kcl - ce", "kcl - moco"), (STUDY, "moco", "pixels, kcl, tsc, ce")),
        (("kcl - ce", "kcl"), (STUDY, "pair", "kcl")),
        (("kcl - ce", "kcl - kcl"), (STUDY, "kcl - kcl", "two")),
        (("[method kcl]", "[method a/b]"), ("[method a/b]", "a/b")),
        (("[method kcl]", "[method ..]"), ("[method ..]", "..")),
        (("[sweep tw]", "[sweep t w]"), ("[sweep t w]", "t w")),
        (("methods = tsc", "methods = moco"), (TW, "moco")),
        (("labels = little much", "labels = little"), (TW, "labels", 1, 2)),
        (("values = 0.2 1", "values = 0.2 x"), (TW, "--tw", "x")),
        (("[method kcl]", "[method tsc]"), ("method tsc",)),
        (("[study]", "study"), ()),
    ],
)
def test_invalid_plan_is_refused_before_writing(change, facts, write_plan, tmp_path):
    path = write_plan(change)
    refusal(lambda: results.main([str(path), "--folder", str(tmp_path / "runs")]), "plan", path, *facts)
    assert not (tmp_path / "runs").exists()


def test_plan_of_pixels_alone_is_refused(write_plan):
    """It trains no network, so it has nothing to compare."""
    text = write_plan().read_text()
    start, end = text.index("pairs ="), text.index("[method pixels]")
    path = write_plan((text[start:end], ""), (text[text.index("[method kcl]") :], ""))
    refusal(lambda: read_plan(str(path)), path, "[method KEY]")


def test_missing_plan_is_refused(tmp_path):
    refusal(lambda: read_plan("cloth"), "cloth", "digits", "fashion")
    refusal(lambda: read_plan(str(tmp_path / "other.ini")), tmp_path / "other.ini")


def test_sweep_at_imbalance_without_epochs_is_refused(write_plan):
    path = write_plan(("rates = 0.1", "epochs = 2 4"), ("imbalance = 100", "imbalance = 50"))
    refusal(lambda: read_plan(str(path)), TW, 50, "10, 100")


@pytest.mark.parametrize(
    ("flags", "facts"),
    [("--seeds 1", ("--seeds", 1, 2)), ("--device foo", ("foo",)), ("--device cuda:99", ("cuda",))],
)
def test_invalid_flag_value_is_refused(flags, facts, write_plan, tmp_path):
    words = [str(write_plan()), *flags.split(), "--folder", str(tmp_path / "runs")]
    refusal(lambda: results.main(words), *facts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags", [("--lr", "0.7"), ("--lr=0.7",), ("@recipes/fashion_kcl.txt",)])
def test_learning_rate_of_method_is_kept(flags, study):
    """The method also takes no part in the selection of learning rates."""
    study.plan = study.plan._replace(rates=("0.1", "0.3"))
    study.plan.methods["tsc"] = study.plan.methods["tsc"]._replace(flags=("--targeted", *flags))
    words = study.trial(Cell(10, study.plan.methods["tsc"]), 0).commands[0]
    assert not {"0.1", "0.3"} & {*words}
    assert {cell.method.key for cell in tuning_cells(study.plan)} == {"kcl", "ce"}


def test_sweep_of_learning_rates_has_runs_of_its_own(plan):
    """0.03 is the default of --lr, but the method has the rate of the plan."""
    sweep = plan.sweeps[0]._replace(methods=("kcl",), flag="--lr", values=("0.03", "0.5"))
    assert [cell.name for cell in sweep_cells(plan, sweep).values()] == ["kcl_lr_0.03", "kcl_lr_0.5"]


@pytest.mark.parametrize("per_seed", [True, False])
def test_seed_of_the_split_is_that_of_the_run_with_split_per_seed(per_seed, study):
    study.plan = study.plan._replace(split_per_seed=per_seed)
    for trial in study.trials(main_cells(study.plan), range(2)):
        for command in trial.commands:
            words = [word for before, word in pairwise(command) if before == "--split-seed"]
            assert words == ([trial.run_dir.name[-1]] if per_seed else [])
