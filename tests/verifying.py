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


def marked(out: str, mark: str) -> list[str]:
    """Return the lines with a mark: ok, note or WRONG."""
    return [line.removeprefix(f"  {mark}").strip() for line in out.splitlines() if line.startswith(f"  {mark} ")]


def known_lists(out: str) -> list[str]:
    """Return the lines on lists whose bytes are known."""
    return [line for line in marked(out, "ok") if "SHA-256" in line]


def wrong_lines(out: str) -> list[str]:
    return marked(out, "WRONG")
