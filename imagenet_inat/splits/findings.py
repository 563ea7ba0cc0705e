"""Report the findings of a check, one line each, and count the problems."""

from collections.abc import Iterable

from utils.distributed import log

MAX_CASES = 5  # cases named before "and N more"


class Findings:
    """Prints each finding as it is reported. `num_problems` is the number of problems."""

    def __init__(self):
        self.num_problems = 0

    def good(self, text: str) -> None:
        log(f"  ok     {text}")

    def note(self, text: str) -> None:
        log(f"  note   {text}")

    def bad(self, text: str) -> None:
        self.num_problems += 1
        log(f"  WRONG  {text}")


def format_first_cases(cases: Iterable, total: int | None = None) -> str:
    """Format the first cases and the number of the others.

    total: number of all cases, if `cases` contains only some of them.
    """
    cases = [str(case) for case in cases]
    total = len(cases) if total is None else total
    more = f", and {total - MAX_CASES:,} more" if total > MAX_CASES else ""
    return ", ".join(cases[:MAX_CASES]) + more
