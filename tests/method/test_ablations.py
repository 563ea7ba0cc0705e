"""Ablation flags: each step of the real script is compared with the oracle.

The scripts run unchanged. `check_steps` copies the model before each call of KCL.forward and compares the output with
the loops of oracle.py.
"""

import copy
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.nn.functional import normalize

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco import builder
from moco.builder import RANDOM_INT_BOUND
from tests import oracle, three
from tests.refusals import line_with, refusal
from utils.cli.flags import effect_of
from utils.randomness import Stream, torch_rng


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return three.write(tmp_path_factory.mktemp("three"))


def common_flags(root: Path) -> list[str]:
    """Return the flags shared by all runs of both scripts."""
    return [*three.flags(root), "-a", "lenet", "--image-size", "12", "--device-aug", "off"]


class Run(NamedTuple):
    steps: list[tuple[float, float, float]]  # each step's loss, loss_class and loss_target
    folder: Path


@pytest.fixture(scope="module")
def run(folder):
    """run(flags) -> Run, after comparing each step with the oracle. Results are cached."""
    numbers = itertools.count()

    @functools.cache
    def stage_1(flags: str) -> Run:
        steps, run_dir = [], folder / f"run_{next(numbers)}"
        words = f"--moco-k 24 --moco-dim 8 --targets {folder / 'targets.npy'} --run-dir {run_dir} {flags}"
        with pytest.MonkeyPatch.context() as patch:
            three.register(patch)
            check_steps(patch, steps)
            stage1.main([*common_flags(folder), *words.split()])
        return Run(steps, run_dir)

    return stage_1


def check_steps(monkeypatch, steps: list) -> None:
    """Compare every step of stage 1 with the oracle, to 1e-5, and record its losses."""
    forward = builder.KCL.forward

    def compared_forward(model, im_q, im_k, labels):
        before = copy.deepcopy(model)
        out = forward(model, im_q, im_k, labels)
        losses, queue, centroids = expected_step(before, im_q, im_k, labels)
        torch.testing.assert_close((out.loss_class, out.loss_target), losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.queue, queue, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.class_centroid, centroids, rtol=1e-5, atol=1e-5)
        steps.append((out.loss.item(), out.loss_class.item(), out.loss_target.item()))
        return out

    monkeypatch.setattr(builder.KCL, "forward", compared_forward)


@torch.no_grad()
def expected_step(model, im_q, im_k, labels):
    """Return the oracle's losses, queue and centroids of one step, given the model state before it."""
    q = normalize(model.encoder_q(im_q), dim=1)
    for key, query in zip(model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True):
        key.copy_(model.m * key + (1 - model.m) * query)
    k = normalize(model.encoder_k(im_k), dim=1)
    y, centroids, target_options, copies, fixed_copies, draws = labels.tolist(), model.class_centroid, {}, 0, 0, None
    if model.num_positive or not model.supervised:
        rng = torch_rng(model.seed, Stream.POSITIVES, model.step, 0)
        shape = (len(y), model.num_positive if model.supervised else 0)
        draws = torch.randint(RANDOM_INT_BOUND, shape, generator=rng).tolist()
    if model.targeted or model.centroids_in_kcl:
        centroids = oracle.centroids(centroids, q, y)
    if model.targeted:
        fixed_copies, copies = (model.tr, 0) if model.sep_t or draws is None else (0, model.tr)
        sigma = oracle.assignment(centroids @ model.optimal_target[:: model.tr].T)
        target_options = {"targets": model.optimal_target, "target_row": [model.tr * row for row in sigma]}
    chosen = oracle.positives(y, model.queue_labels[0].tolist(), draws, copies, fixed_copies)
    losses = oracle.loss(
        q, k, model.queue, y, chosen, model.T, target_weight=model.tw, form=model.loss_form, **target_options
    )
    queue, start = model.queue.clone(), int(model.queue_ptr)
    queue[:, start : start + len(k)] = k.T
    return losses, queue, centroids


KCL_FLAGS = ["--K 0", "--K 6 --mlp"]
# All combinations of the flags of the loss. Every other one adds --mlp, which does not affect the loss.
TSC_FLAGS = [
    f"--targeted --tw 0.2 --tr {tr} {sep_t} --loss-form {form} --K {k} {'--mlp' if number.bit_count() % 2 else ''}"
    for number, (tr, sep_t, form, k) in enumerate(
        itertools.product((1, 3), ("", "--sep_t"), ("release", "paper"), (0, 6))
    )
]
OTHER_FLAGS = ["--loss MoCo", "--K 1 --moco-t 0.2 --moco-m 0.5"]
OTHER_FLAGS += [f"--targeted --sep_t --centroid-init {source}" for source in ("queue", "kcl")]


@pytest.mark.parametrize("flags", KCL_FLAGS + TSC_FLAGS + OTHER_FLAGS)
def test_script_steps_match_oracle(flags, run):
    steps = run(flags).steps
    assert len(steps) == 4  # two epochs of two steps; with --targeted, KCL then TSC
    with_target_term = [loss_target > 0 for _, _, loss_target in steps]
    assert with_target_term[:2] == [False, False]
    assert any(with_target_term[2:]) == ("--targeted" in flags)


@pytest.mark.parametrize("flags", [*KCL_FLAGS, TSC_FLAGS[0], "--loss MoCo"])
def test_probe_runs_on_ablation_checkpoint(flags, run, folder, tmp_path, monkeypatch):
    three.register(monkeypatch)
    words = f"--lr 0.1 --pretrained {run(flags).folder}/last.pth.tar --run-dir {tmp_path}/probe"
    stage2.main([*common_flags(folder), *words.split()])
    assert (tmp_path / "probe" / "results.json").exists()


# For each flag of stage 1 that changes the result: the base flags and the change.
TARGETED = "--targeted --sep_t"
CHANGES = {
    "arch": ("", "-a resnet20"),
    "image_size": ("", "--image-size 16"),
    "moco_dim": ("", "--moco-dim 4"),
    "moco_k": ("", "--moco-k 16"),
    "moco_m": ("", "--moco-m 0.5"),
    "moco_t": ("", "--moco-t 0.1"),
    "mlp": ("", "--mlp"),
    "loss": ("", "--loss MoCo"),
    "sampling": ("", "--sampling class-balanced"),
    "K": ("", "--K 1"),
    "targeted": ("", TARGETED),
    "kcl_epochs": ("--targeted", "--kcl-epochs 0"),
    "tr": (TARGETED, "--tr 3"),
    "sep_t": ("--targeted", "--sep_t"),
    "tw": (TARGETED, "--tw 0.2"),
    "loss_form": (TARGETED, "--loss-form paper"),
    "centroid_init": (TARGETED, "--centroid-init queue"),
    "lr": ("", "--lr 0.1"),
    "cos": ("", "--cos"),
    "schedule": ("", "--schedule 1"),
    "lr_end": ("--cos", "--lr-end 0.02"),
    "warmup_epochs": ("", "--warmup-epochs 1"),
    "warmup_from": ("--warmup-epochs 1", "--warmup-from 0.001"),
    "optimizer": ("", "--optimizer adamw"),
    "clip_grad": ("", "--clip-grad 0.01"),
    "lr_backbone": ("", "--lr-backbone 0.1"),
    "momentum": ("", "--momentum 0.5"),
    "weight_decay": ("", "--wd 0.1"),
    "batch_size": ("", "-b 4"),
    "epochs": ("", "--epochs 3"),
    "device_aug": ("", "--device-aug on"),
    "crop_scale": ("", "--crop-scale 0.5 1"),
    "statistics": ("", "--statistics digits"),
}
# Flags tested in tests/data, tests/splits, tests/views, test_step.py, tests/machine/test_compute.py and tests/in_batch.
TESTED_ELSEWHERE = {
    "dataset",
    "imbalance",
    "largest",
    "split_seed",
    "assignment_interval",
    "amp",
    "channels_last",
    "compile",
    "tf32",
    "deterministic",
}
TESTED_ELSEWHERE |= {
    "contrast",
    "only_t",
    "unbiased",
    "sync_bn",
    "keep_last",
    "views",
    "holdout",
    "freeze",
    "accum_steps",
}
TESTED_ELSEWHERE |= {
    "queue_init",
    "positives",
    "unused_positives",
    "joint",
    "joint_classifier",
    "ce_weight",
    "contrast_weight",
}
TESTED_ELSEWHERE |= {"classifier_view", "alpha", "beta", "gamma", "no_momentum_keys"}


def test_every_flag_is_tested_or_may_differ_on_resume():
    flags = {
        action.dest: effect_of(action) for action in stage1.get_args_parser()._actions if "help" not in action.dest
    }
    free = {name for name, effect in flags.items() if not effect.affects_result}
    assert flags.keys() == set(CHANGES) | TESTED_ELSEWHERE | free


@pytest.mark.parametrize("flag", CHANGES)
def test_flag_changes_the_loss(flag, run):
    base, change = CHANGES[flag]
    assert run(base).steps != run(f"{base} {change}".strip()).steps


def test_centroids_of_the_kcl_phase_change_only_tsc(run):
    flags = f"{TARGETED} --epochs 8 --kcl-epochs 7"
    random, kcl = run(flags).steps, run(f"{flags} --centroid-init kcl").steps
    assert random[:14] == kcl[:14] and random[14:] != kcl[14:]


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--sep_t --tw 0.2", ["--tw", "--sep_t", "--targeted"]),
        ("--loss MoCo --K 3", ["--K", "--loss MoCo"]),
        ("--cos --schedule 1", ["--schedule", "--cos"]),
        ("--optimizer adamw --momentum 0.5", ["--momentum", "--optimizer adamw"]),
        ("--lr-end 0", ["--lr-end", "--cos"]),
        ("--warmup-from 0.1", ["--warmup-from", "--warmup-epochs"]),
    ],
)
def test_ignored_flag_is_reported(flags, facts, run, capsys):
    """The note is printed before the training list is opened."""
    refusal(lambda: run(f"{flags} --train-txt absent.txt"), "absent.txt")
    line_with(capsys.readouterr().out, *facts)
