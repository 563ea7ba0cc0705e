"""The scripts of docs/cluster.md under a real Slurm of two nodes, stopped in every way, and who is one of its tasks."""

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
WHO = "from utils import launchers as l; print(*(l.numbers() if l.is_one_of_many() else ['alone']))"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with TwoNodes(tmp_path_factory.mktemp("slurm")) as nodes:
        yield nodes


class Job:
    """A script of the page, with what this machine cannot do replaced, queued; it writes to folder/run.

    Args:
        number: of the script, from 0. here: what of it is replaced, by what. epochs: of the run.
    """

    def __init__(self, slurm: TwoNodes, number: int, here: dict[str, str], words: str, folder: Path):
        script = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.DOTALL)[number]
        for there, instead in (here | {"--data-root IMAGENET": words, "runs/kcl": str(folder / "run")}).items():
            assert there in script
            script = script.replace(there, instead)
        (folder / "job.sh").write_text(script)
        self.slurm, self.output = slurm, folder / "output"
        flags = ["--output", str(self.output), "--chdir", str(ROOT)]
        self.number = slurm.said("sbatch", "--parsable", *flags, str(folder / "job.sh"))
        assert self.number.isdecimal(), self.number

    def said(self) -> str:
        return read(str(self.output))

    def wait(self, what: str, there: Callable[[], bool], seconds: float = 600) -> None:
        wait_for(what, there, seconds, also=lambda: f"{self.said()[-3000:]}\n{self.slurm.logs()}")

    def trains(self, after: int) -> None:
        """Wait until Slurm has restarted it so often, and it ends an epoch after that."""
        started = {"JobState": "RUNNING", "Restarts": str(after)}
        self.wait(f"start {after}", lambda: {word: self.slurm.about(self.number, word) for word in started} == started)
        ended = self.ended_epochs() if after else 0
        self.wait(f"an epoch after start {after}", lambda: self.ended_epochs() > ended)

    def ended_epochs(self, epoch: str = "") -> int:
        """How many lines report the end of an epoch, of all runs of the job; epoch: as `1/4`."""
        return sum(f"Epoch: [{epoch}" in line and " Loss" in line for line in self.said().splitlines())

    def has_state(self, state: str) -> None:
        self.wait(state, lambda: self.slurm.about(self.number, "JobState") == state)


def words_of(data: Path, epochs: int) -> str:
    """Of a small run, in place of the page's data; each epoch's checkpoint stays."""
    small = f"--dataset digits --data-root {data} --image-size 8 -b 512 --moco-k 1024 --moco-dim 16"
    return f"{small} -j 0 -p 0 --device cpu --seed 1 -s 1 --epochs {epochs}"


def assert_as_undisturbed(run: Path, words: str, folder: Path) -> None:
    """The last epoch's checkpoint of a run is that of two processes that nothing disturbs, to the bit."""
    last, whole = max(run.glob("checkpoint_*.pth.tar")), folder / "whole"
    flags = [*words.split(), "--mlp", "--cos", "--lr", "0.1", "--save-steps", "500", "--run-dir", str(whole)]
    flags += ["--multiprocessing-distributed", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    program = Program(["main_moco_supcon_imba.py", *flags], fork_workers=True)
    try:
        there = (whole / last.name).exists
        wait_for(f"{last.name} of an undisturbed run", lambda: there() or program.poll() is not None, 1200)
    finally:
        if program.poll() is None:
            program.send_signal(signal.SIGTERM)
        program.communicate()
    ours, theirs = (checkpoint.load(place / last.name) for place in (run, whole))
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def stops(output: str) -> int:
    """How many lines report that a run has saved itself on SIGTERM and how to resume it."""
    return sum("SIGTERM" in line and "--resume auto" in line for line in output.splitlines())


def direct(slurm: TwoNodes, words: str, folder: Path) -> Job:
    """A job of the page's first script."""
    sizes = {"--ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8": "--ntasks-per-node=1 --cpus-per-task=1"}
    return Job(slurm, 0, sizes | {"python main": f"{sys.executable} main"}, words, folder)


def test_a_job_queued_again_in_three_ways_goes_on_as_if_nothing_had_been(slurm, digits_root, tmp_path):
    """By hand; by Slurm, as a node is lost; by itself, as its time is over, which Slurm looks for twice a minute."""
    words = words_of(digits_root, 1000)
    job = direct(slurm, words, tmp_path)
    job.trains(after=0)
    slurm.said("scontrol", "requeue", job.number)
    job.trains(after=1)
    slurm.kill_node("n2")
    job.has_state("PENDING")
    slurm.start_node("n2")
    job.trains(after=2)
    before = len(job.said())
    hours, minutes, _ = map(int, slurm.about(job.number, "RunTime").split(":"))
    slurm.said("scontrol", "update", f"JobId={job.number}", f"TimeLimit={60 * hours + minutes + 2}")  # in minutes
    job.has_state("PENDING")
    slurm.said("scontrol", "update", f"JobId={job.number}", "TimeLimit=600")
    job.trains(after=3)
    assert stops(job.said()[before:]) == 1
    slurm.said("scancel", job.number)
    job.has_state("CANCELLED")
    assert "Traceback" not in job.said()[before:]
    assert_as_undisturbed(tmp_path / "run", words, tmp_path)


def test_a_job_that_has_ended_is_not_queued_again(slurm, digits_root, tmp_path):
    """Well, or with a mistake: to do again what has been done, without --epochs that are left."""
    (tmp_path / "mistake").mkdir()
    job = direct(slurm, words_of(digits_root, 2), tmp_path)
    job.has_state("COMPLETED")
    assert job.ended_epochs("2/2") == 1
    job = direct(slurm, words_of(digits_root, 2) + " --moco-k 1000", tmp_path / "mistake")
    job.has_state("FAILED")
    assert slurm.about(job.number, "ExitCode") == "2:0" and slurm.about(job.number, "Restarts") == "0"
    errors = [line for line in job.said().splitlines() if line.startswith("error: ") and "--moco-k 1000" in line]
    assert len(errors) == 2  # of both tasks
    assert "Traceback" not in job.said()


def test_each_job_of_an_array_queues_itself_again_and_no_other(slurm, digits_root, tmp_path):
    here = {"--array=0-4": "--array=0-1", "--gpus-per-node=1 --cpus-per-task=8": "--cpus-per-task=1"}
    job = Job(slurm, 1, here | {"python main": f"{sys.executable} main"}, words_of(digits_root, 12), tmp_path)
    job.wait("an epoch of both", lambda: len([*tmp_path.glob("run_seed*/checkpoint_0001.pth.tar")]) == 2)
    ones = [f"{job.number}_{index}" for index in range(2)]
    for one, starts in ((ones[1], "0 1"), (ones[0], "1 1")):  # of these two one has the number of the whole array
        slurm.said("scancel", "--signal=TERM", one)
        job.wait(f"{one} is queued again", lambda one=one: slurm.about(one, "Restarts") == "1")
        assert " ".join(slurm.about(each, "Restarts") for each in ones) == starts
    for one in ones:
        job.wait(f"{one} has ended", lambda one=one: slurm.about(one, "JobState") == "COMPLETED")
    assert stops(job.said()) == job.ended_epochs("1/12") == 2  # neither has begun again


def test_a_job_of_torchrun_queues_itself_again(slurm, digits_root, tmp_path):
    here = {"--gpus-per-node=8 --cpus-per-task=64": "--cpus-per-task=1", "--nproc-per-node 8": "--nproc-per-node 1"}
    here |= {"$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)": "127.0.0.1"}  # n1 does not resolve
    here |= {"torchrun ": f"{sys.executable} -m torch.distributed.run "}
    words = words_of(digits_root, 4)
    job = Job(slurm, 2, here, words, tmp_path)
    job.trains(after=0)
    slurm.said("scancel", "--signal=USR1", "--batch", job.number)
    job.has_state("PENDING")
    job.has_state("COMPLETED")
    assert stops(job.said()) == job.ended_epochs("1/4") == 1
    assert_as_undisturbed(tmp_path / "run", words, tmp_path)


def test_who_is_one_of_several_tasks(slurm, tmp_path):
    who, output, inner = f'{sys.executable} -c "{WHO}"', tmp_path / "output", tmp_path / "inner"
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
    slurm.said("sbatch", *sizes, f"--output={output}", f"--chdir={ROOT}", str(tmp_path / "job.sh"))
    wait_for("the jobs", lambda: "end" in read(str(output)) and read(str(inner)), 120, lambda: read(str(output)))
    several = ["0 2 0 1", "0 3 0 2", "1 2 0 1", "1 3 1 2", "2 3 0 1"]  # rank, of how many; on this node, of how many
    assert sorted(read(str(output)).splitlines()) == [*several, "batch alone", "end", "one alone"]
    assert read(str(inner)) == "alone\n"  # which has inherited a step of two tasks
    assert "alone" in slurm.said("salloc", *sizes, sys.executable, "-c", WHO).splitlines()
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])"]
    assert "alone" in slurm.said(*terminal, "srun", *sizes, "--pty", sys.executable, "-c", WHO).splitlines()
