"""Jobs of several processes: every launcher, and what happens when one stops or dies (gloo, CPU)."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import LAUNCHERS, free_port, run, start
from tests.soak.processes import descendants
from utils.run import checkpoint


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_both_stages_run_in_two_processes(launcher, flags, probe_flags, tmp_path, digits_root):
    before, after = LAUNCHERS[launcher]()
    stage_1 = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--run-dir", str(tmp_path / "run")]
    done = run([sys.executable, *before, "main_moco_supcon_imba.py", *stage_1, *after])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Epoch: [2/2] TSC  Loss") == 1  # one process speaks
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == 2
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    assert weights["module.queue_ptr"].item() == 2 * 5 * 64 % 256  # the global batch is 64, not 128

    before, after = LAUNCHERS[launcher]()
    probe = [*probe_flags, "--epochs", "1", "--pretrained", str(tmp_path / "run" / "last.pth.tar")]
    probe += ["--run-dir", str(tmp_path / "probe")]
    done = run([sys.executable, *before, "main_lincls_imba.py", *probe, *after])
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "probe" / "results.json").read_text())

    # two processes have counted every test image once: one process finds the same
    one = [*probe_flags, "--evaluate", "--resume", str(tmp_path / "probe" / "last.pth.tar")]
    assert (
        f"test, epoch 1: top-1 {results['last']['acc1']:.2f}"
        in run([sys.executable, "main_lincls_imba.py", *one]).stdout
    )


def nodes(launcher: str, number: int, port: int) -> tuple[list[str], list[str]]:
    """What stands before and after the script on machine `number` of two."""
    if launcher == "release":
        where = ["--world-size", "2", "--rank", str(number), "--dist-url", f"tcp://127.0.0.1:{port}"]
        return [], ["--multiprocessing-distributed", *where]
    where = ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
    return ["-m", "torch.distributed.run", *where, "--master-addr", "127.0.0.1", "--master-port", str(port)], []


@pytest.mark.parametrize(("launcher", "processes"), [("release", 4), ("torchrun", 2)])
def test_two_machines_are_one_job_with_one_writer(launcher, processes, flags, tmp_path):
    port, machines = free_port(), []
    for number in range(2):
        before, after = nodes(launcher, number, port)
        command = [sys.executable, *before, "main_moco_supcon_imba.py", *flags, "--epochs", "1", *after]
        machines.append(start([*command, "--run-dir", str(tmp_path / "run")]))
    (first, _), (second, err) = (machine.communicate(timeout=240) for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], err
    said = [line for line in second.splitlines() if not line.startswith("[Gloo]")]  # PyTorch 2.9 says who has met
    assert "Epoch: [1/1] KCL  Loss" in first and not said
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == processes
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


def long_run(launcher: str, flags: list[str], run_dir: Path, *more: str) -> list[str]:
    before, after = LAUNCHERS[launcher]()
    return [
        sys.executable,
        *before,
        "main_moco_supcon_imba.py",
        *flags,
        "-p",
        "1",
        "--run-dir",
        str(run_dir),
        *after,
        *more,
    ]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_when_one_process_dies_the_job_ends(launcher, flags, tmp_path):
    """Killed, so it cannot say anything: the others do not wait for it."""
    job = start(long_run(launcher, flags, tmp_path / "run", "--epochs", "500"))
    next(line for line in job.stdout if "Epoch: [1/500]" in line)
    workers = [pid for pid in descendants(job.pid) if "multiprocessing.spawn" in words(pid) or is_rank(pid)]
    os.kill(workers[-1], signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode not in (0, None)
    assert "SIGKILL" in err


def words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def is_rank(pid: int) -> bool:
    """Whether it is a process that torchrun has started."""
    return "main_moco" in words(pid) and "torch.distributed.run" not in words(pid)


FOUR_EPOCHS = ["--epochs", "4", "--targeted", "--sep_t", "--resume", "auto"]


@pytest.fixture(scope="module")
def whole_of_two(flags, tmp_path_factory) -> dict:
    """The weights of a run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole_of_two") / "run"
    done = run(long_run("release", flags, folder, *FOUR_EPOCHS))
    assert done.returncode == 0, done.stderr
    return checkpoint.load(folder / "last.pth.tar")["state_dict"]


def test_a_signal_to_the_launching_process_saves_and_all_go_on_bit_for_bit(flags, whole_of_two, tmp_path):
    """SIGTERM within an epoch: both ranks stop after the same step, one saves, and nothing is lost."""
    job = start(long_run("release", flags, tmp_path / "run", *FOUR_EPOCHS))
    next(line for line in job.stdout if "Epoch: [2/4] KCL[   1/5]" in line)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 143 and "stopped by SIGTERM after epoch" in err
    again = run(long_run("release", flags, tmp_path / "run", *FOUR_EPOCHS))
    assert again.returncode == 0 and "resumed" in again.stdout, again.stderr
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    torch.testing.assert_close(weights, whole_of_two, rtol=0, atol=0)


def test_torchrun_starts_killed_workers_again_and_nothing_is_lost(flags, whole_of_two, tmp_path):
    """--max-restarts with --resume auto: a worker is killed within an epoch, the group starts again."""
    command = long_run("torchrun", flags, tmp_path / "run", *FOUR_EPOCHS, "--save-steps", "1")
    command[3:3] = ["--max-restarts", "2"]
    job = start(command)
    next(line for line in job.stdout if "Epoch: [2/4] KCL[   2/5]" in line)
    os.kill([pid for pid in descendants(job.pid) if is_rank(pid)][-1], signal.SIGKILL)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert "resumed" in out
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    torch.testing.assert_close(weights, whole_of_two, rtol=0, atol=0)


def test_a_mistake_is_said_before_any_process_starts(flags, tmp_path):
    command = [*flags, "-b", "511", "--multiprocessing-distributed", "--run-dir", str(tmp_path / "run")]
    done = run([sys.executable, "main_moco_supcon_imba.py", *command])
    assert done.returncode == 2
    assert done.stderr == "error: --batch-size 511: does not divide over 2 processes\n"


def test_a_mistake_found_by_the_processes_ends_the_job_with_2(flags, tsc_run, tmp_path):
    command = [
        *flags,
        "--override",
        "--moco-dim",
        "32",
        "--resume",
        str(tsc_run / "last.pth.tar"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    command += ["--multiprocessing-distributed", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    done = run([sys.executable, "main_moco_supcon_imba.py", *command])
    assert done.returncode == 2
    assert "does not fit the model" in done.stderr and "Traceback" not in done.stderr


def test_processes_that_cannot_meet_say_so_in_one_line(flags, tmp_path):
    command = [*flags, "--multiprocessing-distributed", "--dist-url", "garbage", "--run-dir", str(tmp_path / "run")]
    done = run([sys.executable, "main_moco_supcon_imba.py", *command])
    assert done.returncode == 2
    assert "error: the processes cannot meet at garbage over gloo: " in done.stderr and "Traceback" not in done.stderr
