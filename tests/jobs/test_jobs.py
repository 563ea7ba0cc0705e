"""Jobs of two processes: each launcher, and what happens when a process stops or dies (gloo, CPU).

A launcher that starts Python again takes about ten seconds. Tests of anything else fork its processes.
"""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
from tests.processes import LAUNCHERS, Program, descendants, free_port, run
from tests.refusals import line_with
from tests.stopping import BATCH, QUEUE, STEPS
from utils.run import checkpoint

STAGE_1, STAGE_2 = "main_moco_supcon_imba.py", "main_lincls_imba.py"
# Three epochs of KCL and four of TSC: long enough to be stopped within.
EPOCHS = 7
TSC = ["--epochs", str(EPOCHS), "--targeted", "--sep_t", "--resume", "auto", "-p", "1"]


def release(words: list[str], **options) -> Program:
    """Start a program with the flags of the authors' code, which starts two processes."""
    _, after = LAUNCHERS["release"]()
    return Program([*words, *after], **({"fork_workers": True} | options))


def elastic(flags: list[str], restarts: int = 0) -> Program:
    """Start stage 1 in two processes by torchrun's agent, which forks them."""
    return Program(["-m", "tests.jobs.elastic", str(restarts), *flags])


def ranks(words: list[str], machines: int = 1) -> list[Program]:
    """Start two processes with the variables that torchrun sets, on one machine or one on each of two."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    per_machine = 2 // machines
    together["LOCAL_WORLD_SIZE"] = str(per_machine)
    return [
        Program(words, env=together | {"RANK": str(rank), "LOCAL_RANK": str(rank % per_machine)}) for rank in range(2)
    ]


def assert_ended_well(*programs: Program) -> None:
    for program in programs:
        _, err = program.communicate()
        assert program.returncode == 0, err


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> tuple[Program, Path]:
    """A run of stage 1 by torchrun that nothing disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("whole_of_two") / "run"
    before, _ = LAUNCHERS["torchrun"]()
    job = Program([*before, STAGE_1, *flags, *TSC, "--run-dir", str(folder)])
    assert_ended_well(job)
    return job, folder


def assert_same_weights(run_dir: Path, whole: tuple[Program, Path]) -> None:
    ours, theirs = (checkpoint.load(folder / checkpoint.LAST)["state_dict"] for folder in (run_dir, whole[1]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_two_processes_share_the_batch_and_one_speaks(whole):
    job, folder = whole
    assert job.stdout.count(f"Epoch: [{EPOCHS}/{EPOCHS}] TSC  Loss") == 1
    assert json.loads((folder / "args.json").read_text())["processes"] == 2
    pointer = checkpoint.load(folder / checkpoint.LAST)["state_dict"]["module.queue_ptr"].item()
    assert pointer == EPOCHS * STEPS * BATCH % QUEUE != EPOCHS * STEPS * 2 * BATCH % QUEUE


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_of_stage_2_count_every_test_image_once(launcher, whole, probe_flags, tmp_path, capsys):
    """One process finds the same. The processes of the release's launcher are not forked, as a user's are not."""
    words = [STAGE_2, *probe_flags, "--epochs", "1", "--pretrained", str(whole[1] / checkpoint.LAST)]
    words += ["--run-dir", str(tmp_path / "probe")]
    assert_ended_well(*([release(words, fork_workers=False)] if launcher == "release" else ranks(words)))
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    stage2.main([*probe_flags, "--evaluate", "--resume", str(tmp_path / "probe" / checkpoint.LAST)])
    line_with(capsys.readouterr().out, "test, epoch 1", f"{results['last']['acc1']:.2f}")


@pytest.mark.parametrize(("launcher", "processes"), [("release", 4), ("torchrun", 2)])
def test_two_machines_are_one_job_with_one_writer(launcher, processes, flags, tmp_path):
    words = [STAGE_1, *flags, "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    if launcher == "release":
        words += ["--multiprocessing-distributed", "--world-size", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
        machines = [Program([*words, "--rank", number], fork_workers=True) for number in "01"]
    else:
        machines = ranks(words, machines=2)
    assert_ended_well(*machines)
    first, second = (machine.stdout for machine in machines)
    printed = [line for line in second.splitlines() if not line.startswith("[Gloo]")]  # PyTorch 2.9 reports who has met
    assert "Epoch: [1/1] KCL  Loss" in first and not printed
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == processes
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_when_one_process_dies_the_job_ends(launcher, flags, tmp_path):
    """The process is killed, so it cannot report anything: the others do not wait for it."""
    words = [*flags, "-p", "1", "--epochs", "500", "--run-dir", str(tmp_path / "run")]
    job = release([STAGE_1, *words]) if launcher == "release" else elastic(words)
    job.wait_for("Epoch: [1/500]")
    os.kill(descendants(job.pid)[-1], signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode not in (0, None)
    # torchrun's agent reports the process that it finds first: the killed one, or one that has lost it.
    assert "SIGKILL" in err or (launcher == "torchrun" and "--resume auto" in err)


def test_a_signal_to_the_launching_process_saves_and_the_job_resumes_bit_for_bit(flags, whole, tmp_path):
    """SIGTERM within an epoch: both ranks stop after the same step, and one saves."""
    words = [STAGE_1, *flags, *TSC, "--run-dir", str(tmp_path / "run")]
    job = release(words)
    job.wait_for(f"Epoch: [2/{EPOCHS}] KCL[   1/{STEPS}]")
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 143
    line_with(err, "SIGTERM", "--resume auto")
    again = release(words)
    assert_ended_well(again)
    assert f"Epoch: [1/{EPOCHS}]" not in again.stdout
    assert_same_weights(tmp_path / "run", whole)


def test_torchrun_starts_killed_workers_again_and_nothing_is_lost(flags, whole, tmp_path):
    """--max-restarts with --resume auto: a worker is killed within an epoch, and the group starts again."""
    job = elastic([*flags, *TSC, "--save-steps", "1", "--run-dir", str(tmp_path / "run")], restarts=2)
    job.wait_for(f"Epoch: [4/{EPOCHS}] TSC[   1/{STEPS}]")
    os.kill(descendants(job.pid)[-1], signal.SIGKILL)
    assert_ended_well(job)
    assert job.stdout.count(f"Epoch: [1/{EPOCHS}] KCL  Loss") == 1
    assert_same_weights(tmp_path / "run", whole)


def test_a_mistake_is_reported_before_any_process_starts(flags, tmp_path):
    done = run([STAGE_1, *flags, "-b", "511", "--multiprocessing-distributed", "--run-dir", str(tmp_path / "run")])
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr == line_with(done.stderr, "error: ", "--batch-size", "511", "2 processes") + "\n"


def test_a_mistake_found_by_the_processes_ends_the_job_with_2(flags, tsc_run, tmp_path):
    resume = ["--override", "--moco-dim", "32", "--resume", str(tsc_run / checkpoint.LAST)]
    done = release([STAGE_1, *flags, *resume, "--run-dir", str(tmp_path / "run")])
    _, err = done.communicate()
    assert done.returncode == 2
    assert all(line.startswith("error: ") and str(tsc_run / checkpoint.LAST) in line for line in err.splitlines())


def test_processes_that_cannot_meet_report_it_in_one_line(flags, tmp_path):
    words = [STAGE_1, *flags, "--multiprocessing-distributed", "--dist-url", "garbage"]
    done = run([*words, "--run-dir", str(tmp_path / "run")], fork_workers=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line_with(done.stderr, "error: ", "garbage", "gloo")
