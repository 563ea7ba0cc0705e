"""Report the findings of a check, one line each, and count the problems."""

from collections.abc import Iterable

from utils.distributed import say

SHOWN = 5  # cases named before "and N more"


class Findings:
    """Prints each finding as it is reported. `wrong` is the number of problems."""

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
    """Return the first cases and the number of others. total: number of all cases, if `cases` holds only some."""
    cases = [str(case) for case in cases]
    total = len(cases) if total is None else total
    more = f", and {total - SHOWN:,} more" if total > SHOWN else ""
    return ", ".join(cases[:SHOWN]) + more
