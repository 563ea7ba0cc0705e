"""Fitted heads through the script: features once, a choice on validation, files that are read again."""

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
from utils.errors import InputError
from utils.report import __main__ as report
from utils.report.runs import read_run
from utils.run import checkpoint


@pytest.fixture(scope="module")
def words(probe_flags, tsc_run, tmp_path_factory) -> list[str]:
    """Flags of a head on a copy of the TSC run, alone in its folder."""
    folder = tmp_path_factory.mktemp("fitting")
    shutil.copy(tsc_run / "last.pth.tar", folder)
    without_lr = [word for word in probe_flags if word not in ("--lr", "1")]
    at = without_lr.index("--seed")
    return [*without_lr[:at], *without_lr[at + 1 :], "--pretrained", str(folder / "last.pth.tar")]


@pytest.fixture(scope="module")
def compared(words) -> Path:
    stage2.main([*words, "--compare-heads"])
    return Path(words[-1]).parent / "heads"


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


HEADS = [
    *("logistic, post", "logistic, train", "logistic, class-balanced"),
    *("cosine, post", "cosine, train", "cosine, class-balanced", "ncm", "tau", "lws", "target"),
]


def test_all_heads_are_compared(compared):
    record = results_of(compared)
    assert list(record["heads"]) == HEADS == record["chosen"]["from"]["head"]
    assert record["chosen"]["on"] == "val" and "class-balanced" in record["chosen"]["rule"]
    best = max(record["heads"].values(), key=lambda entry: entry["val_balanced"])
    assert record["selected"]["per_class"] == best["per_class"]
    table = (compared / "heads.md").read_text()
    assert table.count("✓") == 2  # in the note, and behind the best
    assert all(f"| {head}" in table for head in HEADS) and "chosen on val" in table
    assert (compared / "heads.png").stat().st_size > 10_000
    assert not list(compared.glob("*.pth.tar"))


@pytest.mark.parametrize("head", ["logistic", "cosine", "ncm", "target"])
def test_one_head_is_that_of_the_comparison_and_is_measured_again(head, words, compared, probe_flags, tmp_path, capsys):
    stage2.main([*words, "--head", head, "--run-dir", str(tmp_path)])
    record = results_of(tmp_path)
    title = f"{head}, post" if head in ("logistic", "cosine") else head
    theirs = results_of(compared)["heads"][title]
    assert record["selected"] == {name: theirs[name] for name in record["selected"]}
    assert record["chosen"]["from"] == theirs["from"]
    stage2.main([*probe_flags, "--evaluate", "--resume", str(tmp_path / "model_best.pth.tar")])
    assert f"test, epoch 0: top-1 {theirs['acc1']:.2f}" in capsys.readouterr().out


def test_features_are_computed_once_and_never_of_another_checkpoint(words, compared, tmp_path, capsys):
    """Kept, then of a checkpoint that has moved, a truncated file, another size: each said, and the right numbers."""
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    mine = [*words[:-1], str(tmp_path / "last.pth.tar"), "--head", "ncm", "--resume", "auto"]

    def run(*more: str) -> str:
        capsys.readouterr()
        stage2.main([*mine, *more, "--run-dir", str(tmp_path / "ncm")])
        return capsys.readouterr().out

    folder, expected = tmp_path / "features_last", results_of(compared)["heads"]["ncm"]["per_class"]
    assert run().count("features: wrote") == 3 and results_of(tmp_path / "ncm")["selected"]["per_class"] == expected
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert "kept" in run() and {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written

    (folder / "val.safetensors").write_bytes((folder / "val.safetensors").read_bytes()[:-100])
    said = run()
    assert said.count("made anew") == 1 and "val.safetensors: cannot be read" in said
    assert results_of(tmp_path / "ncm")["selected"]["per_class"] == expected

    assert run("--statistics", "cifar10").count("is of another statistics; made anew") == 3
    state = checkpoint.read(words[-1])
    for name, weight in state["state_dict"].items():
        if name.endswith("layer3.2.conv2.weight"):
            state["state_dict"][name] = torch.randn_like(weight)
    torch.save(state, tmp_path / "last.pth.tar")
    assert run().count("is of another checkpoint, statistics; made anew") == 3
    assert results_of(tmp_path / "ncm")["selected"]["per_class"] != expected


def test_random_views_are_numbered(words, tmp_path, capsys):
    """Two views are twice the features, the same for any number of loader processes, others for another seed."""
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    mine = [*words[:-1], str(tmp_path / "last.pth.tar"), "--head", "ncm", "--feature-views", "2", "--resume", "auto"]
    seen = []
    for more in ("-j 0 --seed 1", "-j 2 --seed 1", "--seed 2"):
        (tmp_path / "features_last" / "train_2_views.safetensors").unlink(missing_ok=True)
        stage2.main([*mine, *more.split(), "--run-dir", str(tmp_path / "ncm")])
        seen.append(load_file(tmp_path / "features_last" / "train_2_views.safetensors")["features"])
    assert len(seen[0]) == 2 * 331 and torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0][:331], seen[0][331:])


def test_the_baselines_own_classifier_is_a_head_too(probe_flags, tmp_path, capsys):
    run = tmp_path / "ce"
    cross_entropy.main([*probe_flags, "--epochs", "1", "--balance", "none", "--run-dir", str(run)])
    last = results_of(run)["last"]
    stage2.main([*probe_flags, "--compare-heads", "--pretrained", str(run / "last.pth.tar")])
    said, heads = capsys.readouterr().out, results_of(run / "heads")["heads"]
    assert "left out: target (checkpoint" in said and "own, post" in heads
    stage2.main([*probe_flags, "--head", "own", "--logit-adjustment", "off", "--pretrained", str(run / "last.pth.tar")])
    own = results_of(run / "custom-digits_LT_own_instance_off_")["selected"]
    assert own["per_class"] == pytest.approx(last["per_class"]) and own["ece"] == pytest.approx(last["ece"], abs=1e-3)
    assert read_run(run).heads["heads"].keys() == heads.keys()
    report.main([str(run), "--output", str(tmp_path / "out")])  # and the report finds it beside the run
    page = (tmp_path / "out" / "report.md").read_text()
    assert "## Heads of ce" in page and "| own, post" in page and "heads_0.svg" in page


def test_a_report_of_a_fitted_head_says_its_values(words, tmp_path):
    stage2.main([*words, "--head", "logistic", "--run-dir", str(tmp_path / "logistic")])
    report.main([str(tmp_path / "logistic"), "--output", str(tmp_path / "out")])
    values = results_of(tmp_path / "logistic")["selected"]["values"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"| selected (l2 {values['l2']:g}, t {values['t']:g}) |" in page


def test_trials_of_a_fitted_head_have_the_one_table(words, tmp_path, capsys):
    for seed in ("0", "1"):
        stage2.main([*words, "--head", "ncm", "--seed", seed, "--run-dir", str(tmp_path / f"s{seed}")])
    capsys.readouterr()
    report.main(["--trials", str(tmp_path / "s*")])
    said = capsys.readouterr().out
    assert "### selected: " in said and "### last: " not in said and "| s1 | 1 | euclidean" in said


def test_probes_that_were_trained_stand_beside(words, probe_flags, tmp_path):
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    pretrained = ["--pretrained", str(tmp_path / "last.pth.tar")]
    stage2.main([*probe_flags, *pretrained, "--epochs", "1", "--run-dir", str(tmp_path / "probe")])
    stage2.main([*words[:-2], *pretrained, "--compare-heads"])
    heads = results_of(tmp_path / "heads")["heads"]
    assert list(heads) == [*HEADS, "probe (trained)"]
    assert heads["probe (trained)"]["acc1"] == results_of(tmp_path / "probe")["selected"]["acc1"]
    run = read_run(tmp_path / "probe")
    assert run.results and run.heads is None


def test_a_folder_of_results_is_not_written_over(words, compared, probe_run):
    with pytest.raises(InputError, match="heads: holds results already; --resume auto makes them anew"):
        stage2.main([*words, "--compare-heads"])
    stage2.main([*words, "--compare-heads", "--resume", "auto"])
    with pytest.raises(InputError, match="probe: holds a run that was trained"):
        stage2.main([*words, "--head", "ncm", "--run-dir", str(probe_run), "--resume", "auto"])
    with pytest.raises(InputError, match="has no checkpoint to go on from"):
        stage2.main([*words, "--head", "ncm", "--resume", words[-1], "--name", "x"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--head ncm --sampling class-balanced", "--sampling class-balanced: --head ncm has instance"),
        ("--head ncm --logit-adjustment train", "--logit-adjustment train: --head ncm has off"),
        (
            "--head logistic --sampling class-balanced --logit-adjustment post",
            "--logit-adjustment post: corrects for the classes' sizes, which --sampling class-balanced has done",
        ),
        ("--head linear --logit-adjustment post", "--logit-adjustment post: --head linear has off or train"),
        ("--head own", "--head own: checkpoint .*last.pth.tar: has a projection head, expected a linear classifier"),
        ("--head logistic --pretrained {elsewhere}", r"--pretrained \"elsewhere\": no such file"),
    ],
)
def test_what_makes_no_sense_is_one_line(more, message, words, tmp_path):
    with pytest.raises(InputError, match=message.replace('\\"', '"')):
        stage2.main([*words, *more.format(elsewhere="elsewhere").split(), "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--compare-heads --head ncm", "--head: of no use with --compare-heads"),
        ("--head logistic --finetune", "--finetune: of no use with --head logistic, which is fitted"),
        ("--feature-views 2", "--feature-views: of no use with --head linear"),
    ],
)
def test_flags_that_clash_are_refused(more, message, words, capsys):
    with pytest.raises(SystemExit) as stop:
        stage2.main([*words, *more.split()])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_flags_of_training_are_said_to_do_nothing(words, tmp_path, capsys):
    stage2.main([*words, "--head", "ncm", "--epochs", "3", "--lr", "1", "--run-dir", str(tmp_path)])
    assert "note: --epochs, --lr, -p without effect with --head ncm" in capsys.readouterr().out


def test_several_processes_are_refused(words):
    with pytest.raises(InputError, match="--compare-heads: heads are fitted by one process, found 2; start one"):
        stage2.main([*words, "--compare-heads", "--multiprocessing-distributed", "--name", "two"])


def test_a_checkpoint_whose_features_are_not_finite_is_refused(words, tmp_path):
    state = checkpoint.read(words[-1])
    for name, weight in state["state_dict"].items():
        if name.endswith("bn1.running_var"):
            weight.fill_(1e-38)
        if name.endswith(("bn1.weight", "bn2.weight")):
            weight.fill_(1e30)
    torch.save(state, tmp_path / "last.pth.tar")
    with pytest.raises(InputError, match=r"_train.txt: 331 of 331 images have features that are not finite"):
        stage2.main([*words[:-1], str(tmp_path / "last.pth.tar"), "--head", "ncm"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pth.tar"]


def test_a_checkpoint_of_another_data_set(tmp_path, monkeypatch, words, capsys):
    """Its encoder is taken, as any is; its targets are of its own classes."""
    three.register(monkeypatch)
    folder = three.write(tmp_path)
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    mine = f"--dataset three --data-root {folder} --splits {folder} -j 0 -b 8 --device cpu --compare-heads --seed 0"
    stage2.main([*mine.split(), "--pretrained", str(tmp_path / "last.pth.tar")])
    assert "left out: target (checkpoint" in (said := capsys.readouterr().out)
    assert "has targets of 10 classes, expected 3)" in said
    assert [len(entry["per_class"]) for entry in results_of(tmp_path / "heads")["heads"].values()] == [3] * 9


def test_features_of_images_under_another_root_are_made_anew(tmp_path, monkeypatch, words, capsys):
    """The same list and the same names, other pixels."""
    three.register(monkeypatch)
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    for name, turned in (("one", False), ("other", True)):
        (tmp_path / name).mkdir()
        folder = three.write(tmp_path / name)
        for path in folder.glob("*.png") if turned else ():
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
        mine = f"--dataset three --data-root {folder} --splits {folder} -j 0 -b 8 --device cpu --head ncm --resume auto"
        stage2.main([*mine.split(), "--pretrained", str(tmp_path / "last.pth.tar")])
    assert capsys.readouterr().out.count("is of another root; made anew") == 3
