"""A run that was stopped goes on as if it had not been: the same weights, bit for bit, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import digits
from target_generation import generate_file
from utils import checkpoint
from utils.errors import InputError, Stopped
from utils.keeper import Keeper
from utils.resume import candidates, check_resume, hold

ROOT = Path(__file__).parent.parent
TSC = ["--epochs", "4", "--targeted", "--sep_t"]
STEPS = 5  # an epoch's


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """A run of two epochs KCL and two TSC that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    stage1.main([*flags, *TSC, "-s", "1", "--run-dir", str(run)])
    return run


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights, optimiser and the log's means of the two runs are equal to the bit."""
    ours, theirs = (checkpoint.load(folder / "last.pth.tar") for folder in (run, whole))
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    assert [entry["epoch"] for entry in log_of(run)][-1] == [entry["epoch"] for entry in log_of(whole)][-1]


def stop_at(monkeypatch, step: int, number: int = signal.SIGUSR1) -> None:
    """This process gets the signal while it is in that step of its run (from 1)."""
    count, after_step = iter(range(1, 1000)), Keeper.after_step

    def signalled(keeper):
        if next(count) == step:
            signal.raise_signal(number)
        after_step(keeper)

    monkeypatch.setattr(Keeper, "after_step", signalled)


@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_stage_1_goes_on_from_the_end_of_an_epoch(epochs_done, flags, whole, tmp_path):
    """Within KCL, at the switch, within TSC."""
    kept = str(whole / f"checkpoint_{epochs_done:04d}.pth.tar")
    stage1.main([*flags, *TSC, "--run-dir", str(tmp_path / "run"), "--resume", kept])
    assert_same_end(tmp_path / "run", whole)
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == list(range(epochs_done + 1, 5))


@pytest.mark.parametrize("step", [3, 5, 8, 10, 11, 14, 20])
def test_stage_1_goes_on_from_any_step(step, flags, whole, tmp_path, monkeypatch):
    """Stopped by a signal within an epoch, after its last step, before and after the switch (step 10)."""
    run = [*flags, *TSC, "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stopped, match=f"stopped by SIGUSR1 after epoch {(step - 1) // STEPS} and"):
            stage1.main(run)
    assert checkpoint.load(tmp_path / "run" / "last.pth.tar")["step"] == (step - 1) % STEPS + 1
    stage1.main(run)
    assert_same_end(tmp_path / "run", whole)
    ours, theirs = log_of(tmp_path / "run"), log_of(whole)
    assert [entry["phase"] for entry in ours] == ["KCL", "KCL", "TSC", "TSC"]
    for mine, other in zip(ours, theirs, strict=True):  # the epoch's means count the steps before the stop too
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6) and mine["top5"] == pytest.approx(other["top5"])


def test_centroids_from_the_queue_are_not_made_again_within_tsc(flags, tmp_path, monkeypatch):
    run = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--centroid-init", "queue", "--resume", "auto"]
    stage1.main([*run, "--run-dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Stopped):
            stage1.main([*run, "--run-dir", str(tmp_path / "run")])
    stage1.main([*run, "--run-dir", str(tmp_path / "run")])
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("step", [6, 7, 9])
def test_a_stale_assignment_is_remembered(step, flags, tmp_path, monkeypatch):
    """With --assignment-interval the permutation of an earlier step is still in use; TSC begins at step 5 here."""
    run = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--assignment-interval", "4", "--resume", "auto"]
    stage1.main([*run, "--run-dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stopped):
            stage1.main([*run, "--run-dir", str(tmp_path / "run")])
    stage1.main([*run, "--run-dir", str(tmp_path / "run")])
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
@pytest.mark.parametrize("step", [2, 5, 7])
def test_stage_2_goes_on_from_any_step(step, bn_mode, tsc_run, probe_flags, tmp_path, monkeypatch):
    probe = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "3", "--bn-mode", bn_mode]
    probe += ["--resume", "auto"]
    stage2.main([*probe, "--run-dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stopped):
            stage2.main([*probe, "--run-dir", str(tmp_path / "p")])
    stage2.main([*probe, "--run-dir", str(tmp_path / "p")])
    assert_same_end(tmp_path / "p", tmp_path / "whole")
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("p", "whole"))
    assert ours == theirs


def test_stage_2_stops_within_validation_and_measures_again(tsc_run, probe_run, probe_flags, tmp_path, monkeypatch):
    """The epoch is trained and not yet measured: it goes on with the measuring."""
    probe = [
        *probe_flags,
        "--pretrained",
        str(tsc_run / "last.pth.tar"),
        "--epochs",
        "2",
        "-b",
        "256",
        "--resume",
        "auto",
    ]
    stage2.main([*probe, "--run-dir", str(tmp_path / "whole")])
    calls, asked = iter(range(1, 1000)), Keeper.stop_if_asked

    def signalled(keeper):
        if keeper.step == 10 and next(calls) == 2:  # 10 steps an epoch: 1 is the last step's own question
            signal.raise_signal(signal.SIGTERM)
        asked(keeper)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "stop_if_asked", signalled)
        with pytest.raises(Stopped, match="stopped by SIGTERM after epoch 0 and 10 steps"):
            stage2.main([*probe, "--run-dir", str(tmp_path / "p")])
    stage2.main([*probe, "--run-dir", str(tmp_path / "p")])
    assert_same_end(tmp_path / "p", tmp_path / "whole")


def test_save_steps_writes_within_the_epoch(flags, whole, tmp_path, monkeypatch):
    """A run that dies without a word goes on from the last saved step."""
    run = [*flags, *TSC, "--save-steps", "2", "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    count, after_step = iter(range(1, 1000)), Keeper.after_step

    def dying(keeper):
        after_step(keeper)
        if next(count) == 8:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "after_step", dying)
        with pytest.raises(MemoryError):
            stage1.main(run)
    state = checkpoint.load(tmp_path / "run" / "last.pth.tar")
    assert (state["epoch"], state["step"]) == (1, 2)
    stage1.main(run)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_a_signal_saves_and_gives_its_exit_code(number, code, flags, tmp_path):
    """A whole process, with loader workers that get the signal too, as from a terminal or a scheduler."""
    command = [sys.executable, "main_moco_supcon_imba.py", *flags, "--epochs", "500", "-j", "2", "-p", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run")], cwd=ROOT, start_new_session=True, **pipes
    )
    next(line for line in process.stdout if "Epoch: [2/500]" in line)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.startswith(f"stopped by {signal.Signals(number).name} after epoch") and err.count("\n") == 1
    assert checkpoint.load(tmp_path / "run" / "last.pth.tar")["epoch"] >= 1


def test_resume_auto_starts_and_then_continues(flags, tmp_path, capsys):
    run = ["--run-dir", str(tmp_path / "run"), "--resume", "auto", "--cos"]
    stage1.main([*flags, *run, "--epochs", "1"])
    assert "resumed" not in capsys.readouterr().out
    stage1.main([*flags, *run, "--epochs", "2", "--override"])
    assert "after epoch 1" in capsys.readouterr().out
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == [1, 2]


def test_another_batch_size_goes_on_in_the_same_queue(flags, tsc_run, tmp_path):
    """The queue's pointer need not be a multiple of the new batch: the keys wrap around."""
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar")
    state["state_dict"]["module.queue_ptr"].fill_(512)
    torch.save(state, tmp_path / "odd.pth.tar")
    options = ["--resume", str(tmp_path / "odd.pth.tar"), "--override", "-b", "1024", "--epochs", "2"]
    stage1.main([*flags, *options, "--run-dir", str(tmp_path / "run")])
    weights = checkpoint.load(tmp_path / "run" / "last.pth.tar")["state_dict"]
    assert (weights["module.queue_labels"] >= 0).all() and weights["module.queue_ptr"].item() == 512


@pytest.mark.parametrize("change", ["-b 1024", "--imbalance 40"])
def test_within_an_epoch_the_batches_stay(change, flags, tsc_run, tmp_path):
    """Those that are left are counted in batches of the size, and in the order of the list, that it began with."""
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar") | {"step": 2}
    torch.save(state, tmp_path / "within.pth.tar")
    options = ["--resume", str(tmp_path / "within.pth.tar"), "--override", "--run-dir", str(tmp_path / "r")]
    with pytest.raises(InputError, match="2 batches of 512 into it; go on with -b 512 and the training list"):
        stage1.main([*flags, *options, *change.split(), "--epochs", "2"])
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("results", [{"last": 5}, {"last": None}, {"selected": [1]}])
def test_results_of_a_damaged_probe_are_named(results, tsc_run, probe_run, probe_flags, tmp_path):
    torch.save(checkpoint.load(probe_run / "last.pth.tar") | {"results": results}, tmp_path / "damaged.pth.tar")
    options = ["--pretrained", str(tsc_run / "last.pth.tar"), "--resume", str(tmp_path / "damaged.pth.tar")]
    with pytest.raises(InputError, match=r"damaged\.pth\.tar: results is .*, expected a table of tables"):
        stage2.main([*probe_flags, *options, "--epochs", "3", "--run-dir", str(tmp_path / "p")])
    assert not (tmp_path / "p").exists()


def test_another_list_is_another_argument(flags, tsc_run, digits_root, tmp_path):
    """Also under the same name: the run would go on with other images."""
    shutil.copytree(digits.prepare(digits_root, 50.0)[1], tmp_path / "lists")
    train = tmp_path / "lists" / "digits_LT_train.txt"
    train.write_text(train.read_text().replace(" 0\n", " 1\n", 1))
    options = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--splits", str(tmp_path / "lists")]
    resume = ["--resume", str(tsc_run / "checkpoint_0001.pth.tar"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"made with other arguments \(train_list \w+ -> \w+\)"):
        stage1.main([*flags, *options, *resume])


def test_other_targets_than_the_checkpoints_are_said(flags, tsc_run, tmp_path, capsys):
    other = tmp_path / "other.npy"
    generate_file(other, 10, 16, seed=7)
    options = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--run-dir", str(tmp_path / "run")]
    stage1.main([*flags, *options, "--targets", str(other), "--resume", str(tsc_run / "checkpoint_0001.pth.tar")])
    assert f"brings its own targets; those of {other} are other ones, and not used" in capsys.readouterr().out
    assert_same_end(tmp_path / "run", tsc_run)


def test_a_kill_between_two_files_loses_neither(flags, whole, tmp_path, monkeypatch):
    """checkpoint_XXXX is written, last.pth.tar not any more: the epoch is done again, and all is there."""
    run = [*flags, *TSC, "-s", "1", "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    count, write_whole = iter(range(1, 1000)), checkpoint.write_whole

    def killed(*args, **options):
        if next(count) == 4:  # the second epoch's last.pth.tar
            raise MemoryError
        write_whole(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", killed)
        with pytest.raises(MemoryError):
            stage1.main(run)
    assert checkpoint.load(tmp_path / "run" / "last.pth.tar")["epoch"] == 1
    stage1.main(run)
    assert_same_end(tmp_path / "run", whole)
    assert [checkpoint.load(tmp_path / "run" / f"checkpoint_{i:04d}.pth.tar")["epoch"] for i in range(1, 5)] == [
        1,
        2,
        3,
        4,
    ]
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == [1, 2, 3, 4]


def test_another_number_of_processes_is_said(flags, tsc_run, tmp_path, capsys):
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar") | {"processes": 4}
    torch.save(state, tmp_path / "four.pth.tar")
    options = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--run-dir", str(tmp_path / "run")]
    stage1.main([*flags, *options, "--resume", str(tmp_path / "four.pth.tar")])
    assert "note: 4 processes wrote" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone", "no checkpoint"])
def test_a_broken_last_checkpoint_is_reported_and_the_one_before_taken(damage, flags, whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    content = (run / "last.pth.tar").read_bytes()
    broken = {"truncated": content[:-1000], "empty": b"", "gone": None, "no checkpoint": b"?" * 5000}[damage]
    (run / "last.pth.tar").unlink()
    if broken is not None:
        (run / "last.pth.tar").write_bytes(broken)
    for kept in run.glob("checkpoint_*"):
        kept.unlink()
    stage1.main([*flags, *TSC, "--run-dir", str(run), "--resume", "auto"])
    out = capsys.readouterr().out
    assert f"resumed {run}/previous.pth.tar after epoch 3" in out
    assert_same_end(run, whole)
    assert checkpoint.load(run / "previous.pth.tar")["epoch"] == 3  # the broken file has not taken its place
    if broken is not None:
        assert "not a checkpoint" in out and (run / "last.pth.tar.broken").read_bytes() == broken


def test_when_no_checkpoint_can_be_read_nothing_is_touched(flags, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in candidates(run):
        path.write_bytes(b"?")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=r"checkpoint_0001\.pth\.tar: not a checkpoint"):
        stage1.main([*flags, *TSC, "--run-dir", str(run), "--resume", "auto"])
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_full_disk_stops_the_run_in_one_line_and_leaves_the_last_checkpoint(flags, tsc_run, tmp_path):
    """The system refuses files beyond some size, as a full disk does: smaller than the checkpoint."""
    run, limit = tmp_path / "run", (tsc_run / "last.pth.tar").stat().st_size // 2
    stage1.main([*flags, *TSC, "--epochs", "1", "--run-dir", str(run)])
    before = (run / "last.pth.tar").read_bytes()
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    limited += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", limited, "main_moco_supcon_imba.py", *flags, *TSC, "--override"]
    done = subprocess.run(
        [*command, "--run-dir", str(run), "--resume", "auto"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {run}/last.pth.tar: File too large\n"
    assert (run / "last.pth.tar").read_bytes() == before
    assert not list(run.glob(".*draft*"))


def test_two_runs_do_not_share_a_folder(flags, tsc_run, tmp_path):
    """The first holds the folder while it lives, and not a moment longer, however it ends."""
    run = tmp_path / "run"
    holder = "import sys, time; from pathlib import Path; from utils.resume import hold\n"
    holder += "with hold(Path(sys.argv[1]), {}): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"another run is writing there \(process {process.pid} on"):
        stage1.main([*flags, "--epochs", "1", "--run-dir", str(run)])
    assert [path.name for path in run.iterdir()] == [".lock"]
    process.kill()
    process.communicate()
    stage1.main([*flags, "--epochs", "1", "--run-dir", str(run)])
    assert (run / "last.pth.tar").exists()


def test_drafts_that_a_kill_left_are_removed(tmp_path):
    (tmp_path / ".last.pth.tar.draft-abc").write_bytes(b"half")
    with hold(tmp_path, {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_resume_finds_its_file_or_says_what_is_wrong(tmp_path):
    check_resume("auto", tmp_path)
    check_resume("", tmp_path)
    check_resume("auto", tmp_path / "not" / "there")
    (tmp_path / "previous.pth.tar").touch()
    check_resume("auto", tmp_path)
    check_resume(str(tmp_path / "previous.pth.tar"), tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        check_resume("", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        check_resume(str(tmp_path / "absent"), tmp_path)


def test_weights_that_are_not_finite_are_not_saved(flags, tmp_path, monkeypatch):
    """The last step's loss is still finite, what it leaves is not: the checkpoint before stays."""
    end_epoch = Keeper.end_epoch

    def spoiled(keeper, **entries):
        if keeper.epoch == 1:
            keeper.model.queue[0, 0] = float("nan")
        end_epoch(keeper, **entries)

    monkeypatch.setattr(Keeper, "end_epoch", spoiled)
    with pytest.raises(InputError, match=r"Epoch: \[2/2\] KCL, step .*: a weight is not finite"):
        stage1.main([*flags, "--epochs", "2", "--run-dir", str(tmp_path / "run")])
    assert checkpoint.load(tmp_path / "run" / "last.pth.tar")["epoch"] == 1
