"""Small frozen objects that are built from the arguments of a command."""

import argparse
from dataclasses import fields


class FromArgs:
    """A mix-in of frozen dataclasses: the fields are arguments of the command line, or other such dataclasses.

    A field with another name than its argument names the argument in its metadata, {"flag": name}.
    """

    @classmethod
    def from_args(cls, args: argparse.Namespace, **others: object):
        """Return the part of the arguments that the fields name. others: values of fields that are no arguments."""
        for field in fields(cls):
            if isinstance(field.type, type) and issubclass(field.type, FromArgs):
                others.setdefault(field.name, field.type.from_args(args))
            elif field.name not in others:
                others[field.name] = getattr(args, field.metadata.get("flag", field.name))
        return cls(**others)
