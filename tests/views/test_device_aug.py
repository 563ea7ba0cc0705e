"""--device-aug auto: new runs on small images augment whole batches on the device, resumed runs keep their choice.

Images that --cache keeps are loaded without loader processes.
"""

import numpy as np
import pytest
import torch
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import stored_flags
from imagenet_inat.options import SMALL_SIDE
from tests.refusals import refusal
from utils.cli.parser import parse

FAST, SINGLE = (True, True), (False, False)


def choice(arguments: dict) -> tuple[bool, bool]:
    """Return what args.json and checkpoints store."""
    return arguments["device_aug"], arguments["batch_views"]


def choice_of(*words: str) -> tuple[bool, bool]:
    """Prepare stage 1 and return its choice."""
    parser = stage1.get_args_parser()
    return choice(stage1.prepare(parser, parse(parser, [*words])).run.arguments.values)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", FAST),
        ("--device-aug", FAST),
        ("--device-aug on --cos", FAST),
        ("--device-aug off", SINGLE),
        ("--cache off", SINGLE),
        ("--device-aug --cache off", (True, False)),
        ("--views autoaugment", SINGLE),
        (f"--image-size {SMALL_SIDE + 1}", SINGLE),
    ],
)
def test_choice_on_digits(flags, expected, digits_flags, tmp_path):
    assert choice_of(*digits_flags, *flags.split(), "--run-dir", str(tmp_path)) == expected


def write_images(folder, sizes: list[int]) -> list[str]:
    """Write square images of these sizes, and lists of them; return flags of stage 1."""
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    for split in ("train", "val", "test"):
        (folder / f"custom_{split}.txt").write_text("".join(f"{n}.png {n % 2}\n" for n in range(len(sizes))))
    flags = f"--dataset custom --data-root {folder} --splits {folder} --image-size 16 -a lenet -b 8 --contrast batch"
    return [*flags.split(), "--run-dir", str(folder / "run")]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([20] * 40, FAST), ([SMALL_SIDE + 1] * 40, SINGLE), ([20, 21] * 20, SINGLE), ([20, 21, *[20] * 38], SINGLE)],
    ids=["small", "large", "mixed", "one of another size, which the sample misses"],
)
def test_choice_on_custom_images_is_silent(sizes, expected, tmp_path, capsys):
    assert choice_of(*write_images(tmp_path, sizes)) == expected
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"device_aug": False, "batch_views": False}, SINGLE),
        ({}, SINGLE),
        ({"device_aug": True}, (True, False)),
        ({"device_aug": True, "batch_views": True}, FAST),
    ],
)
def test_resumed_run_keeps_the_choice_of_its_checkpoint(stored, expected, tmp_path):
    words = write_images(tmp_path, [20] * 40)
    file = tmp_path / "run" / "last.pth.tar"
    file.parent.mkdir()
    torch.save({"args": stored}, file)
    assert choice_of(*words, "--resume", "auto") == choice_of(*words, "--resume", str(file)) == expected


@pytest.mark.parametrize(("head", "expected"), [("", FAST), ("--compare-heads", SINGLE)])
def test_stage_2_augments_batches_unless_it_fits_features(head, expected, tsc_run, probe_flags, tmp_path):
    parser = stage2.get_args_parser()
    words = [*probe_flags, "--device-aug", "auto", "--pretrained", str(tsc_run / "last.pth.tar"), *head.split()]
    words += ["--run-dir", str(tmp_path / "probe")]
    plan = stage2.prepare(parser, *stored_flags.parse(parser, words))
    assert choice(plan.run.arguments.values) == expected


@pytest.mark.parametrize(
    ("chosen", "view"), [("--views autoaugment", "autoaugment"), ("--views cifar --cache off", "cifar")]
)
def test_device_aug_refuses_unsupported_views(chosen, view, batch_flags, tmp_path):
    words = ["--contrast", "batch", "--device-aug", "--run-dir", str(tmp_path / "run"), *chosen.split()]
    refusal(lambda: stage1.main([*batch_flags, *words]), "--device-aug", "--views", view)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "workers"), [([], 0), (["--cache", "off"], None), (["-j", "1"], 1)])
def test_cached_images_need_no_loader_processes(options, workers, batch_flags, tmp_path, monkeypatch):
    at = batch_flags.index("-j")
    words = [*batch_flags[:at], *batch_flags[at + 2 :], *options]
    seen = []
    monkeypatch.setattr(stage1.launch, "launch", lambda worker, plan, config, shared: seen.append(config.workers))
    stage1.main([*words, "--contrast", "batch", "--run-dir", str(tmp_path / "run")])
    assert seen == [workers]
