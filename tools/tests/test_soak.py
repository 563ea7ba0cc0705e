"""The soak of python -m tools.soak in small: a few cases by its command, and that it sees what it is there to see."""

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
from tools.soak.inputs import REFUSED, STOPPED, USED, contents, judged, kind_of
from tools.soak.kills import differs, same
from tools.soak.processes import Running, error_log, fork


def test_cases_end_well_and_are_counted_with_those_of_earlier_starts(tmp_path):
    for area, more in (("kills", {"kills": 5, "outcome": "same bits"}), ("inputs", {"outcome": "used"})):
        for number in range(9):
            summary.add(tmp_path, {"area": area, "case": number, "kind": "x", **more, "seconds": 1})
    with (tmp_path / summary.CASES).open("a") as file:
        file.write('{"area": "kills", "case": 9, "ki')  # of a case that the soak was killed in: it is done again
    command = [sys.executable, "-m", "tools.soak", "--folder", str(tmp_path), "--areas", "kills", "inputs"]
    ended = subprocess.run([*command, "--cases", "10"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    cases = summary.read(tmp_path)
    assert sorted(case["case"] for case in cases if case["area"] == "kills") == list(range(10))
    about = json.loads((tmp_path / summary.SUMMARY).read_text())["about"]
    # kills 9 is killed once, at its sixth operation on a file: at no time that a slow machine could miss
    assert (about["cases"], about["failures"], about["kills"]) == (20, 0, 9 * 5 + 1)
    assert "| all | 10 | 46 | 10 | 0 |" in (tmp_path / summary.TABLE).read_text()


def test_a_failure_is_in_the_table_with_the_case_to_repeat(tmp_path):
    for number, outcome in enumerate(("used", "a traceback", "a traceback")):
        summary.add(tmp_path, {"area": "inputs", "case": number, "kind": "plans", "outcome": outcome, "seconds": 1})
    summary.write(tmp_path, "python -m tools.soak")
    table = (tmp_path / summary.TABLE).read_text()
    assert "| plans | 3 | 1 | 2 |" in table and "| inputs | plans | a traceback | 2 | inputs 1 |" in table


def test_kinds_of_damaged_files_have_the_shares_that_the_page_says():
    counts = Counter(kind_of(number) for number in range(10_000))
    assert [counts.pop(kind) for kind in ("split lists", "images", "checkpoints", "target files")] == [
        3000, 2000, 2000, 1000
    ]  # fmt: skip
    assert counts == dict.fromkeys(("IDX files", "recipes", "plans", "features", "run folders"), 400)


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
def test_what_is_no_good_end_is_seen(tmp_path, code, errors, change, outcome):
    (tmp_path / "there").write_text("as it was")
    before = contents(tmp_path)
    if change:
        (tmp_path / change).parent.mkdir(exist_ok=True)
        (tmp_path / change).write_text("half a file")
    assert judged(code, errors, tmp_path, before, goes_on=False) == outcome


def test_a_run_that_goes_on_may_write_where_it_has_trained(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    before = contents(tmp_path)
    (tmp_path / "args.json").write_text("{ }")
    diverged = "error: Epoch: [3/3] TSC, step 3: a weight is not finite\n"
    assert judged(0, "", tmp_path, before, goes_on=True) == USED
    assert judged(2, diverged, tmp_path, before, goes_on=True) == STOPPED
    assert judged(2, "error: epoch 3, val: logits that are not finite\n", tmp_path, before, goes_on=True) == STOPPED
    assert judged(2, diverged, tmp_path, before, goes_on=False) == "refused and changed args.json"
    assert judged(2, ERROR, tmp_path, before, goes_on=True) == "refused and changed args.json"


def test_other_weights_and_other_numbers_are_seen(tmp_path, tsc_run):
    run = tmp_path / "run"
    shutil.copytree(tsc_run, run)
    assert differs(run, tsc_run) is None
    last = torch.load(run / "last.pth.tar", weights_only=True)
    name = next(iter(last["state_dict"]))
    last["state_dict"][name].view(-1)[0] += 1e-6
    torch.save(last, run / "last.pth.tar")
    assert differs(run, tsc_run) == "other weights in last.pth.tar"
    shutil.copy(tsc_run / "last.pth.tar", run)
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:-1]))
    assert differs(run, tsc_run) == "other numbers in log.jsonl"
    assert same({"a": [1.0, None]}, {"a": [1.0, None]}, 1) and not same([1.0], [1.0 + 1e-7], 1)
    assert same([1.0], [1.0 + 1e-7], 2) and not same([1.0], [1.0 + 1e-5], 2)


def test_a_run_that_hangs_is_killed_with_all_it_has_started(tmp_path):
    def work() -> None:
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)

    running = Running([fork(work, tmp_path / "log")])
    while len(family := running.family()) < 2:
        time.sleep(0.01)
    assert running.wait(seconds=0) is None and running.poll() == -signal.SIGKILL
    assert not error_log(tmp_path / "log").read_text()
    child = Running([family[1]])
    with pytest.raises(ChildProcessError):  # it is no child of this process, and its own parent is gone
        child.poll()
