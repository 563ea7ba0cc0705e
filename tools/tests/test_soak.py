"""Small runs of `python -m tools.soak`, and tests that it detects failures."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from tests import ROOT
from tools.soak import summary
from tools.soak.inputs import REFUSED, STOPPED, USED, classify_outcome, hash_files, kind_of_case
from tools.soak.kills import find_difference, values_match
from tools.soak.processes import RunningProcesses, error_log, fork


def test_soak_resumes_and_counts_earlier_cases(tmp_path):
    for area, more in (("kills", {"kills": 5, "outcome": "same bits"}), ("inputs", {"outcome": "used"})):
        for number in range(9):
            summary.add_case(tmp_path, {"area": area, "case": number, "kind": "x", **more, "seconds": 1})
    with (tmp_path / summary.CASES).open("a") as file:
        file.write('{"area": "kills", "case": 9, "ki')  # the soak was killed during this case, so it runs again
    command = [sys.executable, "-m", "tools.soak", "--folder", str(tmp_path), "--areas", "kills", "inputs"]
    ended = subprocess.run([*command, "--cases", "10"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    cases = summary.read_cases(tmp_path)
    assert sorted(case["case"] for case in cases if case["area"] == "kills") == list(range(10))
    about = json.loads((tmp_path / summary.SUMMARY).read_text())["about"]
    # Case 9 of kills is killed once at its sixth file operation, so the test does not depend on timing.
    assert (about["cases"], about["failures"], about["kills"]) == (20, 0, 9 * 5 + 1)
    assert "| all | 10 | 46 | 10 | 0 |" in (tmp_path / summary.TABLE).read_text()


def test_failure_is_in_the_table_with_its_case(tmp_path):
    for number, outcome in enumerate(("used", "a traceback", "a traceback")):
        summary.add_case(
            tmp_path, {"area": "inputs", "case": number, "kind": "study files", "outcome": outcome, "seconds": 1}
        )
    summary.write_summary(tmp_path, "python -m tools.soak")
    table = (tmp_path / summary.TABLE).read_text()
    assert "| study files | 3 | 1 | 2 |" in table and "| inputs | study files | a traceback | 2 | inputs 1 |" in table


def test_damaged_kinds_have_documented_shares():
    counts = Counter(kind_of_case(number) for number in range(10_000))
    assert [counts.pop(kind) for kind in ("split lists", "images", "checkpoints", "target files")] == [
        3000, 2000, 2000, 1000
    ]  # fmt: skip
    assert counts == dict.fromkeys(("IDX files", "recipes", "study files", "features", "run folders"), 400)


ERROR = "error: no such file\n"


@pytest.mark.parametrize(
    "code, errors, change, outcome",
    [
        (0, "", None, USED),
        (2, ERROR, None, REFUSED),
        (2, ERROR, "new/log.jsonl", STOPPED),
        (None, "", None, "hangs"),
        (1, "Traceback (most recent call last):\n", None, "a traceback"),
        (1, ERROR, None, "exit code 1"),
        (-11, "", None, "exit code -11"),
        (2, ERROR + "more\n", None, "refused in 2 lines"),
        (2, "", None, "refused in 0 lines"),
        (2, ERROR, "there", "refused and changed there"),
        (0, "", "there", "changed there"),
        (0, "", "new/.last.pth.tar.draft-x", "left .last.pth.tar.draft-x"),
        (0, "", "new/last.pth.tar", "left last.pth.tar"),
    ],
)
def test_classify_outcome_detects_bad_ends(tmp_path, code, errors, change, outcome):
    (tmp_path / "there").write_text("as it was")
    before = hash_files(tmp_path)
    if change:
        (tmp_path / change).parent.mkdir(exist_ok=True)
        (tmp_path / change).write_text("half a file")
    assert classify_outcome(code, errors, tmp_path, before, resumes=False) == outcome


def test_resumed_run_may_write_to_its_folder(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    before = hash_files(tmp_path)
    (tmp_path / "args.json").write_text("{ }")
    diverged = "error: Epoch: [3/3] TSC, step 3: a weight is not finite\n"
    assert classify_outcome(0, "", tmp_path, before, resumes=True) == USED
    assert classify_outcome(2, diverged, tmp_path, before, resumes=True) == STOPPED
    assert (
        classify_outcome(2, "error: epoch 3, val: logits that are not finite\n", tmp_path, before, resumes=True)
        == STOPPED
    )
    assert classify_outcome(2, diverged, tmp_path, before, resumes=False) == "refused and changed args.json"
    assert classify_outcome(2, ERROR, tmp_path, before, resumes=True) == "refused and changed args.json"


def test_find_difference_detects_weights_and_numbers(tmp_path, tsc_run):
    run = tmp_path / "run"
    shutil.copytree(tsc_run, run)
    assert find_difference(run, tsc_run) is None
    last = torch.load(run / "last.pth.tar", weights_only=True)
    name = next(iter(last["state_dict"]))
    last["state_dict"][name].view(-1)[0] += 1e-6
    torch.save(last, run / "last.pth.tar")
    assert find_difference(run, tsc_run) == "other weights in last.pth.tar"
    shutil.copy(tsc_run / "last.pth.tar", run)
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:-1]))
    assert find_difference(run, tsc_run) == "other numbers in log.jsonl"
    assert values_match({"a": [1.0, None]}, {"a": [1.0, None]}, 1) and not values_match([1.0], [1.0 + 1e-7], 1)
    assert values_match([1.0], [1.0 + 1e-7], 2) and not values_match([1.0], [1.0 + 1e-5], 2)


def test_hanging_run_is_killed_with_its_children(tmp_path):
    def work() -> None:
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)

    running = RunningProcesses([fork(work, tmp_path / "log")])
    while len(process_tree := running.process_tree()) < 2:
        time.sleep(0.01)
    assert running.wait(seconds=0) is None and running.poll() == -signal.SIGKILL
    assert not error_log(tmp_path / "log").read_text()
    child = RunningProcesses([process_tree[1]])
    with pytest.raises(ChildProcessError):  # the process is not a child of this one, and its parent ended
        child.poll()
