"""The scripts of docs/cluster.md under a real Slurm of two nodes, requeued after each kind of stop; and task counts."""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.cluster.two_nodes import TwoNodes, read, wait_for
from tests.processes import Program, free_port
from utils.run import checkpoint

pytestmark = pytest.mark.cluster
PAGE = ROOT / "docs" / "cluster.md"
PRINT_TASK = "from utils import launchers as l; print(*(l.job_ranks() if l.under_launcher() else ['alone']))"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with TwoNodes(tmp_path_factory.mktemp("slurm")) as nodes:
        yield nodes


class Job:
    """A queued script of the page, changed to work on this machine. It writes to folder/run.

    Args:
        number: of the script, from 0. replacements: texts of the script and new texts. words: flags of the run.
    """

    def __init__(self, slurm: TwoNodes, number: int, replacements: dict[str, str], words: str, folder: Path):
        script = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.DOTALL)[number]
        for old, new in (replacements | {"--data-root IMAGENET": words, "runs/kcl": str(folder / "run")}).items():
            assert old in script
            script = script.replace(old, new)
        (folder / "job.sh").write_text(script)
        self.slurm, self.output = slurm, folder / "output"
        flags = ["--output", str(self.output), "--chdir", str(ROOT)]
        self.number = slurm.run("sbatch", "--parsable", *flags, str(folder / "job.sh"))
        assert self.number.isdecimal(), self.number

    def read_output(self) -> str:
        return read(str(self.output))

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 600) -> None:
        wait_for(what, condition, seconds, details=lambda: f"{self.read_output()[-3000:]}\n{self.slurm.logs()}")

    def wait_for_epoch(self, after: int) -> None:
        """Wait until Slurm has restarted the job this many times and the job has then finished an epoch."""
        started = {"JobState": "RUNNING", "Restarts": str(after)}
        self.wait(
            f"start {after}", lambda: {word: self.slurm.job_field(self.number, word) for word in started} == started
        )
        ended = self.count_epochs() if after else 0
        self.wait(f"an epoch after start {after}", lambda: self.count_epochs() > ended)

    def count_epochs(self, epoch: str = "") -> int:
        """Count the lines that report the end of an epoch, over all starts of the job. epoch: such as `1/4`."""
        return sum(f"Epoch: [{epoch}" in line and " Loss" in line for line in self.read_output().splitlines())

    def wait_for_state(self, state: str) -> None:
        self.wait(state, lambda: self.slurm.job_field(self.number, "JobState") == state)


def run_flags(data: Path, epochs: int) -> str:
    """Return flags of a small run that keeps each epoch's checkpoint, in place of the page's data flags."""
    small = f"--dataset digits --data-root {data} --image-size 8 -b 512 --moco-k 1024 --moco-dim 16"
    return f"{small} -j 0 -p 0 --device cpu --seed 1 -s 1 --epochs {epochs}"


def assert_matches_uninterrupted_run(run: Path, words: str, folder: Path) -> None:
    """Check that a run's last epoch is bit-identical to that of an uninterrupted run of two processes."""
    last, whole = max(run.glob("checkpoint_*.pth.tar")), folder / "whole"
    flags = [*words.split(), "--mlp", "--cos", "--lr", "0.1", "--save-steps", "500", "--run-dir", str(whole)]
    flags += ["--multiprocessing-distributed", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    program = Program(["main_moco_supcon_imba.py", *flags], fork_workers=True)
    try:
        exists = (whole / last.name).exists
        wait_for(f"{last.name} of an uninterrupted run", lambda: exists() or program.poll() is not None, 1200)
    finally:
        if program.poll() is None:
            program.send_signal(signal.SIGTERM)
        program.communicate()
    ours, theirs = (checkpoint.read_checkpoint(place / last.name) for place in (run, whole))
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def count_stops(output: str) -> int:
    """Count the lines that report that a run saved itself on SIGTERM and how to resume it."""
    return sum("SIGTERM" in line and "--resume auto" in line for line in output.splitlines())


def queue_first_script(slurm: TwoNodes, words: str, folder: Path) -> Job:
    """Queue the page's first script."""
    sizes = {"--ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8": "--ntasks-per-node=1 --cpus-per-task=1"}
    return Job(slurm, 0, sizes | {"python main": f"{sys.executable} main"}, words, folder)


def test_job_requeued_in_three_ways_is_bit_identical(slurm, digits_root, tmp_path):
    """It is requeued by hand, by Slurm after a lost node, and by itself at its time limit, checked twice a minute."""
    words = run_flags(digits_root, 1000)
    job = queue_first_script(slurm, words, tmp_path)
    job.wait_for_epoch(after=0)
    slurm.run("scontrol", "requeue", job.number)
    job.wait_for_epoch(after=1)
    slurm.kill_node("n2")
    job.wait_for_state("PENDING")
    slurm.start_node("n2")
    job.wait_for_epoch(after=2)
    before = len(job.read_output())
    hours, minutes, _ = map(int, slurm.job_field(job.number, "RunTime").split(":"))
    slurm.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={60 * hours + minutes + 2}")  # in minutes
    job.wait_for_state("PENDING")
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=600")
    job.wait_for_epoch(after=3)
    assert count_stops(job.read_output()[before:]) == 1
    slurm.run("scancel", job.number)
    job.wait_for_state("CANCELLED")
    assert "Traceback" not in job.read_output()[before:]
    assert_matches_uninterrupted_run(tmp_path / "run", words, tmp_path)


def test_finished_and_failed_jobs_are_not_requeued(slurm, digits_root, tmp_path):
    """One job finishes its epochs; another fails because of a wrong flag."""
    (tmp_path / "mistake").mkdir()
    job = queue_first_script(slurm, run_flags(digits_root, 2), tmp_path)
    job.wait_for_state("COMPLETED")
    assert job.count_epochs("2/2") == 1
    job = queue_first_script(slurm, run_flags(digits_root, 2) + " --moco-k 1000", tmp_path / "mistake")
    job.wait_for_state("FAILED")
    assert slurm.job_field(job.number, "ExitCode") == "2:0" and slurm.job_field(job.number, "Restarts") == "0"
    errors = [line for line in job.read_output().splitlines() if line.startswith("error: ") and "--moco-k 1000" in line]
    assert len(errors) == 2  # one from each task
    assert "Traceback" not in job.read_output()


def test_each_job_of_an_array_requeues_only_itself(slurm, digits_root, tmp_path):
    replacements = {"--array=0-4": "--array=0-1", "--gpus-per-node=1 --cpus-per-task=8": "--cpus-per-task=1"}
    job = Job(slurm, 1, replacements | {"python main": f"{sys.executable} main"}, run_flags(digits_root, 12), tmp_path)
    job.wait("an epoch of both", lambda: len([*tmp_path.glob("run_seed*/checkpoint_0001.pth.tar")]) == 2)
    ones = [f"{job.number}_{index}" for index in range(2)]
    for one, starts in ((ones[1], "0 1"), (ones[0], "1 1")):  # one of the two jobs has the number of the whole array
        slurm.run("scancel", "--signal=TERM", one)
        job.wait(f"{one} is requeued", lambda one=one: slurm.job_field(one, "Restarts") == "1")
        assert " ".join(slurm.job_field(each, "Restarts") for each in ones) == starts
    for one in ones:
        job.wait(f"{one} has ended", lambda one=one: slurm.job_field(one, "JobState") == "COMPLETED")
    assert count_stops(job.read_output()) == job.count_epochs("1/12") == 2  # neither started again from the first epoch


def test_torchrun_job_requeues_itself(slurm, digits_root, tmp_path):
    replacements = {
        "--gpus-per-node=8 --cpus-per-task=64": "--cpus-per-task=1",
        "--nproc-per-node 8": "--nproc-per-node 1",
    }
    replacements |= {"$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)": "127.0.0.1"}  # n1 does not resolve
    replacements |= {"torchrun ": f"{sys.executable} -m torch.distributed.run "}
    words = run_flags(digits_root, 4)
    job = Job(slurm, 2, replacements, words, tmp_path)
    job.wait_for_epoch(after=0)
    slurm.run("scancel", "--signal=USR1", "--batch", job.number)
    job.wait_for_state("PENDING")
    job.wait_for_state("COMPLETED")
    assert count_stops(job.read_output()) == job.count_epochs("1/4") == 1
    assert_matches_uninterrupted_run(tmp_path / "run", words, tmp_path)


def test_processes_know_whether_they_are_one_of_several_tasks(slurm, tmp_path):
    who, output, inner = f'{sys.executable} -c "{PRINT_TASK}"', tmp_path / "output", tmp_path / "inner"
    (tmp_path / "inner.sh").write_text(f"#!/bin/bash\n{who}\n")
    send = f"sbatch --ntasks=1 --output={inner} --chdir={ROOT} {tmp_path}/inner.sh > {tmp_path}/number"
    (tmp_path / "job.sh").write_text(
        f"""#!/bin/bash
        echo batch $({who})
        echo one $(srun --nodes=1 --ntasks=1 {who})
        srun {who}
        srun --overcommit --ntasks=3 {who}
        srun bash -c '[ $SLURM_PROCID = 1 ] || {send}'
        echo end
        """
    )
    sizes = ["--nodes=2", "--ntasks=2"]
    slurm.run("sbatch", *sizes, f"--output={output}", f"--chdir={ROOT}", str(tmp_path / "job.sh"))
    wait_for("the jobs", lambda: "end" in read(str(output)) and read(str(inner)), 120, lambda: read(str(output)))
    several = ["0 2 0 1", "0 3 0 2", "1 2 0 1", "1 3 1 2", "2 3 0 1"]  # rank, world size, local rank, local world size
    assert sorted(read(str(output)).splitlines()) == [*several, "batch alone", "end", "one alone"]
    assert read(str(inner)) == "alone\n"  # it inherited the variables of a step of two tasks
    assert "alone" in slurm.run("salloc", *sizes, sys.executable, "-c", PRINT_TASK).splitlines()
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])"]
    assert "alone" in slurm.run(*terminal, "srun", *sizes, "--pty", sys.executable, "-c", PRINT_TASK).splitlines()
