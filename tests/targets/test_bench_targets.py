"""The targets benchmark runs on a small problem and prints its rows."""

from benchmarks import bench_targets


def test_bench_targets_prints_a_row_per_start_and_level(monkeypatch, capsys):
    monkeypatch.setattr(bench_targets, "NUM_CLASSES", 120)
    monkeypatch.setattr(bench_targets, "DIM", 22)
    monkeypatch.setattr(bench_targets, "LEVELS", (4.5, 0.1))  # the first is reached, the second is not
    monkeypatch.setattr(bench_targets, "EVALUATIONS", 40)
    bench_targets.main(["--repeats", "1", "--steps", "2"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 7
    reached = [row[2].strip() for row in rows[1:]]
    assert reached[0] != "nan" and reached[1] == "nan" and reached[3] != "nan"
    assert float(rows[6][1]) < float(rows[3][1])  # symmetric start below random start
