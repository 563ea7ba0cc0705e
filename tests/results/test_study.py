"""What a study makes of its plan: trials, their commands, what has ended, and what follows from what."""

import json

import pytest
import torch

from examples.results import trials
from examples.results.__main__ import described
from examples.results.study import best_rate
from examples.results.trials import Cell, main_cells, sweep_cells
from tests.refusals import refusal
from tests.results.written import write_run


def test_one_seed_of_everything(study):
    """Two imbalances; pixels know no seed."""
    made = study.trials(main_cells(study.plan), range(2))
    assert len({trial.run_dir for trial in made}) == len(made) == 2 * 3 * 2 + 2
    by_name = {f"{trial.run_dir.parent.name}/{trial.run_dir.name}": trial.commands for trial in made}
    assert [command[0] for command in by_name["rho10/kcl_s1"]] == ["main_moco_supcon_imba.py", "main_lincls_imba.py"]
    assert by_name["rho10/ce_s0"][0][:2] == ["-m", "examples.cross_entropy"]
    assert [command[1] for command in by_name["rho100/pixels_s0"]] == ["examples.pixels"]
    for trial in made:
        for command in trial.commands:
            assert command[command.index("--run-dir") + 1].startswith(str(trial.run_dir))
            seed = command[command.index("--seed") + 1] if "--seed" in command else "0"
            assert seed == trial.run_dir.name[-1] and ("--seed" in command) != ("examples.pixels" in command)
            assert command[command.index("--imbalance") + 1] == trial.run_dir.parent.name.removeprefix("rho")
        train = trial.commands[0]
        assert train[train.index("--resume") + 1] == "auto"


def test_tsc_reads_the_targets_of_its_dimension(study):
    def targets_of(*extra: str) -> list[str]:
        cell = Cell(10, study.plan.methods["tsc"], extra)
        return [word for word in study.trial(cell, 0).commands[0] if word.endswith(".npy")]

    assert targets_of() == [str(study.folder / "optimal_10_8.npy")]
    assert targets_of("--moco-dim", "3") == [str(study.folder / "optimal_10_3.npy")]
    assert not study.dim_of_targets(Cell(10, study.plan.methods["kcl"]))


def test_a_value_of_a_sweep_that_is_the_methods_own_is_not_run_twice(study):
    cells = sweep_cells(study.plan, study.plan.sweeps[0])
    assert cells["tsc", "0.2"] == Cell(100, study.plan.methods["tsc"])
    assert cells["tsc", "1"].name == "tsc_tw_1"


def test_what_it_costs(study):
    """Images × epochs × views; TSC as KCL, and cross-entropy, of twice the epochs, as either."""
    images = sum([120, 71, 43, 25, 15, 9, 5, 3, 2, 1]) * 8  # --dataset digits passes 8 times over its list
    weights = {cell.method.key: study.weight(cell) for cell in main_cells(study.plan) if cell.imbalance == 100}
    assert weights["kcl"] == weights["tsc"] == weights["ce"] == images * 4


def test_the_learning_rate_is_chosen_on_validation_with_its_neighbours(study):
    """0.3 and its neighbours have 91 in the mean, 1 and its own 91.3, whatever test says."""
    study.plan = study.plan._replace(rates=("0.1", "0.3", "1", "3"), tune_imbalance=10)
    on_validation = {"0.1": 93, "0.3": 90, "1": 90, "3": 94}
    for cell, rate in trials.tuning_cells(study.plan).items():
        write_run(study, cell, study.plan.tune_seed, 110 - on_validation[rate], on_validation[rate])
    assert study.rates() == {"kcl": "1", "tsc": "1", "ce": "1"}
    words = study.trial(Cell(100, study.plan.methods["ce"]), 0).commands[0]
    assert words[words.index("--lr") + 1] == "1"


@pytest.mark.parametrize(
    ("accuracies", "rate"),
    [
        ({"1": 80.0, "2": 81.0}, "2"),
        ({"1": 99.0, "2": 81.0, "3": 80.0}, "2"),
        ({"1": 80.0, "2": 85.0, "3": 80.0, "4": 83.0, "5": 84.0}, "3"),
        ({"1": 80.0, "2": 80.0, "3": 80.0, "4": 80.0}, "2"),
    ],
)
def test_a_rate_is_chosen_with_its_neighbours(accuracies, rate):
    assert best_rate(accuracies) == rate


def test_stages_in_their_order(study):
    study.plan = study.plan._replace(rates=("0.1", "0.3"))
    stages = study.stages()
    name, tuning = next(stages)
    assert name == "learning rates" and len(tuning) == 2 * 3  # pixels have none
    for cell in trials.tuning_cells(study.plan):
        write_run(study, cell, study.plan.tune_seed, 80, 80)
    assert [(name, len(of_stage)) for name, of_stage in stages] == [("methods", 14), ("sweep tw", 4)]


def test_seeds_are_added_where_the_first_pair_is_not_resolved(whole):
    """TSC − KCL is 3 and 2: 2.5 ± 6.35, so unresolved; with equal differences it is."""
    assert whole.unresolved() == []  # the plan wants no more than two
    whole.plan = whole.plan._replace(more_seeds=4)
    assert whole.unresolved() == [10, 100]
    *_, (name, more) = whole.stages()
    assert name == "more seeds" and len(more) == 2 * 2 * 2
    assert {trial.run_dir.name for trial in more} == {"tsc_s2", "tsc_s3", "kcl_s2", "kcl_s3"}
    write_run(whole, Cell(10, whole.plan.methods["tsc"]), 1, 85, 86)
    assert whole.unresolved() == [100]
    whole.plan = whole.plan._replace(resolved=7)
    assert whole.unresolved() == []


def test_a_wide_interval_that_tells_which_is_better_needs_no_more_seeds(whole):
    """TSC - KCL is 3 and 3.02: 3.01 ± 0.13."""
    whole.plan = whole.plan._replace(more_seeds=4, resolved=0.1, imbalances=(10,))
    write_run(whole, Cell(10, whole.plan.methods["tsc"]), 1, 85.02, 86)
    assert whole.unresolved() == []
    write_run(whole, Cell(10, whole.plan.methods["tsc"]), 1, 82 - 3.02, 86)  # 3 and -3.02: 0 ± 38
    assert whole.unresolved() == [10]


def assert_other_arguments(command: list[str], *facts: str) -> None:
    """The folder holds a run of another command, and the error names it and the changed argument."""
    refusal(lambda: trials.ended(command), command[command.index("--run-dir") + 1], "--folder", *facts)


def test_what_has_ended_is_known_and_what_others_made_is_refused(whole):
    for cell in main_cells(whole.plan):
        trial = whole.trial(cell, 0)
        assert not trials.left_of(trial).commands
    words, of_heads = whole.trial(Cell(10, whole.plan.methods["ce"]), 1).commands
    for change in (["--lr", "0.3"], ["--seed", "4"], ["--epochs", "13"]):
        assert_other_arguments([*words, *change], change[0][2:], change[1])
    assert_other_arguments([*of_heads, "--feature-views", "2"], "feature_views", "0", "2")


def test_a_flag_that_was_taken_out_of_the_plan_is_noticed(whole):
    """Its default now stands where its value was."""
    words = whole.trial(Cell(10, whole.plan.methods["kcl"]), 1).commands[0]
    at = words.index("--image-size")
    assert_other_arguments([*words[:at], *words[at + 2 :]], "image_size", "8", "16")
    assert_other_arguments([word for word in words if word != "--mlp"], "mlp", "True", "False")


def test_a_methods_own_learning_rate_stands(study):
    study.plan.methods["tsc"] = study.plan.methods["tsc"]._replace(flags=("--targeted", "--lr", "0.7"))
    words = study.trial(Cell(10, study.plan.methods["tsc"]), 0).commands[0]
    assert words.count("--lr") == 1 and "0.7" in words


def test_a_sweep_stands_behind_the_methods_own_flags(study):
    """So that its value is the one that holds."""
    words = Cell(100, study.plan.methods["tsc"], ("--tw", "1")).words(study.plan)
    assert trials.parser_of("contrast").parse_args(words).tw == 1


def test_a_run_of_before_a_flag_has_ended_too(whole):
    """Its args.json does not say what there was no flag for."""
    trial = whole.trial(Cell(10, whole.plan.methods["ce"]), 0)
    file = trial.run_dir / "args.json"
    about = json.loads(file.read_text())
    for name in ("holdout", "lr_end", "warmup_epochs", "largest"):
        about["args"].pop(name)
    file.write_text(json.dumps(about))
    assert trials.ended(trial.commands[0])


@pytest.mark.parametrize(
    ("name", "before", "now"), [("sampling", "instance", "class-balanced"), ("statistics", None, "cifar10")]
)
def test_what_a_run_of_before_a_flag_does_not_say_is_as_it_was(name, before, now, whole):
    trial = whole.trial(Cell(10, whole.plan.methods["kcl"]), 0)
    file = trial.run_dir / "args.json"
    about = json.loads(file.read_text())
    about["args"].pop(name)
    file.write_text(json.dumps(about))
    assert_other_arguments([*trial.commands[0], f"--{name}", now], name, before, now)


@pytest.mark.parametrize("key", ["ce", "kcl"])
def test_a_run_that_stopped_early_has_not_ended_and_its_heads_are_made_anew(key, whole):
    """The log may be an epoch ahead of the checkpoint: what counts is the checkpoint."""
    cell = Cell(10, whole.plan.methods[key])
    trial = whole.trial(cell, 0)
    torch.save({"epoch": 1, "state_dict": {}}, trial.run_dir / "last.pth.tar")
    assert [trials.ended(command) for command in trial.commands] == [False, True]
    assert len(trials.left_of(trial).commands) == 2 and not whole.found(cell, range(2))
    (trial.run_dir / "last.pth.tar").unlink()
    assert not trials.ended(trial.commands[0])


def test_a_run_without_its_features_has_not_ended(whole):
    trial = whole.trial(Cell(10, whole.plan.methods["tsc"]), 0)
    (trial.run_dir / "features.npz").unlink()
    assert len(trials.left_of(trial).commands) == 2


def test_a_trial_without_its_heads_has_not_ended(whole):
    trial = whole.trial(Cell(10, whole.plan.methods["kcl"]), 1)
    (trial.run_dir / "heads" / "results.json").unlink()
    assert [command[0] for command in trials.left_of(trial).commands] == ["main_lincls_imba.py"]
    assert len(whole.found(Cell(10, whole.plan.methods["kcl"]), range(2))) == 1


def test_epochs_by_imbalance_are_of_views(study):
    """Two views an epoch in contrast, one in cross-entropy: as many views in all; pixels are not trained."""
    study.plan = study.plan._replace(epochs={10: 3, 100: 5})
    for key, epochs in (("kcl", {10: "3", 100: "5"}), ("ce", {10: "6", 100: "10"})):
        for imbalance, number in epochs.items():
            words = Cell(imbalance, study.plan.methods[key]).words(study.plan)
            assert [words[at + 1] for at, word in enumerate(words) if word == "--epochs"][-1] == number
    assert "--epochs" not in Cell(10, study.plan.methods["pixels"]).words(study.plan)


def test_what_the_plan_would_run(study, capsys):
    """Runs that a sweep shares with the methods are counted once; nothing is written."""
    text = described(study.plan, study)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [["methods", "14", "14", "0.0"], ["sweep tw", "2", "2", "0.0"], ["all", "16", "16", "0.0"]]
    assert not study.folder.exists()


def test_hours_are_by_what_was_trained(study):
    """Two epochs of KCL took a minute."""
    kcl = Cell(10, study.plan.methods["kcl"])
    write_run(study, kcl, 0, 80, 80)
    assert study.hours([study.trial(kcl, 1)]) == pytest.approx(1 / 60)
    assert study.hours([study.trial(kcl, 1), study.trial(kcl, 2)]) == pytest.approx(2 / 60)


def test_results_need_the_learning_rates(study):
    study.plan = study.plan._replace(rates=("0.1", "0.3"))
    refusal(study.results, study.folder / "rho10" / "kcl_lr_0.1_s100")
    assert "| methods | 14 | 14 |" in described(study.plan, study)


def test_lists_and_targets_are_there_before_the_first_run(study):
    study.folder.mkdir()
    study.prepare()
    assert {path.name for path in (study.data_root / "digits_LT").iterdir()} == {
        "images",
        "imbalance_10",
        "imbalance_100",
    }
    assert [path.name for path in study.folder.iterdir()] == ["optimal_10_8.npy"]
