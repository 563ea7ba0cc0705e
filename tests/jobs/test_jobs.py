"""Jobs of two processes with each launcher, and jobs whose process is stopped or killed (gloo, CPU).

A launcher that starts a new Python takes about ten seconds, so most tests fork the processes instead.
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
# Three epochs of KCL and four of TSC: long enough to stop the run in the middle.
EPOCHS = 7
TSC = ["--epochs", str(EPOCHS), "--targeted", "--sep_t", "--resume", "auto", "-p", "1"]


def start_release(words: list[str], **options) -> Program:
    """Start a program with the flags of the authors' code, which starts two processes."""
    _, after = LAUNCHERS["release"]()
    return Program([*words, *after], **({"fork_workers": True} | options))


def start_elastic(flags: list[str], restarts: int = 0) -> Program:
    """Start stage 1 in two processes with torchrun's agent, which forks them."""
    return Program(["-m", "tests.jobs.elastic", str(restarts), *flags])


def start_ranks(words: list[str], machines: int = 1) -> list[Program]:
    """Start two processes with torchrun's variables, both on one machine or one on each of two machines."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    per_machine = 2 // machines
    common["LOCAL_WORLD_SIZE"] = str(per_machine)
    return [
        Program(words, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank % per_machine)}) for rank in range(2)
    ]


def assert_ended_well(*programs: Program) -> None:
    for program in programs:
        _, err = program.communicate()
        assert program.returncode == 0, err


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory) -> tuple[Program, Path]:
    """Return an uninterrupted stage-1 run with torchrun, and its folder."""
    folder = tmp_path_factory.mktemp("whole_of_two") / "run"
    before, _ = LAUNCHERS["torchrun"]()
    program = Program([*before, STAGE_1, *flags, *TSC, "--run-dir", str(folder)])
    assert_ended_well(program)
    return program, folder


def assert_same_weights(run_dir: Path, uninterrupted: tuple[Program, Path]) -> None:
    ours, theirs = (
        checkpoint.read_checkpoint(folder / checkpoint.LAST)["state_dict"] for folder in (run_dir, uninterrupted[1])
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_two_processes_share_the_batch_and_one_prints(uninterrupted):
    program, folder = uninterrupted
    assert program.stdout.count(f"Epoch: [{EPOCHS}/{EPOCHS}] TSC  Loss") == 1
    assert json.loads((folder / "args.json").read_text())["processes"] == 2
    pointer = checkpoint.read_checkpoint(folder / checkpoint.LAST)["state_dict"]["module.queue_ptr"].item()
    assert pointer == EPOCHS * STEPS * BATCH % QUEUE != EPOCHS * STEPS * 2 * BATCH % QUEUE


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_process_probe_evaluates_each_image_once(launcher, uninterrupted, probe_flags, tmp_path, capsys):
    """The accuracy equals that of one process. The processes of the authors' launcher are not forked here."""
    words = [STAGE_2, *probe_flags, "--epochs", "1", "--pretrained", str(uninterrupted[1] / checkpoint.LAST)]
    words += ["--run-dir", str(tmp_path / "probe")]
    assert_ended_well(*([start_release(words, fork_workers=False)] if launcher == "release" else start_ranks(words)))
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    stage2.main([*probe_flags, "--evaluate", "--resume", str(tmp_path / "probe" / checkpoint.LAST)])
    line_with(capsys.readouterr().out, "test, epoch 1", f"{results['last']['acc1']:.2f}")


@pytest.mark.parametrize(("launcher", "processes"), [("release", 4), ("torchrun", 2)])
def test_two_machines_form_one_job_with_one_writer(launcher, processes, flags, tmp_path):
    words = [STAGE_1, *flags, "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    if launcher == "release":
        words += ["--multiprocessing-distributed", "--world-size", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
        machines = [Program([*words, "--rank", number], fork_workers=True) for number in "01"]
    else:
        machines = start_ranks(words, machines=2)
    assert_ended_well(*machines)
    first, second = (machine.stdout for machine in machines)
    printed = [
        line
        for line in second.splitlines()
        if not line.startswith(("[Gloo]", "note: --targets"))  # PyTorch 2.9 prints connected ranks
    ]
    assert "Epoch: [1/1] KCL  Loss" in first and not printed
    assert json.loads((tmp_path / "run" / "args.json").read_text())["processes"] == processes
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_job_ends_when_one_process_is_killed(launcher, flags, tmp_path):
    """A killed process reports nothing, and the other process does not wait for it."""
    words = [*flags, "-p", "1", "--epochs", "500", "--run-dir", str(tmp_path / "run")]
    program = start_release([STAGE_1, *words]) if launcher == "release" else start_elastic(words)
    program.wait_for("Epoch: [1/500]")
    os.kill(descendants(program.pid)[-1], signal.SIGKILL)
    _, err = program.communicate(timeout=60)
    assert program.returncode not in (0, None)
    # torchrun's agent reports the process that it finds first: the killed one, or the one that lost it.
    assert "SIGKILL" in err or (launcher == "torchrun" and "--resume auto" in err)


def test_job_resumed_after_sigterm_is_bit_identical(flags, uninterrupted, tmp_path):
    """After SIGTERM within an epoch, both ranks stop after the same step, and one of them saves."""
    words = [STAGE_1, *flags, *TSC, "--run-dir", str(tmp_path / "run")]
    program = start_release(words)
    program.wait_for(f"Epoch: [2/{EPOCHS}] KCL[   1/{STEPS}]")
    program.send_signal(signal.SIGTERM)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 143
    line_with(err, "SIGTERM", "--resume auto")
    second = start_release(words)
    assert_ended_well(second)
    assert f"Epoch: [1/{EPOCHS}]" not in second.stdout
    assert_same_weights(tmp_path / "run", uninterrupted)


def test_job_restarted_by_torchrun_is_bit_identical(flags, uninterrupted, tmp_path):
    """A worker is killed within an epoch, and torchrun --max-restarts starts the group again with --resume auto."""
    program = start_elastic([*flags, *TSC, "--save-steps", "1", "--run-dir", str(tmp_path / "run")], restarts=2)
    program.wait_for(f"Epoch: [4/{EPOCHS}] TSC[   1/{STEPS}]")
    os.kill(descendants(program.pid)[-1], signal.SIGKILL)
    assert_ended_well(program)
    assert program.stdout.count(f"Epoch: [1/{EPOCHS}] KCL  Loss") == 1
    assert_same_weights(tmp_path / "run", uninterrupted)


def test_bad_argument_is_reported_before_processes_start(flags, tmp_path):
    done = run([STAGE_1, *flags, "-b", "511", "--multiprocessing-distributed", "--run-dir", str(tmp_path / "run")])
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr == line_with(done.stderr, "error: ", "--batch-size", "511", "2 processes") + "\n"


def test_error_in_processes_ends_job_with_exit_code_2(flags, tsc_run, tmp_path):
    resume = ["--override", "--moco-dim", "32", "--resume", str(tsc_run / checkpoint.LAST)]
    done = start_release([STAGE_1, *flags, *resume, "--run-dir", str(tmp_path / "run")])
    _, err = done.communicate()
    assert done.returncode == 2
    assert all(line.startswith("error: ") and str(tsc_run / checkpoint.LAST) in line for line in err.splitlines()), err


def test_failed_rendezvous_is_reported_in_one_line(flags, tmp_path):
    words = [STAGE_1, *flags, "--multiprocessing-distributed", "--dist-url", "garbage"]
    done = run([*words, "--run-dir", str(tmp_path / "run")], fork_workers=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line_with(done.stderr, "error: ", "garbage", "gloo")
