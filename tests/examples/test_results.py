"""examples/results.py: its runs side by side, and its page by hand from runs that are written, not trained."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from examples import demo, results, results_page, results_plan
from examples.results import run_all
from examples.results_plan import METHODS, Trial, cells, trial_of
from tests import ROOT
from utils.errors import InputError
from utils.report.trials import read_group

COUNTS = [120, 50, 2]
TSC_EPOCHS = [(2, 0.1, None), (3, 0.3, 33.0), (4, 0.5, 0.0)]  # epoch, cosine to the target, percent changed


def write_run(folder: Path, seed: int, acc1: float, uniformity: float | None, targeted: bool = False) -> None:
    """Run folders with what the page reads; without uniformity, cross-entropy's."""
    about = {"git": "c0ffee", "machine": "box", "versions": {"torch": "2"}, "args": {"seed": seed, "epochs": 4}}
    entry = {"epoch": 2, "acc1": acc1, "many": 99.0, "medium": None, "few": acc1 - 10, "per_class": [acc1] * 3}
    record = {name: entry for name in ("selected", "last", "best_on_test")} | {"train_counts": COUNTS}
    probe = folder if uniformity is None else folder / "probe"
    probe.mkdir(parents=True)
    args = {"seed": seed, "epochs": 12, "pretrained": None}
    (probe / "args.json").write_text(json.dumps(about | {"args": args}))
    (probe / "results.json").write_text(json.dumps(record))
    (folder / "heads").mkdir()
    (folder / "heads" / "args.json").write_text(json.dumps({"args": args | {"compare_heads": True}}))
    heads = {"logistic, post": entry | {"acc1": acc1 + 5}, **({"own, post": entry} if probe == folder else {})}
    (folder / "heads" / "results.json").write_text(json.dumps(record | {"heads": heads}))
    if uniformity is None:
        return
    (folder / "args.json").write_text(json.dumps(about))
    epochs = [{"epoch": epoch, "seconds": 30, "target_cosine": None} for epoch in (1, 2, 3, 4)]
    for epoch, cosine, changed in TSC_EPOCHS if targeted else ():
        epochs[epoch - 1] |= {"target_cosine": cosine, "target_changed": changed}
    epochs[-1]["val"] = {
        "alignment": 0.2,
        "uniformity": uniformity,
        "uniformity_k": 0.9,
        "nc1": 2.0,
        "nc2": 0.1,
        "knn_top1": 80.0,
    }
    epochs[-1]["val"]["knn_few"] = 60.0 + 10 * targeted
    (folder / "log.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))


@pytest.fixture
def groups(tmp_path) -> results_page.Groups:
    """Two seeds at imbalance 100. KCL 80 and 82, TSC 83 and 84, cross-entropy 70 and 71."""
    trials = {"KCL": (80, 82, 1.0), "TSC": (83, 84, 1.2), "CE, balanced batches": (70, 71, None)}
    trials |= {"CE, balanced softmax": (72, 73, None), "CE, plain": (60, 61, None)}
    for name, (first, second, uniformity) in trials.items():
        for seed, acc1 in enumerate((first, second)):
            write_run(tmp_path / f"{name}_s{seed}", seed, acc1, uniformity, name == "TSC")
    return {(100, name): read_group(str(tmp_path / f"{name}_s*")) for name in trials}


def rows_of(text: str) -> list[str]:
    return [line.strip("| ") for line in text.splitlines()[2:]]


def test_means_and_paired_differences_by_hand(groups):
    """TSC − KCL: 3 and 2, deviation 0.71; t with 1 degree is 12.71 at 97.5 %, so ± 12.71 · 0.71 / √2 = 6.35."""
    assert rows_of(results_page.accuracy_table(groups, "selected")) == [
        "100 | KCL | 99.00 ± 0.00 | – | 71.00 ± 1.41 | 81.00 ± 1.41",
        "100 | TSC | 99.00 ± 0.00 | – | 73.50 ± 0.71 | 83.50 ± 0.71",
        "100 | CE, balanced batches | 99.00 ± 0.00 | – | 60.50 ± 0.71 | 70.50 ± 0.71",
        "100 | CE, balanced softmax | 99.00 ± 0.00 | – | 62.50 ± 0.71 | 72.50 ± 0.71",
        "100 | CE, plain | 99.00 ± 0.00 | – | 50.50 ± 0.71 | 60.50 ± 0.71",
        "100 | TSC − KCL | +0.00 [+0.00, +0.00] | – | +2.50 [-3.85, +8.85] | +2.50 [-3.85, +8.85]",
        "100 | KCL − CE, balanced batches | +0.00 [+0.00, +0.00] | – | +10.50 [+4.15, +16.85] | +10.50 [+4.15, +16.85]",
    ]


def test_every_head_has_a_row_and_a_head_that_a_method_has_not_a_dash(groups):
    title, table = results_page.head_tables(groups)
    assert title == "### Imbalance 100" and rows_of(table) == [
        "logistic, post | 86.00 ± 1.41 / 71.0 | 88.50 ± 0.71 / 73.5 | 75.50 ± 0.71 / 60.5 | 77.50 ± 0.71 / 62.5"
        " | 65.50 ± 0.71 / 50.5",
        "own, post | – | – | 70.50 ± 0.71 / 60.5 | 72.50 ± 0.71 / 62.5 | 60.50 ± 0.71 / 50.5",
        "chosen by validation | 81.00 ± 1.41 / 71.0 | 83.50 ± 0.71 / 73.5 | 70.50 ± 0.71 / 60.5 | 72.50 ± 0.71 / 62.5"
        " | 60.50 ± 0.71 / 50.5",
    ]


def test_what_the_features_and_the_targets_did(groups):
    kcl, tsc, difference = rows_of(results_page.feature_table(groups).split("\n\n")[1])
    measures = "0.20 ± 0.00 | {} ± 0.00 | 0.90 ± 0.00 | 2.00 ± 0.00 | 0.10 ± 0.00 | {} ± 0.00 | 80.00 ± 0.00"
    assert kcl == f"100 | KCL | {measures.format('1.00', '60.00')} | – | – | –"
    assert tsc == f"100 | TSC | {measures.format('1.20', '70.00')} | 0.10 ± 0.00 | 0.50 ± 0.00 | 3–3"
    even, few = "+0.20 [+0.20, +0.20]", "+10.00 [+10.00, +10.00]"
    same = "+0.00 [+0.00, +0.00]"
    assert difference == f"100 | TSC − KCL | {same} | {even} | {same} | {same} | {same} | {few} | {same}"


def test_the_page_is_whole(groups, tmp_path):
    page = results_page.write_page(groups, tmp_path / "docs", "make results")
    text = page.read_text()
    assert (
        "`make results`: 10 trials, 8 minutes of training on one core in all, on box, PyTorch 2, commit c0ffee" in text
    )
    assert "| 100 | TSC | 83.00 | 84.00 |" in text and "| logistic, post | 86.00" in text
    picture = imread(tmp_path / "docs" / "results.png")
    assert picture.shape[1] > 1000 and np.std(picture) > 0.05


def arguments(folder: Path):
    """A folder whose name has a space."""
    return results.get_args_parser().parse_args(["--epochs", "4", "--folder", str(folder / "a b")])


@pytest.fixture
def args(tmp_path):
    return arguments(tmp_path)


@pytest.fixture(scope="module")
def ce_trial(tmp_path_factory) -> Trial:
    """A trial of cross-entropy on 8 px, run to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_plan, "CROSS_ENTROPY", f"{results_plan.CROSS_ENTROPY} --image-size 8 -b 256 --lr 0.2")
        patch.setattr(results_plan, "HEADS", f"{results_plan.HEADS} --image-size 8")
        trial = trial_of(100, METHODS[2], 3, arguments(tmp_path_factory.mktemp("results")))
    assert not any(map(results.ended, trial.commands))
    run_all([trial], jobs=1)
    return trial


def test_what_has_ended_is_known_and_what_others_made_is_refused(ce_trial):
    assert all(map(results.ended, ce_trial.commands))
    words, of_heads = ce_trial.commands
    for change in (["--lr", "0.3"], ["--seed", "4"], ["--epochs", "13"]):
        with pytest.raises(InputError, match=rf"made with other arguments \({change[0][2:]} .* -> {change[1]}\)"):
            results.ended([*words, *change])
    with pytest.raises(InputError, match=r"made with other arguments \(feature_views 0 -> 2\)"):
        results.ended([*of_heads, "--feature-views", "2"])


def test_a_run_of_before_the_heads_has_ended_too(ce_trial):
    """Its args.json does not say what there was no flag for."""
    file = ce_trial.run_dir / "args.json"
    whole = json.loads(file.read_text())
    old = {name: value for name, value in whole["args"].items() if name not in ("holdout", "lr_end", "warmup_epochs")}
    file.write_text(json.dumps(whole | {"args": old}))
    assert results.ended(ce_trial.commands[0])
    file.write_text(json.dumps(whole))


def test_a_run_that_stopped_early_has_not_ended(ce_trial):
    log = ce_trial.run_dir / "log.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert [results.ended(command) for command in ce_trial.commands] == [False, True]
    log.write_text(whole)
    assert results.ended(ce_trial.commands[0])


def note(run_dir: Path, word: str) -> list[str]:
    """A command that appends a word to a file of the run folder."""
    return ["-c", f"open({str(run_dir / 'words')!r}, 'a').write({word!r})"]


def test_commands_of_a_trial_follow_one_another(tmp_path, capsys):
    trials = [Trial(tmp_path / name, (note(tmp_path / name, "one "), note(tmp_path / name, "two"))) for name in "abc"]
    run_all(trials, jobs=2)
    assert [(tmp_path / name / "words").read_text() for name in "abc"] == ["one two"] * 3
    assert capsys.readouterr().out.count("/3] ") == 3


def test_a_failure_is_named_and_ends_the_others(tmp_path):
    pid = tmp_path / "pid"
    endless = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    failing = (
        f"import os, time\nwhile not os.path.getsize({str(pid)!r}): time.sleep(0.1)\nraise SystemExit('error: no')"
    )
    pid.touch()
    trials = [Trial(tmp_path / "endless", (["-c", endless],)), Trial(tmp_path / "failing", (["-c", failing],))]
    with pytest.raises(InputError, match=r"failing: error: no; its output is in .*failing/output.txt"):
        run_all(trials, jobs=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_run_that_was_killed_is_named_by_its_signal(tmp_path):
    suicide = ["-c", "import os, signal; print('fine so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)"]
    with pytest.raises(InputError, match="killed by SIGKILL; its output"):
        run_all([Trial(tmp_path / "a", (suicide,))], jobs=1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_a_signal_ends_the_runs_too(number, code, tmp_path):
    """The whole command is asked to stop while its first two runs are under way."""
    command = [sys.executable, "-m", "examples.results", "--folder", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    outputs = [tmp_path / "rho10" / f"{key}_s0" / "output.txt" for key in ("kcl", "tsc")]
    while not all(file.exists() and "steps an epoch" in file.read_text() for file in outputs):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(60) == code
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_one_seed_of_everything(args):
    trials = [trial_of(*cell, 3, args) for cell in cells()]  # 5 methods at 3 imbalances
    assert len({trial.run_dir for trial in trials}) == len(trials) == 15
    stage_1, stage_2 = "main_moco_supcon_imba.py", "main_lincls_imba.py"
    assert [command[0] for command in trials[0].commands] == [stage_1, stage_2, stage_2]
    assert trials[2].commands[0][:2] == ["-m", "examples.cross_entropy"]
    for trial in trials:
        for command in trial.commands:
            assert command[command.index("--run-dir") + 1].startswith(str(trial.run_dir))
            assert command[command.index("--seed") + 1] == "3"


def test_epochs_are_those_of_the_demo():
    assert f"--epochs {results_plan.PROBE_EPOCHS} " in demo.STAGE_2
    assert f"--monitor-freq {results_plan.MONITORED}" in demo.STAGE_1


@pytest.mark.parametrize(
    ("flag", "message"), [("--seeds 1", "expected 2 or more"), ("--epochs 6", "expected a multiple of 4")]
)
def test_what_makes_no_page_is_refused(flag, message, tmp_path):
    with pytest.raises(InputError, match=message):
        results.main([*flag.split(), "--folder", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
