"""Small frozen objects that are built from the arguments of a command."""

import argparse
from dataclasses import fields


class FromArgs:
    """A mix-in of frozen dataclasses: the fields are arguments of the command line."""

    @classmethod
    def from_args(cls, args: argparse.Namespace, **others: object):
        """Return the part of the arguments that the fields name. others: values of fields that are no arguments."""
        names = [field.name for field in fields(cls) if field.name not in others]
        return cls(**{name: getattr(args, name) for name in names}, **others)
