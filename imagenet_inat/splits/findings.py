"""What a check finds, said line by line and counted."""

from collections.abc import Iterable

from utils.distributed import say

SHOWN = 5  # cases named before "and N more"


class Findings:
    """What was found, printed as it comes; `wrong` counts what is not as it should be."""

    def __init__(self):
        self.wrong = 0

    def good(self, text: str) -> None:
        say(f"  ok     {text}")

    def note(self, text: str) -> None:
        say(f"  note   {text}")

    def bad(self, text: str) -> None:
        self.wrong += 1
        say(f"  WRONG  {text}")


def some(cases: Iterable, total: int | None = None) -> str:
    """The first cases, and how many there are besides; `total` if not all are given."""
    cases = [str(case) for case in cases]
    total = len(cases) if total is None else total
    more = f", and {total - SHOWN:,} more" if total > SHOWN else ""
    return ", ".join(cases[:SHOWN]) + more
