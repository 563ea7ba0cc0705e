"""A study turns its plan into trials and commands, and detects finished runs."""

import json
from pathlib import Path

import pytest
import torch

from examples.results import trials
from examples.results.budget import describe_plan
from examples.results.plan import StudyMethod
from examples.results.reading import best_rate
from examples.results.trials import Cell, main_cells, sweep_cells
from tests.refusals import refusal
from tests.results.written import write_run


def test_trials_of_all_cells(study):
    """Two seeds at two imbalances; the pixels baseline has one seed."""
    all_trials = study.trials(main_cells(study.plan), range(2))
    assert len({trial.run_dir for trial in all_trials}) == len(all_trials) == 2 * 3 * 2 + 2
    by_name = {f"{trial.run_dir.parent.name}/{trial.run_dir.name}": trial.commands for trial in all_trials}
    assert [command[0] for command in by_name["rho10/kcl_s1"]] == ["main_moco_supcon_imba.py", "main_lincls_imba.py"]
    assert by_name["rho10/ce_s0"][0][:2] == ["-m", "examples.cross_entropy"]
    assert [command[1] for command in by_name["rho100/pixels_s0"]] == ["examples.pixels"]
    for trial in all_trials:
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
    assert not study.target_dim(Cell(10, study.plan.methods["kcl"]))


def test_sweep_value_equal_to_default_is_not_run_twice(study):
    cells = sweep_cells(study.plan, study.plan.sweeps[0])
    assert cells["tsc", "0.2"] == Cell(100, study.plan.methods["tsc"])
    assert cells["tsc", "1"].name == "tsc_tw_1"


def test_weight_counts_images_epochs_and_views(study):
    """The weight is images × epochs × views: equal for KCL, TSC, and cross-entropy with twice the epochs."""
    images = sum([120, 71, 43, 25, 15, 9, 5, 3, 2, 1]) * 8  # --dataset digits repeats its list 8 times per epoch
    weights = {cell.method.key: study.weight(cell) for cell in main_cells(study.plan) if cell.imbalance == 100}
    assert weights["kcl"] == weights["tsc"] == weights["ce"] == images * 4


def test_learning_rate_is_selected_on_smoothed_validation(study):
    """The mean over a rate and its neighbours is 91 for 0.3 and 91.3 for 1. Test accuracy is opposite."""
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
def test_best_rate_averages_neighbours(accuracies, rate):
    assert best_rate(accuracies) == rate


def test_stages_run_in_order(study):
    study.plan = study.plan._replace(rates=("0.1", "0.3"))
    stages = study.stages()
    name, tuning = next(stages)
    assert name == "learning rates" and len(tuning) == 2 * 3  # the pixels baseline has no learning rate
    for cell in trials.tuning_cells(study.plan):
        write_run(study, cell, study.plan.tune_seed, 80, 80)
    assert [(name, len(stage_trials)) for name, stage_trials in stages] == [("methods", 14), ("sweep tw", 4)]


def test_seeds_are_added_while_first_pair_is_unresolved(finished_study):
    """TSC − KCL is 3 and 2, so 2.5 ± 6.35 is unresolved. With equal differences it is resolved."""
    assert finished_study.unresolved() == []  # the plan limits the seeds to two
    finished_study.plan = finished_study.plan._replace(more_seeds=4)
    assert finished_study.unresolved() == [10, 100]
    *_, (name, more) = finished_study.stages()
    assert name == "more seeds" and len(more) == 2 * 2 * 2
    assert {trial.run_dir.name for trial in more} == {"tsc_s2", "tsc_s3", "kcl_s2", "kcl_s3"}
    write_run(finished_study, Cell(10, finished_study.plan.methods["tsc"]), 1, 85, 86)
    assert finished_study.unresolved() == [100]
    finished_study.plan = finished_study.plan._replace(resolved=7)
    assert finished_study.unresolved() == []


def test_significant_difference_needs_no_more_seeds(finished_study):
    """TSC - KCL is 3 and 3.02, so the interval is 3.01 ± 0.13."""
    finished_study.plan = finished_study.plan._replace(more_seeds=4, resolved=0.1, imbalances=(10,))
    write_run(finished_study, Cell(10, finished_study.plan.methods["tsc"]), 1, 85.02, 86)
    assert finished_study.unresolved() == []
    write_run(finished_study, Cell(10, finished_study.plan.methods["tsc"]), 1, 82 - 3.02, 86)  # 3 and -3.02: 0 ± 38
    assert finished_study.unresolved() == [10]


def assert_refused_as_other_run(command: list[str], *facts: str) -> None:
    """Assert that the folder is refused as a run of another command, with its path and the changed argument."""
    refusal(lambda: trials.is_finished(command), command[command.index("--run-dir") + 1], "--folder", *facts)


def test_finished_runs_are_known_and_other_runs_refused(finished_study):
    for cell in main_cells(finished_study.plan):
        trial = finished_study.trial(cell, 0)
        assert not trials.unfinished_part(trial).commands
    words, head_words = finished_study.trial(Cell(10, finished_study.plan.methods["ce"]), 1).commands
    for change in (["--lr", "0.3"], ["--seed", "4"], ["--epochs", "13"], ["--split-seed", "2"]):
        assert_refused_as_other_run([*words, *change], change[0][2:].replace("-", "_"), change[1])
    assert_refused_as_other_run([*head_words, "--feature-views", "2"], "feature_views", "0", "2")


def test_flag_removed_from_plan_is_refused(finished_study):
    """The flag now has its default instead of the value in the run folder."""
    words = finished_study.trial(Cell(10, finished_study.plan.methods["kcl"]), 1).commands[0]
    at = words.index("--image-size")
    assert_refused_as_other_run([*words[:at], *words[at + 2 :]], "image_size", "8", "16")
    assert_refused_as_other_run([word for word in words if word != "--mlp"], "mlp", "True", "False")


def test_sweep_flags_follow_method_flags(study):
    """The last value of a flag wins."""
    words = Cell(100, study.plan.methods["tsc"], ("--tw", "1")).train_flags(study.plan)
    assert trials.stage1_parser("contrast").parse_args(words).tw == 1


def test_run_older_than_a_flag_is_finished(finished_study):
    """The args.json of an older version lacks the arguments of newer flags."""
    trial = finished_study.trial(Cell(10, finished_study.plan.methods["ce"]), 0)
    file = trial.run_dir / "args.json"
    record = json.loads(file.read_text())
    for name in ("holdout", "lr_end", "warmup_epochs", "largest", "split_seed"):
        record["args"].pop(name)
    file.write_text(json.dumps(record))
    assert trials.is_finished(trial.commands[0])


def test_run_that_has_chosen_to_augment_on_the_device_is_finished(finished_study):
    command = finished_study.trial(Cell(10, finished_study.plan.methods["kcl"]), 0).commands[0]
    file = Path(command[command.index("--run-dir") + 1]) / "args.json"
    record = json.loads(file.read_text())
    record["args"]["device_aug"] = True
    file.write_text(json.dumps(record))
    assert trials.is_finished(command)
    assert_refused_as_other_run([*command, "--device-aug", "off"], "device_aug", "True", "False")


@pytest.mark.parametrize(
    ("name", "before", "now"), [("sampling", "instance", "class-balanced"), ("statistics", None, "cifar10")]
)
def test_missing_argument_counts_as_old_default(name, before, now, finished_study):
    trial = finished_study.trial(Cell(10, finished_study.plan.methods["kcl"]), 0)
    file = trial.run_dir / "args.json"
    record = json.loads(file.read_text())
    record["args"].pop(name)
    file.write_text(json.dumps(record))
    assert_refused_as_other_run([*trial.commands[0], f"--{name}", now], name, before, now)


@pytest.mark.parametrize("key", ["ce", "kcl"])
def test_unfinished_run_is_repeated_with_its_heads(key, finished_study):
    """The log may be an epoch ahead of the checkpoint, so the checkpoint decides."""
    cell = Cell(10, finished_study.plan.methods[key])
    trial = finished_study.trial(cell, 0)
    torch.save({"epoch": 1, "state_dict": {}}, trial.run_dir / "last.pth.tar")
    assert [trials.is_finished(command) for command in trial.commands] == [False, True]
    assert len(trials.unfinished_part(trial).commands) == 2 and not finished_study.finished(cell, range(2))
    (trial.run_dir / "last.pth.tar").unlink()
    assert not trials.is_finished(trial.commands[0])


def test_run_without_features_is_unfinished(finished_study):
    """The classifiers are fitted again with --resume auto, because their folder has results already."""
    trial = finished_study.trial(Cell(10, finished_study.plan.methods["tsc"]), 0)
    (trial.run_dir / "features.npz").unlink()
    _, heads = trials.unfinished_part(trial).commands
    assert heads[-2:] == ["--resume", "auto"]


def test_trial_without_heads_is_unfinished(finished_study):
    trial = finished_study.trial(Cell(10, finished_study.plan.methods["kcl"]), 1)
    (trial.run_dir / "heads" / "results.json").unlink()
    assert [command[0] for command in trials.unfinished_part(trial).commands] == ["main_lincls_imba.py"]
    assert len(finished_study.finished(Cell(10, finished_study.plan.methods["kcl"]), range(2))) == 1


def test_epochs_by_imbalance_count_views(study):
    """Cross-entropy uses one view per image and epoch, KCL two, and BCL three. Pixels are not trained."""
    study.plan = study.plan._replace(epochs={10: 3, 100: 5})
    methods = study.plan.methods | {"bcl": StudyMethod("bcl", "BCL", "contrast", ("--contrast", "bcl"))}
    for key, epochs in (("kcl", {10: "3", 100: "5"}), ("ce", {10: "6", 100: "10"}), ("bcl", {10: "2", 100: "3"})):
        for imbalance, number in epochs.items():
            words = Cell(imbalance, methods[key]).train_flags(study.plan)
            assert [words[at + 1] for at, word in enumerate(words) if word == "--epochs"][-1] == number
    assert "--epochs" not in Cell(10, study.plan.methods["pixels"]).train_flags(study.plan)


def test_described_plan_counts_shared_runs_once(study, capsys):
    """Runs shared by a sweep and the methods are counted once. Nothing is written."""
    text = describe_plan(study)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [["methods", "14", "14", "0.0"], ["sweep tw", "2", "2", "0.0"], ["all", "16", "16", "0.0"]]
    assert not study.folder.exists()


def test_hours_are_estimated_from_finished_runs(study):
    """Two epochs of KCL took one minute."""
    kcl = Cell(10, study.plan.methods["kcl"])
    write_run(study, kcl, 0, 80, 80)
    assert study.hours([study.trial(kcl, 1)]) == pytest.approx(1 / 60)
    assert study.hours([study.trial(kcl, 1), study.trial(kcl, 2)]) == pytest.approx(2 / 60)


def test_results_need_the_learning_rates(study):
    study.plan = study.plan._replace(rates=("0.1", "0.3"))
    refusal(study.results, study.folder / "rho10" / "kcl_lr_0.1_s100")
    assert "| methods | 14 | 14 |" in describe_plan(study)


def test_prepare_writes_lists_and_targets(study):
    study.folder.mkdir()
    study.prepare()
    assert {path.name for path in (study.data_root / "digits_LT").iterdir()} == {
        "images",
        "imbalance_10",
        "imbalance_100",
    }
    assert [path.name for path in study.folder.iterdir()] == ["optimal_10_8.npy"]
