"""Run `python -m imagenet_inat.splits` and read its output."""

from pathlib import Path

from imagenet_inat.splits import __main__ as splits


def run_verify(folder: Path, capsys, *flags: str, name: str = "custom") -> tuple[int, str]:
    """Run `verify` on a folder with lists/ and images/; return its exit code and output."""
    return run_splits(
        ["verify", name, "--splits", str(folder / "lists"), "--data-root", str(folder / "images"), *flags], capsys
    )


def run_splits(command: list[str], capsys) -> tuple[int, str]:
    """Run the command; return its exit code and output."""
    capsys.readouterr()
    try:
        splits.main(command)
    except SystemExit as end:
        return end.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def lines_marked(out: str, mark: str) -> list[str]:
    """Return the lines with a mark: ok, note or WRONG."""
    return [line.removeprefix(f"  {mark}").strip() for line in out.splitlines() if line.startswith(f"  {mark} ")]


def known_lists(out: str) -> list[str]:
    """Return the lines about lists whose bytes are known."""
    return [line for line in lines_marked(out, "ok") if "SHA-256" in line]


def wrong_lines(out: str) -> list[str]:
    return lines_marked(out, "WRONG")
