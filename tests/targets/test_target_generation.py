"""Generated targets are spread unit vectors, the exact simplex if it exists, and determined by the seed."""

import json
import os

import numpy as np
import pytest
import torch

import target_generation
from moco.targets import generation, optimize
from moco.targets.bounds import target_quality
from moco.targets.defaults import TEMPERATURE
from moco.targets.files import load_targets
from moco.targets.generation import generate, generate_file
from moco.targets.point_sets import random_points
from tests.refusals import exit_message, line_with, refusal


def gap_percent(points: torch.Tensor) -> float:
    return target_quality(points.numpy(), TEMPERATURE)["gap_percent"]


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (3, 2), (10, 128), (129, 128)])
def test_few_classes_give_the_regular_simplex(num_classes, dim):
    points = generate(num_classes, dim).double()
    cosines = points @ points.T
    off_diagonal = cosines[~torch.eye(num_classes, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, -1 / (num_classes - 1)), atol=1e-6, rtol=0)


def test_one_class_gives_one_unit_vector():
    assert generate(1, 5).norm().item() == pytest.approx(1)


@pytest.mark.parametrize(("num_classes", "dim"), [(8, 4), (10, 2), (12, 3), (27, 6)])
def test_known_optima_are_found(num_classes, dim):
    """The optima are the cross-polytope, the decagon, the icosahedron and the 27 lines on a cubic surface."""
    assert gap_percent(generate(num_classes, dim)) == pytest.approx(0, abs=1e-3)


def test_quadric_start_beats_random_start():
    """112 points in R^21 are exactly the quadric of q = 3, which no random start finds."""
    assert gap_percent(generate(112, 21, iters=50)) == pytest.approx(0, abs=1e-3)
    best, rng = optimize.BestPoints(), torch.Generator().manual_seed(0)
    optimize.lbfgs(random_points(112, 21, rng), 0.07, 300, best, lambda energy: None)
    assert gap_percent(best.points) > 10


def test_more_starts_give_a_better_set():
    one, three = generate(60, 5, iters=30), generate(60, 5, iters=30, restarts=3)
    assert gap_percent(three) < gap_percent(one)  # for seed 0


def test_seed_determines_the_points():
    for num_classes in (20, 5):  # found by search; simplex
        assert torch.equal(generate(num_classes, 4, seed=1), generate(num_classes, 4, seed=1))
        assert not torch.equal(generate(num_classes, 4, seed=1), generate(num_classes, 4, seed=2))


def test_adam_does_not_use_the_simplex():
    assert gap_percent(generate(5, 4, optimizer="adam", iters=20)) > 1


def test_command_writes_float32_file_with_release_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    target_generation.main(["--dataset", "digits", "--dim", "16"])
    assert np.load("optimal_10_16.npy").dtype == np.float32
    assert load_targets("optimal_10_16.npy", 10, 16).shape == (10, 16)
    printed = capsys.readouterr()
    line_with(printed.err, "optimal_10_16.npy", "0.2045")
    assert "optimal" in printed.out
    assert [p.name for p in tmp_path.iterdir()] == ["optimal_10_16.npy"]


def test_same_command_writes_same_bytes(tmp_path):
    command = "--num-classes 40 --dim 6 --iters 30 --output"
    for name in ("a", "b"):
        target_generation.main([*command.split(), str(tmp_path / f"{name}.npy")])
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_check_prints_json_and_writes_plot(tmp_path, capsys):
    generate_file(tmp_path / "t.npy", 12, 3)
    capsys.readouterr()
    picture = tmp_path / "t.png"
    target_generation.main(["--check", str(tmp_path / "t.npy"), "--json", "--plot", str(picture)])
    facts = json.loads(capsys.readouterr().out)
    assert facts["classes"] == 12 and facts["dim"] == 3 and facts["optimal"] is True
    assert facts["smallest_angle"] == pytest.approx(63.435, abs=1e-2)  # the icosahedron's
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("num_classes", "dim"), [(5, 2), (10, 16)])
def test_plots_of_other_dimensions(num_classes, dim, tmp_path):
    command = f"--num-classes {num_classes} --dim {dim} --output {tmp_path}/t.npy --plot {tmp_path}/t.png"
    target_generation.main(command.split())
    assert (tmp_path / "t.png").stat().st_size > 10_000


def interrupt_after(log_energy_and_gradient, after: int):
    """Return the energy function, which raises KeyboardInterrupt after `after` evaluations."""
    calls = iter(range(after))

    def evaluate(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return log_energy_and_gradient(*args)

    return evaluate


def test_ctrl_c_saves_best_points_so_far(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(optimize, "log_energy_and_gradient", interrupt_after(optimize.log_energy_and_gradient, 20))
    with pytest.raises(SystemExit) as end:
        target_generation.main(f"--num-classes 40 --dim 6 --output {tmp_path}/t.npy".split())
    assert end.value.code == 130
    assert str(tmp_path / "t.npy") in capsys.readouterr().err
    monkeypatch.undo()
    assert gap_percent(load_targets(tmp_path / "t.npy", 40, 6)) < gap_percent(generate(40, 6, iters=5))


def test_ctrl_c_keeps_existing_files(tmp_path, monkeypatch):
    """The file to overwrite and the points of an earlier interrupted search are kept."""
    generate_file(tmp_path / "t.npy", 40, 6, iters=30)
    before = (tmp_path / "t.npy").read_bytes()
    for name in ("t.interrupted.npy", "t.interrupted-2.npy"):
        with monkeypatch.context() as patch:
            patch.setattr(optimize, "log_energy_and_gradient", interrupt_after(optimize.log_energy_and_gradient, 5))
            with pytest.raises(SystemExit):
                target_generation.main(f"--num-classes 40 --dim 6 --output {tmp_path}/t.npy --overwrite".split())
        assert (tmp_path / "t.npy").read_bytes() == before
        load_targets(tmp_path / name, 40, 6)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("flag", ["--output", "--plot"])
def test_existing_file_needs_overwrite(flag, tmp_path):
    file = tmp_path / "t.png"
    file.write_bytes(b"mine")
    words = f"--num-classes 5 --dim 4 --output {tmp_path}/t.npy {flag} {file}".split()
    refusal(lambda: target_generation.main(words), flag, file, "--overwrite")
    assert file.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
    target_generation.main([*words, "--overwrite"])
    assert file.read_bytes() != b"mine"


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for words in ("--num-classes 5 --output", "--check t.npy --plot"):
        words = [*words.split(), str(tmp_path / "pipe.png"), "--overwrite"]
        refusal(lambda words=words: target_generation.main(words), tmp_path / "pipe.png")
    assert (tmp_path / "pipe.png").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_interrupted_generation_in_a_run_writes_no_file(tmp_path, monkeypatch):
    """The next run would use the unfinished file as finished targets."""
    monkeypatch.setattr(optimize, "log_energy_and_gradient", interrupt_after(optimize.log_energy_and_gradient, 5))
    with pytest.raises(KeyboardInterrupt):
        generate_file(tmp_path / "t.npy", 40, 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "facts"),
    [
        ("--num-classes 1 --output {tmp}/t.npy", ["--num-classes 1"]),
        ("--num-classes 5 --output {tmp}/no/t.npy", ["--output {tmp}/no/t.npy"]),
        ("--num-classes 5 --output {tmp}", ["--output {tmp}"]),
        ("--num-classes 5 --plot {tmp}/t.jpg", ["--plot {tmp}/t.jpg", ".png"]),
        ("--num-classes 5 --device cuda:99", ["cuda:99"]),
        ("--check {tmp}/t.npy", ["{tmp}/t.npy", "No such file"]),
    ],
)
def test_bad_arguments_are_refused(command, facts, tmp_path):
    command, *facts = (text.format(tmp=tmp_path) for text in (command, *facts))
    refusal(lambda: target_generation.main(command.split()), *facts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "facts"),
    [
        ("--dataset digits --num-classes 5", ["--dataset", "--num-classes"]),
        ("--num-classes 5 --optimizer adam --restarts 2", ["--optimizer adam", "--restarts"]),
        ("--check t.npy --output o.npy", ["--check", "--output"]),
        ("--check t.npy --seed 3", ["--check", "--seed"]),
        ("--check t.npy --iters 5 --restarts 2", ["--check", "--iters", "--restarts"]),
        ("--check t.npy --optimizer adam --device cpu", ["--check", "--optimizer", "--device"]),
    ],
)
def test_contradictory_flags_are_refused(command, facts, capsys):
    exit_message(lambda: target_generation.main(command.split()), capsys, *facts)


def test_check_refuses_targets_of_other_size(tmp_path):
    generate_file(tmp_path / "t.npy", 5, 4)
    for flags in ("--num-classes 6", "--dim 5", "--dataset digits"):
        words = ["--check", str(tmp_path / "t.npy"), *flags.split()]
        refusal(lambda words=words: target_generation.main(words), tmp_path / "t.npy", "(5, 4)")


def test_search_reports_progress_in_lines_if_the_output_is_a_file(monkeypatch, capsys):
    monkeypatch.setattr(generation, "LINE_SECONDS", 0)
    generate(20, 3, iters=10, restarts=2)
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"targets 20×3: {done} of at most 20 evaluations" for done in range(1, 21)
    ]
