"""srun tasks, simulated with the variables that Slurm 22.05 sets. `make test-cluster` uses a real Slurm."""

import os
import signal
import sys

import pytest
import torch

import main_moco_supcon_imba as stage1
from tests.processes import Program, free_port
from tests.refusals import line_with, refusal
from tests.stopping import STEPS
from utils import distributed
from utils.cli.parser import parse
from utils.distributed import launch, launchers

# The last of three tasks, two of which run on the first node, with the variables of a batch job.
BATCH = {"SLURM_JOB_ID": "10", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "2"}
BATCH |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_CPUS_ON_NODE": "8"}
STEP = {"SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
STEP |= {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}


def check(args) -> int:
    return launch.check(launch.LaunchConfig.from_args(args), args.batch_size)


@pytest.fixture
def no_launcher(monkeypatch):
    """Unset the variables of any launcher, including one that runs these tests."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_")) or name == "LOCAL_RANK"]:
        monkeypatch.delenv(name)


@pytest.fixture
def srun(no_launcher, monkeypatch):
    set_variables(monkeypatch, BATCH | STEP)


def set_variables(monkeypatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_srun_task_reads_its_rank(srun, flags):
    assert launchers.job_ranks() == launchers.Ranks(rank=2, world_size=3, local_rank=0, local_world_size=1)
    assert check(stage1.get_args_parser().parse_args([*flags, "-b", "513"])) == 3
    assert not distributed.is_main()


@pytest.mark.parametrize(
    "others",
    [
        BATCH,  # an sbatch script without srun
        {"SLURM_JOB_ID": "10", "SLURM_NTASKS": "3"},  # an salloc shell
        BATCH | STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},  # srun -n 1
        BATCH | STEP | {"SLURM_NTASKS": "1"},  # an sbatch script submitted from a step of another job
    ],
)
def test_single_task_runs_as_one_process(others, no_launcher, flags, monkeypatch):
    set_variables(monkeypatch, others)
    args = parse(stage1.get_args_parser(), flags)
    assert check(args) == 1 and distributed.is_main()


def test_interactive_shell_runs_as_one_process(srun, flags, monkeypatch):
    """`srun --pty` gives the terminal to one task only. A step started inside it inherits the variable."""
    monkeypatch.setenv("SLURM_PTY_PORT", "45193")
    args = stage1.get_args_parser().parse_args([*flags, "-b", "513"])
    for in_terminal, processes in ((True, 1), (False, 3)):
        monkeypatch.setattr(sys.stdin, "isatty", lambda in_terminal=in_terminal: in_terminal, raising=False)
        assert check(args) == processes


def test_torchrun_variables_win_over_srun(srun, monkeypatch):
    set_variables(monkeypatch, {"LOCAL_RANK": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    set_variables(monkeypatch, {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"})
    assert launchers.job_ranks() == launchers.Ranks(rank=3, world_size=4, local_rank=1, local_world_size=2)


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
def test_inconsistent_srun_variable_is_named(name, value, expected, srun, flags, monkeypatch):
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
def test_first_node_of_node_list(nodes, first):
    assert launchers.first_node(nodes) == first


def test_each_job_step_has_its_own_port(srun, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost,n1")
    addresses = set()
    for job in range(100, 130):
        for step in range(3):
            set_variables(monkeypatch, {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
            addresses.add(launchers.slurm_address())
    assert len(addresses) == 90
    assert all(url.startswith("tcp://localhost:") and 12_000 <= int(url[16:]) < 32_000 for url in addresses)
    set_variables(monkeypatch, {"MASTER_ADDR": "there", "MASTER_PORT": "29500"})
    assert launchers.slurm_address() == "tcp://there:29500"


def test_unresolved_node_name_is_looked_up_with_scontrol(srun, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "no-such-node.invalid")
    monkeypatch.setenv("PATH", str(tmp_path))
    refusal(launchers.slurm_address, "no-such-node.invalid", "scontrol", "MASTER_ADDR")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "NodeName=$3 CoresPerSocket=1\n   NodeAddr=10.1.2.3 Port=1"\n')
    (tmp_path / "scontrol").chmod(0o755)
    assert launchers.slurm_address().startswith("tcp://10.1.2.3:")


def test_release_launch_flags_in_srun_step(srun, flags, capsys, monkeypatch):
    """With --multiprocessing-distributed they count machines of one task each; otherwise they are ignored."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    words = ["--world-size", "2", "--rank", "1", "--dist-url", "tcp://n1:1"]
    args = parse(stage1.get_args_parser(), [*flags, "--targeted", "-b", "513", *words])
    note = capsys.readouterr().out
    assert note == line_with(note, "--world-size", "--rank", "--dist-url", "srun") + "\n"
    assert check(args) == 3
    args = parse(stage1.get_args_parser(), [*flags, "--multiprocessing-distributed", *words])
    refusal(lambda: check(args), "srun", "3", "--world-size 2", "--multiprocessing-distributed")
    args.world_size = 3
    args.batch_size = 6 * max(torch.cuda.device_count(), 1)
    assert check(args) == launch.expected_world_size(launch.LaunchConfig.from_args(args)) > 3


def test_cores_are_divided_among_tasks(srun, monkeypatch):
    """Four tasks have 8 of the machine's 64 cores, either bound to two cores each or free to use all."""
    assert launchers.cores_of_process(2, 4) == launchers.cores_of_process(64, 4) == 2
    assert launchers.cores_of_process(64, 16) == 1
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert launchers.cores_of_process(8, 4) == 2


def start_tasks(flags: list[str], own_flags: tuple = ((), ())) -> list[Program]:
    """Start two tasks of a step on this machine. own_flags: flags of each task."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    step |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    return [
        Program(
            ["main_moco_supcon_imba.py", *flags, *own_flags[rank]],
            env=BATCH | STEP | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]


def wait_for_tasks(started: list[Program]) -> list[tuple[int, str, str]]:
    """Return (exit code, output lines, stderr) of each task, without PyTorch 2.9's lines about connected ranks."""
    texts = [task.communicate(timeout=120) for task in started]
    printed = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in texts]
    return [(task.returncode, out, err) for task, out, (_, err) in zip(started, printed, texts, strict=True)]


def test_signalled_tasks_save_and_resume(flags, tmp_path):
    """`scancel --signal=TERM JOB.0` and the time limit of a job send the signal to all tasks."""
    words = [*flags, "-p", "1", "--epochs", "6", "--resume", "auto", "--run-dir", str(tmp_path / "run")]
    started = start_tasks(words)
    started[0].wait_for(f"Epoch: [1/6] KCL[   1/{STEPS}]")
    for task in started:
        task.send_signal(signal.SIGTERM)
    (first, _, line), (second, out, err) = wait_for_tasks(started)
    assert (first, second, out, err) == (143, 143, [], "")
    assert line == line_with(line, "SIGTERM", "--resume auto") + "\n"

    (first, lines, err), (second, out, _) = wait_for_tasks(start_tasks(words))
    assert (first, second, out) == (0, 0, []), err
    printed = "\n".join(lines)
    assert "Epoch: [6/6] KCL  Loss" in printed and f"Epoch: [1/6] KCL[   1/{STEPS}]" not in printed


def test_tasks_with_different_arguments_are_refused(flags, tmp_path):
    """`srun -n 2 bash -c 'python main... --seed $SLURM_PROCID'` starts such tasks."""
    own_flags = [["--seed", str(rank), "--run-dir", str(tmp_path / f"run{rank}")] for rank in range(2)]
    (code, out, err), other = wait_for_tasks(start_tasks([*flags, "--targeted"], own_flags=own_flags))
    assert (code, out, other) == (2, [], (2, [], ""))
    assert err == line_with(err, "error: ", "process 1", "seed", "0") + "\n"
    assert not any(tmp_path.iterdir())
