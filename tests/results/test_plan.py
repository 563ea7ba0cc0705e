"""A plan's file: what is read of it, and what is wrong with it."""

import pytest

from examples.results import __main__ as results
from examples.results.plan import FOLDER
from examples.results.plan_file import read_plan
from utils.errors import InputError


def test_what_a_plan_says(plan):
    assert (plan.name, plan.page, plan.imbalances, plan.seeds, plan.more_seeds) == (
        "small", "results_small", (10.0, 100.0), 2, 2,
    )  # fmt: skip
    assert [*plan.methods] == ["pixels", "kcl", "tsc", "ce"] and plan.pairs == (("tsc", "kcl"), ("kcl", "ce"))
    assert plan.methods["tsc"].flags == ("--targeted", "--tw", "0.2")
    assert plan.sweeps[0].values == ("0.2", "1") and plan.sweeps[0].methods == ("tsc",)
    assert plan.flags["cross-entropy"][:3] == ("--device-aug", "--epochs", "4")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.ini")), ids=lambda file: file.stem)
def test_the_plans_of_this_project_are_good(file):
    assert read_plan(file.stem).methods


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title = Small\n", ""), r"\[study\]: lacks title"),
        (("seeds = 2\ndata", "seeds = 1\ndata"), r"\[study\]: seeds 1: expected 2 or more"),
        (("seeds = 2\ndata", "seeds = two\ndata"), r"\[study\]: seeds: expected numbers"),
        (("seeds = 2\ndata", "seeds = 2 3\ndata"), r"\[study\]: seeds: found 2 numbers, expected one"),
        (("imbalances = 10 100", "imbalances = 10 -1"), r"imbalances: expected numbers above 0"),
        (("rates = 0.1", "epochs = 3"), r"\[study\]: epochs: found 1 numbers, expected one for each of 2 imbalances"),
        (("rates = 0.1", "epochs = 4 3"), r"\[study\]: epochs 3: expected a multiple of --monitor-freq 2"),
        (("rates = 0.1", "speed = 0.1"), r"\[study\]: speed: unknown"),
        (("rates = 0.1", "rates = fast"), r"\[study\]: rates: expected numbers"),
        (("rates = 0.1", "heads = --typo"), r"\[study\]: unrecognized arguments: --typo"),
        (("rates = 0.1", "more_seeds = 1"), r"\[study\]: more_seeds 1: expected as many as seeds, 2, or more"),
        (("imbalances = 10 100", "imbalances = 10 10"), r"\[study\]: imbalances: one is there twice"),
        (("imbalances = 10 100", "imbalances = 10 500"), r"\[study\]: --imbalance 500: expected 1 to 120"),
        (("--dataset digits", "--dataset custom"), r"\[study\]: data has --dataset custom, expected one of cifar10"),
        (("flag = --tw", "flag = '--tw"), r"\[sweep tw\]: flag '--tw: No closing quotation"),
        (("--tw 0.2\n", "--tw 0.2\nflag = --K\n"), r"\[method tsc\]: flag: unknown"),
        (("axis = weight", "axes = weight"), r"\[sweep tw\]: lacks axis"),
        (
            ("flags = --targeted", "flags = @recipes/cifar.txt --typo"),
            r"\[method tsc\]: unrecognized arguments: --typo",
        ),
        (("title = KCL", 'title = KCL\nflags = "'), r"\[method kcl\]: flags: No closing quotation"),
        (("way = pixels", "way = paint"), r"\[method pixels\]: way paint, expected contrast, cross-entropy, pixels"),
        (("--tw 0.2\n", "--weight 0.2\n"), r"\[method tsc\]: unrecognized arguments: --weight 0.2"),
        (("[method ce]", "[methods ce]"), r"section \[methods ce\], expected \[study\], \[method KEY\]"),
        (("kcl - ce", "kcl - moco"), r"\[study\]: unknown method moco, expected one of pixels, kcl, tsc, ce"),
        (("kcl - ce", "kcl"), r"\[study\]: pair kcl, expected METHOD - METHOD"),
        (("methods = tsc", "methods = moco"), r"\[sweep tw\]: unknown method moco"),
        (("labels = little much", "labels = little"), r"\[sweep tw\]: labels: found 1, expected one for each of 2"),
        (("values = 0.2 1", "values = 0.2 x"), r"\[sweep tw\]: argument --tw.*x"),
        (("[method kcl]", "[method tsc]"), r"section 'method tsc' already exists"),
        (("[study]", "study"), "no section headers"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(change, message, write_plan, tmp_path):
    path = write_plan(change)
    with pytest.raises(InputError, match=rf"plan .*small.ini.*{message}"):
        results.main([str(path), "--folder", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(No such file.*\), expected digits, fashion"):
        read_plan("cloth")
    with pytest.raises(InputError, match=r"other\.ini: cannot be read"):
        read_plan(str(tmp_path / "other.ini"))


def test_a_sweep_at_an_imbalance_without_epochs(write_plan):
    path = write_plan(("rates = 0.1", "epochs = 2 4"), ("imbalance = 100", "imbalance = 50"))
    with pytest.raises(InputError, match=r"\[sweep tw\]: imbalance 50 has no epochs, expected one of 10, 100"):
        read_plan(str(path))


@pytest.mark.parametrize(
    ("flags", "message"), [("--seeds 1", "expected 2 or more"), ("--device foo", "foo"), ("--device cuda:99", "cuda")]
)
def test_a_flag_that_cannot_be_is_refused(flags, message, write_plan, tmp_path):
    with pytest.raises(InputError, match=message):
        results.main([str(write_plan()), *flags.split(), "--folder", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
