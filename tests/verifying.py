"""Calling `python -m imagenet_inat.splits` and reading its verdict."""

from pathlib import Path

from imagenet_inat.splits import __main__ as splits


def verdict(folder: Path, capsys, *flags: str, name: str = "custom") -> tuple[int, str]:
    """Exit code and output of `verify` on a folder with lists/ and images/."""
    return run(
        ["verify", name, "--splits", str(folder / "lists"), "--data-root", str(folder / "images"), *flags], capsys
    )


def run(command: list[str], capsys) -> tuple[int, str]:
    capsys.readouterr()
    try:
        splits.main(command)
    except SystemExit as end:
        return end.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def wrong_lines(out: str) -> list[str]:
    return [line.removeprefix("  WRONG  ") for line in out.splitlines() if line.startswith("  WRONG")]
