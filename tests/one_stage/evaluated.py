"""The classifier of a stage-1 run, evaluated in stage 2."""

import json
from pathlib import Path

import main_lincls_imba as stage2
from tests.stopping import log_of


def assert_stage_2_reproduces_classifier(run: Path, data_flags: list[str]) -> dict:
    """Check that --head own has exactly the accuracy in the run's log, and that --compare-heads lists it.

    Return what results.json has for --head own.
    """
    text = f"--image-size 12 --seed 1 -j 0 --device cpu --pretrained {run / 'last.pth.tar'}"
    common = [*data_flags, *text.split()]
    stage2.main([*common, "--head", "own", "--logit-adjustment", "off", "--run-dir", str(run / "own")])
    own = json.loads((run / "own" / "results.json").read_text())["selected"]
    assert own["val_acc1"] == log_of(run)[-1]["val"]["classifier_top1"]
    stage2.main([*common, "--compare-heads", "--run-dir", str(run / "heads")])
    heads = json.loads((run / "heads" / "results.json").read_text())["heads"]
    assert any(entry["head"] == "own" for entry in heads.values())
    return own
