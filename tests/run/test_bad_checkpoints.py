"""A checkpoint of another run, or one that is damaged, is refused in one line, and nothing is written."""

import shutil
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.methods.target_state import check_queue, queue_grid
from tests.stopping import FOUR_EPOCHS
from tests.tiny import tiny_model
from utils import distributed
from utils.errors import InputError
from utils.run import checkpoint
from utils.run.state import RunState


def test_a_checkpoint_of_another_model_is_refused(tsc_run, flags, tmp_path):
    resume = ["--resume", str(tsc_run / "last.pth.tar"), "--moco-dim", "32", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="does not fit the model: size mismatch"):
        stage1.main([*flags, *resume, "--override"])
    assert not (tmp_path / "run").exists()


def test_another_seed_than_the_checkpoints_is_refused(tsc_run, flags, tmp_path):
    resume = ["--resume", str(tsc_run / "last.pth.tar"), "--seed", "2", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="--seed 2: the checkpoint was made with seed 1"):
        stage1.main([*flags, *resume, "--override"])
    assert not (tmp_path / "run").exists()


def test_other_arguments_than_the_checkpoints_are_listed(tsc_run, flags, tmp_path):
    resume = ["--resume", str(tsc_run / "checkpoint_0001.pth.tar"), "--run-dir", str(tmp_path / "run"), "--epochs", "2"]
    with pytest.raises(InputError) as error:
        stage1.main([*flags, *resume, "--lr", "0.5", "-j", "1"])  # the number of workers is free
    changed = "(lr 0.1 -> 0.5, sep_t True -> False, targeted True -> False, tw 0.2 -> 1.0)"
    assert f"made with other arguments {changed}; --override goes on" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_processes_that_see_different_checkpoints_do_not_go_on(tsc_run, flags, monkeypatch):
    """Two ranks, of which the other one's folder holds nothing, as on machines without a shared disk."""
    monkeypatch.setattr(distributed, "gather", lambda mine: torch.cat([mine, torch.zeros_like(mine)]))
    resume = ["--run-dir", str(tsc_run), "--resume", "auto", "--override"]
    with pytest.raises(
        InputError, match=r"of \(epoch, step\) \[\[2, 0\], \[0, 0\]\]: the run folder must be one for all"
    ):
        stage1.main([*flags, *resume])


def test_another_runs_folder_is_not_taken_over(tsc_run, flags, tmp_path):
    run_dir = tmp_path / "run"
    stage1.main([*flags, "--epochs", "1", "--run-dir", str(run_dir)])
    before = (run_dir / "last.pth.tar").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        stage1.main([*flags, "--resume", str(tsc_run / "last.pth.tar"), "--run-dir", str(run_dir), "--override"])
    assert (run_dir / "last.pth.tar").read_bytes() == before


def test_a_probe_of_another_encoder_is_refused(tsc_run, probe_run, probe_flags):
    other = ["--pretrained", str(tsc_run / "checkpoint_0001.pth.tar"), "--epochs", "2", "--resume", "auto"]
    with pytest.raises(InputError, match="is a probe of another encoder than"):
        stage2.main([*probe_flags, *other, "--run-dir", str(probe_run)])


def test_stage_2_refuses_an_encoder_with_a_part_missing(tsc_run, probe_flags, tmp_path):
    state = torch.load(tsc_run / "last.pth.tar", weights_only=True)
    del state["state_dict"]["module.encoder_q.layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "holed.pth.tar")
    with pytest.raises(InputError, match=r"it lacks layer1\.0\.conv1\.weight and has nothing besides"):
        stage2.main([*probe_flags, "--pretrained", str(tmp_path / "holed.pth.tar"), "--run-dir", str(tmp_path / "p")])


def damaged(source: Path, change, into: Path) -> str:
    """The checkpoint with its state changed, under another name."""
    state = checkpoint.load(source)
    change(state)
    torch.save(state, into)
    return str(into)


def test_no_accuracy_is_said_of_logits_that_are_not_finite(probe_run, probe_flags, tmp_path, capsys):
    """One weight of a batch norm too large for float32's products: refused where it is measured."""
    path = damaged(
        probe_run / "last.pth.tar",
        lambda state: state["state_dict"]["module.bn1.weight"].fill_(3e38),
        tmp_path / "overflows.pth.tar",
    )
    with pytest.raises(
        InputError, match=r"overflows\.pth\.tar, val: 140 of 140 images have logits that are not finite"
    ):
        stage2.main([*probe_flags, "--evaluate", "--resume", path])
    assert "top-1" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_weight_that_is_no_number_is_named_before_anything_is_measured(value, probe_run, probe_flags, tmp_path):
    path = damaged(
        probe_run / "last.pth.tar",
        lambda state: state["state_dict"]["module.fc.weight"][3].fill_(value),
        tmp_path / "nan.pth.tar",
    )
    with pytest.raises(InputError, match=r"nan\.pth\.tar: fc\.weight has a value that is not finite"):
        stage2.main([*probe_flags, "--evaluate", "--resume", path])


def test_a_pretrained_encoder_with_a_nan_is_named(tsc_run, probe_flags, tmp_path):
    path = damaged(
        tsc_run / "last.pth.tar",
        lambda state: state["state_dict"]["module.encoder_q.conv1.weight"][0].fill_(float("nan")),
        tmp_path / "nan.pth.tar",
    )
    with pytest.raises(InputError, match=r"nan\.pth\.tar: conv1\.weight has a value that is not finite"):
        stage2.main([*probe_flags, "--pretrained", path, "--run-dir", str(tmp_path / "p")])
    assert not (tmp_path / "p").exists()


def test_a_queues_pointer_and_labels_are_what_a_run_writes():
    def check(pointer, label, grid=4):
        model = tiny_model()
        model.queue_ptr.fill_(pointer)
        model.queue_labels[0, 5] = label
        check_queue(model, grid, Path("x.pth.tar"))

    for pointer, grid in ((-1, 1), (12, 4), (10**6, 4), (7, 4), (2, 4)):
        with pytest.raises(
            InputError, match=rf"checkpoint x\.pth\.tar: queue_ptr is {pointer}, expected 0 to 11 and a"
        ):
            check(pointer, 0, grid)
    for label in (-2, 3, 10**9):
        with pytest.raises(
            InputError, match=rf"1 of 12 queue_labels are none, the first {label}, expected -1 \(empty\)"
        ):
            check(0, label)
    check(8, -1)
    check(7, 2, grid=1)


def test_the_pointers_grid_is_of_all_batches_so_far():
    path = Path("x")
    assert queue_grid(RunState(), 512) == 512
    assert queue_grid(RunState(source=path, args={"batch_size": 512}), 1024) == 512
    assert queue_grid(RunState(source=path, args={"batch_size": 1024}, extra={"queue_grid": 512}), 1024) == 512
    assert queue_grid(RunState(source=path), 512) == 1  # the release's: its batches are not known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module.queue_ptr": torch.tensor([7])}, "queue_ptr is 7, expected 0 to 255 and a multiple of 64"),
        ({"module.queue_labels": torch.full((1, 256), 10)}, "256 of 256 queue_labels are none, the first 10"),
        ({"step": 6}, "step 6 of an epoch of 5"),
    ],
)
def test_stage_1_refuses_a_checkpoint_that_no_run_writes(change, message, flags, whole, tmp_path):
    state = checkpoint.load(whole / "checkpoint_0003.pth.tar")
    for name, value in change.items():
        (state if name == "step" else state["state_dict"])[name] = value
    torch.save(state, tmp_path / "damaged.pth.tar")
    words = [*flags, *FOUR_EPOCHS, "--resume", str(tmp_path / "damaged.pth.tar"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=rf"damaged\.pth\.tar: {message}"):
        stage1.main(words)
    assert not (tmp_path / "run").exists()


def test_stage_2_refuses_a_step_beyond_its_epoch(tsc_run, probe_run, probe_flags, tmp_path):
    torch.save(checkpoint.load(probe_run / "last.pth.tar") | {"epoch": 1, "step": 10**6}, tmp_path / "damaged.pth.tar")
    options = ["--pretrained", str(tsc_run / "last.pth.tar"), "--resume", str(tmp_path / "damaged.pth.tar")]
    with pytest.raises(InputError, match=r"damaged\.pth\.tar: step 1000000 of an epoch of 5"):
        stage2.main([*probe_flags, *options, "--epochs", "2", "--run-dir", str(tmp_path / "p")])
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", ["assignment", "assignment_before"])
@pytest.mark.parametrize(
    "values", [[0, 1], [0, *range(9)], list(range(1, 11)), [0.0, *range(1, 10)], [], 3, [[*range(10)]]]
)
def test_an_assignment_that_is_no_permutation_is_named(name, values, flags, whole, tmp_path):
    value = torch.tensor(values) if name == "assignment" else values if isinstance(values, list) else [values]
    torch.save(checkpoint.load(whole / "checkpoint_0003.pth.tar") | {name: value}, tmp_path / "damaged.pth.tar")
    words = [*flags, *FOUR_EPOCHS, "--resume", str(tmp_path / "damaged.pth.tar"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=rf"damaged\.pth\.tar: {name} is .*, expected each of 10 targets once"):
        stage1.main(words)
    assert not (tmp_path / "run").exists()


def test_an_optimiser_that_is_none_changes_nothing_in_the_run_folder(flags, whole, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    checkpoint.save_last(run_dir, checkpoint.load(whole / "checkpoint_0003.pth.tar") | {"optimizer": {"state": 5}})
    before = (run_dir / "args.json").read_bytes()
    with pytest.raises(InputError, match=r"last\.pth\.tar: its optimiser does not fit the model"):
        stage1.main([*flags, *FOUR_EPOCHS, "--resume", "auto", "-p", "7", "--run-dir", str(run_dir)])
    assert (run_dir / "args.json").read_bytes() == before


@pytest.mark.parametrize("results", [{"last": 5}, {"last": None}, {"selected": [1]}])
def test_results_of_a_damaged_probe_are_named(results, tsc_run, probe_run, probe_flags, tmp_path):
    torch.save(checkpoint.load(probe_run / "last.pth.tar") | {"results": results}, tmp_path / "damaged.pth.tar")
    options = ["--pretrained", str(tsc_run / "last.pth.tar"), "--resume", str(tmp_path / "damaged.pth.tar")]
    with pytest.raises(InputError, match=r"damaged\.pth\.tar: results: 'selected' (is .*, expected a table|lacks)"):
        stage2.main([*probe_flags, *options, "--epochs", "3", "--run-dir", str(tmp_path / "p")])
    assert not (tmp_path / "p").exists()
