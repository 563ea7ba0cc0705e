"""`--contrast batch`: each step of the real script is compared with the loops of loops.py."""

import copy
import functools
import itertools
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco import in_batch
from moco.losses.positives import RANDOM_INT_BOUND
from tests import oracle, three
from tests.in_batch import loops
from tests.refusals import exit_message, line_with, refusal
from utils.randomness import Stream, torch_rng

TSC = "--targeted --tw 0.2"
RELEASE = "--targeted --loss-form release --tr 3"


def common_flags(root: Path) -> list[str]:
    """Return the flags shared by all runs of both scripts."""
    return [*three.flags(root), "-a", "lenet", "--image-size", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return three.write(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def run(folder):
    """run(flags) -> (loss, target term) of each step, after comparing the step with the loops. Results are cached."""

    numbers = itertools.count()

    @functools.cache
    def stage_1(flags: str) -> list[tuple[float, float]]:
        steps, run_dir = [], folder / f"run_{next(numbers)}"
        words = f"--contrast batch --moco-dim 8 --targets {folder / 'targets.npy'} --run-dir {run_dir} {flags}"
        with pytest.MonkeyPatch.context() as patch:
            three.register(patch)
            check_steps(patch, steps)
            stage1.main([*common_flags(folder), *words.split()])
        return steps

    return stage_1


def check_steps(monkeypatch, steps: list) -> None:
    """Compare every step of stage 1 with the loops, to 1e-5."""
    forward = in_batch.InBatchKCL.forward

    def compared_forward(model, im_q, im_k, labels):
        before = copy.deepcopy(model)
        out = forward(model, im_q, im_k, labels)
        loss, centroids = expected_step(before, im_q, im_k, labels)
        torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.class_centroid, centroids, rtol=1e-5, atol=1e-5)
        steps.append((out.loss.item(), out.loss_target.item()))
        return out

    monkeypatch.setattr(in_batch.InBatchKCL, "forward", compared_forward)


@torch.no_grad()
def expected_step(model, im_q, im_k, labels):
    """Return the expected loss and centroids of one step, given the model state before it."""
    v = normalize(model.encoder_q(torch.cat([im_q, im_k])), dim=1)
    views, centroids, k = torch.stack(v.chunk(2), 1), model.class_centroid, model.num_positive
    y = labels if model.supervised else torch.arange(len(labels))
    targets, repeat = v[:0], 1
    if model.targeted or model.centroids_in_kcl:
        centroids = oracle.centroids(centroids, torch.cat([views[:, 0], views[:, 1]]), [*y.tolist(), *y.tolist()])
    if model.targeted:
        sigma = oracle.assignment(centroids @ model.optimal_target[:: model.tr].T)
        if not model.assignment_interval:
            sigma = list(range(len(sigma)))
        targets, repeat = model.optimal_target[:: model.tr][sigma], model.tr
    rng = torch_rng(model.seed, Stream.POSITIVES, model.step)
    release = model.loss_form == "release"
    rows = 2 * (len(y) + (len(targets) * repeat if release else 0))
    draws = torch.randint(RANDOM_INT_BOUND, (rows, k), generator=rng).tolist()
    classes = torch.arange(len(targets))
    if model.targeted and not release:
        terms = loops.target_loss(views, y, targets, classes, model.tw, k, model.T, model.unbiased, draws)
        return sum(terms), centroids
    anchors = "targets" if model.targeted and model.only_targets else "all"
    return loops.loss(views, y, k, model.T, targets, classes, repeat, anchors, model.unbiased, draws), centroids


@pytest.mark.parametrize(
    "flags",
    [
        *("", "--K 0", "--K 1 --mlp", "--unbiased", "--loss MoCo", "--moco-t 0.2"),
        *(TSC, f"{TSC} --K 0", f"{TSC} --unbiased", f"{TSC} --kcl-epochs 0", f"{TSC} --assignment-interval 0"),
        f"{TSC} --centroid-init kcl",
        *(RELEASE, f"{RELEASE} --K 0", f"{RELEASE} --only_t", f"{RELEASE} --unbiased --kcl-epochs 0"),
    ],
)
def test_script_steps_match_loops(flags, run):
    steps = run(flags)
    assert len(steps) == 4  # two epochs of two steps
    kcl = 4 if "--targeted" not in flags else 0 if "--kcl-epochs 0" in flags else 2
    assert [target > 0 for _, target in steps] == [step >= kcl and "paper" in loss_form(flags) for step in range(4)]


def loss_form(flags: str) -> str:
    return "release" if "release" in flags else "paper"


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("", "--K 1"),
        ("", "--unbiased"),
        ("", "--loss MoCo"),
        ("", "--moco-t 0.2"),
        (TSC, "--tw 0.5"),
        (TSC, "--kcl-epochs 0"),
        (f"{TSC} --epochs 32 --kcl-epochs 31", "--centroid-init kcl"),
        (TSC, "--loss-form release"),
        (RELEASE, "--tr 25"),
        (RELEASE, "--only_t"),
    ],
)
def test_flag_changes_the_loss(base, change, run):
    assert run(base) != run(f"{base} {change}".strip())


@pytest.mark.parametrize(("flags", "batches"), [("", [8]), ("--keep-last", [8, 5])])
def test_incomplete_last_batch_is_dropped_or_kept(flags, batches, run, tmp_path, monkeypatch):
    """Thirteen images in batches of eight."""
    short_list = tmp_path / "short.txt"
    short_list.write_text("".join(f"{i}.png {i % 3}\n" for i in range(13)))
    seen, forward = [], in_batch.InBatchKCL.forward

    def recording_forward(model, im_q, im_k, labels):
        seen.append(len(labels))
        return forward(model, im_q, im_k, labels)

    monkeypatch.setattr(in_batch.InBatchKCL, "forward", recording_forward)
    run(f"--train-txt {short_list} {flags}")
    assert seen == batches * 2


def test_probe_runs_on_in_batch_checkpoint(run, folder, tmp_path, monkeypatch):
    run(f"{TSC} --run-dir {tmp_path}/run")
    three.register(monkeypatch)
    probe = f"--lr 0.1 --pretrained {tmp_path}/run/last.pth.tar --run-dir {tmp_path}/probe"
    stage2.main([*common_flags(folder), *probe.split()])
    assert (tmp_path / "probe" / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--moco-k 65536", ["--moco-k", "--contrast batch"]),
        ("--sep_t --moco-m 0.9", ["--moco-m", "--sep_t", "--contrast batch"]),
        ("--contrast queue --unbiased", ["--unbiased", "--contrast queue"]),
    ],
)
def test_flags_of_other_contrast_are_refused_even_at_defaults(flags, facts, run, tmp_path, capsys):
    exit_message(lambda: run(f"{flags} --run-dir {tmp_path / 'run'}"), capsys, *facts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (f"{TSC} --loss MoCo", ["--loss MoCo", "--targeted"]),
        (f"{TSC} --kcl-epochs 2", ["--kcl-epochs 2", "--epochs"]),
        ("--sync-bn", ["--sync-bn", "GPU"]),
        (f"{TSC} --kcl-epochs 0 --centroid-init kcl", ["--centroid-init kcl", "--kcl-epochs"]),
        (f"{TSC} --centroid-init queue", ["--centroid-init queue", "--contrast batch", "kcl"]),
    ],
)
def test_incompatible_flags_are_refused(flags, facts, run, tmp_path):
    refusal(lambda: run(f"{flags} --run-dir {tmp_path / 'run'}"), *facts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--tr 25", ["--tr", "--targeted"]),
        ("--only_t", ["--only_t", "--targeted"]),
        ("", ["--targets", "--targeted"]),
        (f"{TSC} --tr 1", ["--tr", "--loss-form paper", "--tw"]),
        (f"{RELEASE} --tw 1", ["--tw", "--loss-form release", "--tr"]),
    ],
)
def test_ignored_flag_is_reported(flags, facts, run, capsys):
    """The note is printed before the training list is opened."""
    refusal(lambda: run(f"{flags} --train-txt absent.txt"), "absent.txt")
    line_with(capsys.readouterr().out, *facts)


def test_loss_of_single_image_batch_and_single_class_list(run, tmp_path):
    assert [loss for loss, _ in run("-b 1 --epochs 1 -a resnet20")] == [0.0] * 16
    one_class_list = tmp_path / "lone.txt"
    one_class_list.write_text("".join(f"{i}.png 1\n" for i in range(16)))
    assert all(loss > 0 for loss, _ in run(f"--train-txt {one_class_list}"))
    assert [loss for loss, _ in run(f"--train-txt {one_class_list} --unbiased")] == [0.0] * 4
