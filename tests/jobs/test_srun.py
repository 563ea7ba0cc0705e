"""Tasks of srun, by the variables that it sets, as of Slurm 22.05; `make test-cluster` has a real one."""

import os
import signal
import sys

import pytest
import torch

import main_moco_supcon_imba as stage1
from tests.processes import Program, free_port
from tests.refusals import line_with, refusal
from tests.stopping import STEPS
from utils import distributed, launchers
from utils.parser import parse
from utils.run import launch

# The last of three tasks, of which two are on the first node; in a job of array or batch, with what that sets.
BATCH = {"SLURM_JOB_ID": "10", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "2"}
BATCH |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_CPUS_ON_NODE": "8"}
STEP = {"SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
STEP |= {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}


@pytest.fixture
def alone(monkeypatch):
    """No launcher, not even one that runs these tests."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_")) or name == "LOCAL_RANK"]:
        monkeypatch.delenv(name)


@pytest.fixture
def srun(alone, monkeypatch):
    set_all(monkeypatch, BATCH | STEP)


def set_all(monkeypatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_task_knows_its_place(srun, flags):
    assert launchers.numbers() == launchers.Numbers(rank=2, world_size=3, local_rank=0, local_world_size=1)
    assert launch.check(stage1.get_args_parser().parse_args([*flags, "-b", "513"])) == 3
    assert not distributed.is_main()


@pytest.mark.parametrize(
    "others",
    [
        BATCH,  # the script of sbatch, without srun
        {"SLURM_JOB_ID": "10", "SLURM_NTASKS": "3"},  # a shell of salloc
        BATCH | STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},  # srun -n 1
        BATCH | STEP | {"SLURM_NTASKS": "1"},  # the script of sbatch, sent from a step of another job
    ],
)
def test_who_is_no_task_of_several_is_one_process(others, alone, flags, monkeypatch):
    set_all(monkeypatch, others)
    args = parse(stage1.get_args_parser(), flags)
    assert launch.check(args) == 1 and distributed.is_main()


def test_a_shell_in_a_terminal_is_one_process(srun, flags, monkeypatch):
    """Of `srun --pty`, which starts all tasks but gives the terminal to one; a step within it inherits the variable."""
    monkeypatch.setenv("SLURM_PTY_PORT", "45193")
    args = stage1.get_args_parser().parse_args([*flags, "-b", "513"])
    for typed, processes in ((True, 1), (False, 3)):
        monkeypatch.setattr(sys.stdin, "isatty", lambda typed=typed: typed, raising=False)
        assert launch.check(args) == processes


def test_torchrun_within_srun_is_torchruns(srun, monkeypatch):
    set_all(monkeypatch, {"LOCAL_RANK": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    set_all(monkeypatch, {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"})
    assert launchers.numbers() == launchers.Numbers(rank=3, world_size=4, local_rank=1, local_world_size=2)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SLURM_PROCID", "3", ["3", "0", "2", "SLURM_STEP_NUM_TASKS"]),
        ("SLURM_LOCALID", "1", ["1", "0"]),
        ("SLURM_NODEID", "2", ["2", "0", "1"]),
        ("SLURM_STEP_TASKS_PER_NODE", "?", ["?", "8(x2),4"]),
        ("SLURM_LOCALID", None, ["SLURM_STEP_NUM_TASKS"]),
    ],
)
def test_what_does_not_go_together_is_named(name, value, expected, srun, flags, monkeypatch):
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    refusal(lambda: stage1.main(flags), name, *expected, "srun", "SLURM_STEP_NUM_TASKS")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[03-05,09],big1", "gpu03"),
        ("login,gpu[1-2]", "login"),
        ("rack[0-1]node[2,5]", "rack0node2"),
        ("a-b[007].site.org,c", "a-b007.site.org"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert launchers.first_node(nodes) == first


def test_steps_and_jobs_meet_at_ports_of_their_own(srun, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost,n1")
    found = set()
    for job in range(100, 130):
        for step in range(3):
            set_all(monkeypatch, {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
            found.add(launchers.slurm_address())
    assert len(found) == 90
    assert all(url.startswith("tcp://localhost:") and 12_000 <= int(url[16:]) < 32_000 for url in found)
    set_all(monkeypatch, {"MASTER_ADDR": "there", "MASTER_PORT": "29500"})
    assert launchers.slurm_address() == "tcp://there:29500"


def test_a_name_that_does_not_resolve_is_asked_of_slurm(srun, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "no-such-node.invalid")
    monkeypatch.setenv("PATH", str(tmp_path))
    refusal(launchers.slurm_address, "no-such-node.invalid", "scontrol", "MASTER_ADDR")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "NodeName=$3 CoresPerSocket=1\n   NodeAddr=10.1.2.3 Port=1"\n')
    (tmp_path / "scontrol").chmod(0o755)
    assert launchers.slurm_address().startswith("tcp://10.1.2.3:")


def test_flags_of_the_release_in_a_step(srun, flags, capsys, monkeypatch):
    """They number machines, of one task each, where they are all given; else they are idle."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    words = ["--world-size", "2", "--rank", "1", "--dist-url", "tcp://n1:1"]
    args = parse(stage1.get_args_parser(), [*flags, "-b", "513", *words])
    note = capsys.readouterr().out
    assert note == line_with(note, "--world-size", "--rank", "--dist-url", "srun") + "\n"
    assert launch.check(args) == 3
    args = parse(stage1.get_args_parser(), [*flags, "--multiprocessing-distributed", *words])
    refusal(lambda: launch.check(args), "srun", "3", "--world-size 2", "--multiprocessing-distributed")
    args.world_size = 3
    args.batch_size = 6 * max(torch.cuda.device_count(), 1)
    assert launch.check(args) == launch.world_size_from(args) > 3


def test_a_task_takes_its_part_of_the_steps_cores(srun, monkeypatch):
    """Eight of 64 cores of the machine, for four tasks: bound to two each, or free to run on all."""
    assert launchers.cores_of_process(2, 4) == launchers.cores_of_process(64, 4) == 2
    assert launchers.cores_of_process(64, 16) == 1
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert launchers.cores_of_process(8, 4) == 2


def tasks(flags: list[str], own: tuple = ((), ())) -> list[Program]:
    """Start two tasks of a step on this machine; own: the flags of each."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    step |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    return [
        Program(
            ["main_moco_supcon_imba.py", *flags, *own[rank]],
            env=BATCH | STEP | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]


def ends(started: list[Program]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; without what PyTorch 2.9 prints about who has met."""
    texts = [task.communicate(timeout=120) for task in started]
    printed = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in texts]
    return [(task.returncode, out, err) for task, out, (_, err) in zip(started, printed, texts, strict=True)]


def test_a_signal_to_all_tasks_saves_with_one_line_and_they_resume(flags, tmp_path):
    """As `scancel --signal=TERM JOB.0` and the end of a job's time send it."""
    words = [*flags, "-p", "1", "--epochs", "6", "--resume", "auto", "--run-dir", str(tmp_path / "run")]
    started = tasks(words)
    started[0].wait_for(f"Epoch: [1/6] KCL[   1/{STEPS}]")
    for task in started:
        task.send_signal(signal.SIGTERM)
    (first, _, line), (second, out, err) = ends(started)
    assert (first, second, out, err) == (143, 143, [], "")
    assert line == line_with(line, "SIGTERM", "--resume auto") + "\n"

    (first, lines, err), (second, out, _) = ends(tasks(words))
    assert (first, second, out) == (0, 0, []), err
    printed = "\n".join(lines)
    assert "Epoch: [6/6] KCL  Loss" in printed and f"Epoch: [1/6] KCL[   1/{STEPS}]" not in printed


def test_tasks_of_other_runs_are_refused(flags, tmp_path):
    """As `srun -n 2 bash -c 'python main... --seed $SLURM_PROCID'` starts them."""
    own = [["--seed", str(rank), "--run-dir", str(tmp_path / f"run{rank}")] for rank in range(2)]
    (code, out, err), other = ends(tasks(flags, own=own))
    assert (code, out, other) == (2, [], (2, [], ""))
    assert err == line_with(err, "error: ", "process 1", "seed", "0") + "\n"
    assert not any(tmp_path.iterdir())
