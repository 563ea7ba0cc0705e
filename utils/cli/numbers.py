"""Types of numbers for `add_argument`."""

import argparse
from collections.abc import Callable

from utils.safe_load import MAX_COUNT


def number_type(
    name: str, python_type: type, allowed: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """Return a type for `add_argument` that accepts allowed numbers only.

    Args:
        name: what argparse calls the type in its messages.
        python_type: int or float.
        allowed: returns whether a value is accepted.
        expected: description of the accepted values, for the message.
    """

    def convert(text: str) -> float:
        value = python_type(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")
        return value

    convert.__name__ = name  # argparse prints it if the text is not a number
    return convert


def int_type(name: str, least: int) -> Callable[[str], int]:
    """Return a type for `add_argument` that accepts integers from `least` to MAX_COUNT - 1, valid library indices."""
    at_least = number_type(name, int, lambda value: value >= least, f"{least} or more")

    def convert(text: str) -> int:
        if (value := at_least(text)) >= MAX_COUNT:
            raise argparse.ArgumentTypeError(f"found {text}, expected at most {MAX_COUNT - 1}")
        return value

    convert.__name__ = name
    return convert


positive_int, nonnegative_int = int_type("positive_int", 1), int_type("nonnegative_int", 0)
seconds = number_type("seconds", int, lambda value: 1 <= value <= 10**6, "1 to 1000000")
seed_number = number_type("seed_number", int, lambda value: 0 <= value < 2**63, "0 to 2**63 - 1")
positive_float = number_type("positive_float", float, lambda value: 0 < value < float("inf"), "a number above 0")
nonnegative_float = number_type(
    "nonnegative_float", float, lambda value: 0 <= value < float("inf"), "a number of at least 0"
)
fraction = number_type("fraction", float, lambda value: 0 <= value <= 1, "0 to 1")
