"""examples/pixels.py fits the heads to pixels, in a run folder of their own."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from examples import pixels
from examples.results.trials import is_finished
from imagenet_inat import options
from tests.refusals import refusal


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels")
    flags = f"--dataset digits --image-size 8 --imbalance 10 --device cpu --data-root {folder}/data"
    pixels.main([*flags.split(), "--run-dir", str(folder / "run")])
    return folder / "run"


def test_features_are_the_pixels(run_dir):
    """Grey images have one channel instead of three, from 0 to 1."""
    flags = f"--dataset digits --image-size 8 --imbalance 10 --data-root {run_dir.parent}/data"
    args = pixels.get_args_parser().parse_args(flags.split())
    test = pixels.pixel_features(options.build_data_config(options.DataFlags.from_args(args).resolved()), "test")
    images = {tuple(image.ravel()) for image in load_digits().images}
    assert test.features.shape == (400, 64)
    assert {tuple(np.round(row * 16)) for row in test.features.numpy()} <= images


def test_heads_are_compared_and_selected_on_validation(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    assert results["heads"]["logistic, post"]["acc1"] > 90 and results["chosen"]["on"] == "val"
    assert "target" not in results["heads"] and "own, post" not in results["heads"]


def test_results_and_trained_runs_are_not_overwritten(run_dir):
    before = (run_dir / "results.json").read_bytes()
    flags = f"--dataset digits --image-size 8 --data-root {run_dir.parent}/data --run-dir {run_dir}"
    refusal(lambda: pixels.main(flags.split()), run_dir, "--resume auto")
    (run_dir / "last.pth.tar").touch()
    refusal(lambda: pixels.main([*flags.split(), "--resume", "auto"]), run_dir, "--run-dir")
    (run_dir / "last.pth.tar").unlink()
    assert (run_dir / "results.json").read_bytes() == before


def test_study_recognises_finished_run(run_dir):
    folder = run_dir.parent
    flags = f"--dataset digits --image-size 8 --imbalance 10 --device cpu --data-root {folder}/data --run-dir {run_dir}"
    assert is_finished(["-m", "examples.pixels", *flags.split()])
