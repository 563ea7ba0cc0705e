"""Fitted heads through the script: features computed once, selection on validation, and files that are read again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import main_lincls_imba as stage2
from examples import cross_entropy
from tests import three
from tests.refusals import line_with, refusal
from utils.report import __main__ as report
from utils.report.runs import read_run
from utils.run import checkpoint


@pytest.fixture(scope="module")
def comparison(words) -> Path:
    """Compare all heads on the TSC run; return the results folder."""
    stage2.main([*words, "--compare-heads"])
    return Path(words[-1]).parent / "heads"


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


HEADS = [
    *("logistic, post", "logistic, train", "logistic, class-balanced"),
    *("cosine, post", "cosine, train", "cosine, class-balanced", "ncm", "tau", "lws", "target"),
]


def test_all_heads_are_compared(comparison):
    record = results_of(comparison)
    assert list(record["heads"]) == HEADS == record["chosen"]["from"]["head"]
    assert record["chosen"]["on"] == "val" and "class-balanced" in record["chosen"]["rule"]
    best = max(record["heads"].values(), key=lambda entry: entry["val_balanced"])
    assert record["selected"]["per_class"] == best["per_class"]
    table = (comparison / "heads.md").read_text()
    assert table.count("✓") == 2  # in the note and after the best head
    assert all(f"| {head}" in table for head in HEADS) and "chosen on val" in table
    assert (comparison / "heads.png").stat().st_size > 10_000
    assert not list(comparison.glob("*.pth.tar"))


@pytest.mark.parametrize("head", ["logistic", "cosine", "ncm", "tau", "lws", "target"])
def test_single_head_matches_comparison_and_evaluate(head, words, comparison, tmp_path, capsys):
    stage2.main([*words, "--head", head, "--run-dir", str(tmp_path)])
    record = results_of(tmp_path)
    title = f"{head}, post" if head in ("logistic", "cosine") else head
    theirs = results_of(comparison)["heads"][title]
    assert record["selected"].pop("confusion")["counts"]
    assert record["selected"] == {name: theirs[name] for name in record["selected"]}
    assert record["chosen"]["from"] == theirs["from"]
    capsys.readouterr()
    stage2.main(["--evaluate", "--resume", str(tmp_path / "model_best.pth.tar")])
    line_with(capsys.readouterr().out, "test", f"top-1 {theirs['acc1']:.2f}")


def test_features_are_cached_and_never_used_for_other_checkpoint(words, comparison, tmp_path, capsys):
    """They are cached. A truncated file, other statistics and another checkpoint are reported and recomputed."""
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    mine = [*words[:-1], str(tmp_path / "last.pth.tar"), "--head", "ncm", "--resume", "auto", "--override"]

    def run(*more: str) -> str:
        capsys.readouterr()
        stage2.main([*mine, *more, "--run-dir", str(tmp_path / "ncm")])
        return capsys.readouterr().out

    folder, expected = tmp_path / "features_last", results_of(comparison)["heads"]["ncm"]["per_class"]

    def modification_times() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}

    run()
    first = modification_times()
    assert len(first) == 3 and results_of(tmp_path / "ncm")["selected"]["per_class"] == expected
    run()
    assert modification_times() == first

    val = folder / "val.safetensors"
    val.write_bytes(val.read_bytes()[:-100])
    damaged = modification_times()
    assert str(val) in run()
    assert {name for name, time in modification_times().items() if time != damaged[name]} == {val.name}
    assert results_of(tmp_path / "ncm")["selected"]["per_class"] == expected

    out = run("--statistics", "cifar10")
    for name in first:
        line_with(out, folder / name, "statistics")
    state = checkpoint.read_file(words[-1])
    for name, weight in state["state_dict"].items():
        if name.endswith("layer3.2.conv2.weight"):
            state["state_dict"][name] = torch.randn_like(weight)
    torch.save(state, tmp_path / "last.pth.tar")
    out = run()
    for name in first:
        line_with(out, folder / name, "weights", "statistics")
    assert results_of(tmp_path / "ncm")["selected"]["per_class"] != expected


def test_random_views_depend_only_on_seed_and_draw_number(words, tmp_path, capsys):
    """Two views give twice the features, which depend on the seed but not on the number of loader processes."""
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    mine = [*words[:-1], str(tmp_path / "last.pth.tar"), "--head", "ncm", "--feature-views", "2"]
    mine += ["--resume", "auto", "--override"]
    seen = []
    for more in ("-j 0 --seed 1", "-j 2 --seed 1", "--seed 2"):
        (tmp_path / "features_last" / "train_2_views.safetensors").unlink(missing_ok=True)
        stage2.main([*mine, *more.split(), "--run-dir", str(tmp_path / "ncm")])
        seen.append(load_file(tmp_path / "features_last" / "train_2_views.safetensors")["features"])
    count = len(seen[0]) // 2
    assert count == 89 and torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0][:count], seen[0][count:])


def test_own_classifier_of_baseline_is_a_head(probe_flags, tmp_path, capsys):
    run = tmp_path / "ce"
    cross_entropy.main([*probe_flags, "--epochs", "1", "--balance", "none", "--run-dir", str(run)])
    last = results_of(run)["last"]
    stage2.main([*probe_flags, "--compare-heads", "--pretrained", str(run / "last.pth.tar")])
    out, heads = capsys.readouterr().out, results_of(run / "heads")["heads"]
    line_with(out, "target", run / "last.pth.tar")
    assert "target" not in heads and "own, post" in heads
    stage2.main([*probe_flags, "--head", "own", "--logit-adjustment", "off", "--pretrained", str(run / "last.pth.tar")])
    own = results_of(run / "custom-digits_LT_own_instance_off")["selected"]
    assert own["per_class"] == pytest.approx(last["per_class"]) and own["ece"] == pytest.approx(last["ece"], abs=1e-3)
    for checkpoint_file in (run / "last.pth.tar", run / "custom-digits_LT_own_instance_off" / "model_best.pth.tar"):
        capsys.readouterr()
        stage2.main(["--evaluate", "--resume", str(checkpoint_file)])
        line_with(capsys.readouterr().out, "test", f"top-1 {own['acc1']:.2f}")
    assert read_run(run).heads["heads"].keys() == heads.keys()
    report.main([str(run), "--output", str(tmp_path / "out")])  # the report finds the heads in the run folder
    page = (tmp_path / "out" / "report.md").read_text()
    assert "## Heads of ce" in page and "| own, post" in page and "heads_0.svg" in page


def test_report_of_fitted_head_shows_its_values(words, tmp_path):
    stage2.main([*words, "--head", "logistic", "--run-dir", str(tmp_path / "logistic")])
    report.main([str(tmp_path / "logistic"), "--output", str(tmp_path / "out")])
    values = results_of(tmp_path / "logistic")["selected"]["values"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"| selected (l2 {values['l2']:g}, t {values['t']:g}) |" in page


def test_trials_of_fitted_head_have_one_table(words, tmp_path, capsys):
    for seed in ("0", "1"):
        stage2.main([*words, "--head", "ncm", "--seed", seed, "--run-dir", str(tmp_path / f"s{seed}")])
    capsys.readouterr()
    report.main(["--trials", str(tmp_path / "s*")])
    out = capsys.readouterr().out
    assert "### selected" in out and "### last" not in out and "| s1 | 1 | euclidean" in out


def test_comparison_lists_trained_probe(words, probe_flags, tmp_path, capsys, monkeypatch):
    """A folder beside it that cannot be read is reported, and does not end the comparison."""
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    pretrained = ["--pretrained", str(tmp_path / "last.pth.tar")]
    stage2.main([*probe_flags, *pretrained, "--epochs", "1", "--run-dir", str(tmp_path / "probe")])
    for name, text in (("damaged", "{"), ("foreign", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "args.json").write_text(text)
    drawn = []
    monkeypatch.setattr("moco.heads.comparison.heads_picture", lambda heads, path: drawn.append([*heads]))
    capsys.readouterr()
    stage2.main([*words[:-2], *pretrained, "--compare-heads"])
    out, heads = capsys.readouterr().out, results_of(tmp_path / "heads")["heads"]
    line_with(out, "note", tmp_path / "damaged" / "args.json")
    line_with(out, "note", tmp_path / "foreign" / "args.json")
    assert list(heads) == [*HEADS, "probe (trained)"]
    assert drawn == [[*HEADS, "probe (trained)"]]  # once
    assert heads["probe (trained)"]["acc1"] == results_of(tmp_path / "probe")["selected"]["acc1"]
    run = read_run(tmp_path / "probe")
    assert run.results and run.heads is None


def test_results_are_written_before_neighbours_are_read(words, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("unexpected")

    monkeypatch.setattr("moco.heads.comparison.find_probes", fail)
    with pytest.raises(RuntimeError, match="unexpected"):
        stage2.main([*words, "--compare-heads", "--run-dir", str(tmp_path)])
    assert list(results_of(tmp_path)["heads"]) == HEADS
    assert all((tmp_path / name).exists() for name in ("heads.md", "heads.png"))


def test_results_folder_is_not_overwritten(words, comparison, probe_run, tmp_path):
    refusal(lambda: stage2.main([*words, "--compare-heads"]), comparison, "--resume auto")
    ncm = [*words, "--head", "ncm"]
    stage2.main([*ncm, "--run-dir", str(tmp_path)])
    refusal(lambda: stage2.main([*ncm, "--run-dir", str(tmp_path)]), tmp_path, "--resume auto")
    refusal(lambda: stage2.main([*words, "--run-dir", str(tmp_path)]), tmp_path, "--run-dir")
    refusal(
        lambda: stage2.main([*words, "--head", "tau", "--run-dir", str(tmp_path), "--resume", "auto"]), "ncm -> tau"
    )
    before = results_of(tmp_path)["selected"]
    (tmp_path / "results.json").write_text("{}")
    stage2.main([*ncm, "--run-dir", str(tmp_path), "--resume", "auto"])
    assert results_of(tmp_path)["selected"] == before
    refusal(lambda: stage2.main([*ncm, "--run-dir", str(probe_run), "--resume", "auto"]), probe_run)
    refusal(lambda: stage2.main([*ncm, "--resume", words[-1], "--name", "x"]), "--resume")


def test_checkpoint_with_nonfinite_features_is_refused(words, tmp_path):
    state = checkpoint.read_file(words[-1])
    for name, weight in state["state_dict"].items():
        if name.endswith("bn1.running_var"):
            weight.fill_(1e-38)
        if name.endswith(("bn1.weight", "bn2.weight")):
            weight.fill_(1e30)
    torch.save(state, tmp_path / "last.pth.tar")
    mine = [*words[:-1], str(tmp_path / "last.pth.tar"), "--head", "ncm"]
    refusal(lambda: stage2.main(mine), "_train.txt", "89 of 89")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pth.tar"]


def test_checkpoint_of_other_dataset_has_no_target_head(tmp_path, monkeypatch, words, capsys):
    """Its encoder is used like any other. Its targets belong to its own classes."""
    three.register(monkeypatch)
    folder = three.write(tmp_path)
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    mine = f"--dataset three --data-root {folder} --splits {folder} -j 0 -b 8 --device cpu --compare-heads --seed 0"
    stage2.main([*mine.split(), "--pretrained", str(tmp_path / "last.pth.tar")])
    line_with(capsys.readouterr().out.replace(str(tmp_path), ""), "target", "last.pth.tar", 10, 3)
    assert [len(entry["per_class"]) for entry in results_of(tmp_path / "heads")["heads"].values()] == [3] * 9


def test_features_of_images_under_other_root_are_recomputed(tmp_path, monkeypatch, words):
    """The list and the file names are the same, the pixels are not."""
    three.register(monkeypatch)
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    features = []
    for name, rotated in (("one", False), ("other", True)):
        (tmp_path / name).mkdir()
        folder = three.write(tmp_path / name)
        for path in folder.glob("*.png") if rotated else ():
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
        mine = f"--dataset three --data-root {folder} --splits {folder} -j 0 -b 8 --device cpu --head ncm --resume auto"
        stage2.main([*mine.split(), "--pretrained", str(tmp_path / "last.pth.tar")])
        features.append([load_file(file)["features"] for file in sorted((tmp_path / "features_last").iterdir())])
    assert len(features[0]) == 3
    assert not any(torch.equal(one, other) for one, other in zip(*features, strict=True))
