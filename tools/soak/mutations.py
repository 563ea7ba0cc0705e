"""Damage as caused by disks, transfers, editors and people: to bytes, lines, JSON and checkpoints."""

import json
import random

import torch

JUNK = (None, -1, 0, 10**12, 1.5, "x", [], {}, [1, 2], {"a": 1}, float("nan"), True)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or blank a random part."""
    at, size = rng.randrange(len(data)), rng.choice([1, 1, 1, 2, 20, 500])
    piece = data[at : at + size]
    return {
        "flip": lambda: data[:at] + bytes(byte ^ (1 << rng.randrange(8)) for byte in piece) + data[at + size :],
        "cut": lambda: data[:at] + data[at + size :],
        "truncate": lambda: data[:at],
        "insert": lambda: data[:at] + rng.randbytes(size) + data[at:],
        "repeat": lambda: data[: at + size] + piece + data[at + size :],
        "blank": lambda: data[:at] + bytes(len(piece)) + data[at + size :],
    }[rng.choice(["flip", "cut", "truncate", "insert", "repeat", "blank"])]()


def damage_line(data: bytes, rng: random.Random) -> bytes:
    """Damage one line of a split list, as by a typing mistake."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    path, label = lines[at].rsplit(" ", 1)
    lines[at] = rng.choice(
        [
            path,
            label,
            "",
            f"{path}  {label}",
            f"{path}\t{label}",
            f"{path} {label}\r",
            f"{path},{label}",
            f"{path} {label}.0",
            f"{path} -{label}",
            f"{path} {int(label) + 10}",
            f"{path} {label} {label}",
            f"../{path} {label}",
            f"/{path} {label}",
            f"{path}x {label}",
            f"{path} ①",
            f"\ufeff{path} {label}",
            f"# {lines[at]}",
        ]
    )
    return "\n".join(lines).encode()


def damage_text(data: bytes, rng: random.Random) -> bytes:
    """Damage one line of a settings file, such as a recipe or a plan."""
    lines = data.decode().splitlines()
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    words = lines[at].split(" ")
    word = rng.randrange(len(words))
    words[word] = rng.choice(["", "-1", "0", "nan", "1e99", "x", "--", "'", '"', "%(x)s", "①", "\x00", "@.", "[", "="])
    lines[at] = rng.choice(
        [
            " ".join(words),
            "",
            lines[at] * 2,
            lines[at][: len(lines[at]) // 2],
            f"{lines[at]}\n{lines[other]}",
            f"  {lines[at]}",
            lines[at].replace("=", ":"),
            lines[at].replace(" ", ""),
            lines[at].upper(),
            f"{lines[at]} {lines[other]}",
        ]
    )
    return "\n".join(lines).encode()


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Replace or remove a random entry of a JSON file, or of one line of a JSON Lines file."""
    lines = data.decode().splitlines() if data.count(b"\n}") < 1 else [data.decode()]
    at = rng.randrange(len(lines))
    value = json.loads(lines[at])
    if rng.random() < 0.1:
        value = rng.choice(JUNK)
    else:
        table, key = rng.choice(list(_entries(value)))
        if rng.random() < 0.3:
            del table[key]
        else:
            table[key] = rng.choice(JUNK)
    lines[at] = json.dumps(value, indent=2 if len(lines) == 1 else None)
    return ("\n".join(lines) + "\n").encode()


def _entries(value):
    """Yield all (dict, key) and (list, index) pairs of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _entries(inner)


def damage_entry(state: dict, rng: random.Random) -> dict:
    """Replace or remove a random entry of a checkpoint."""
    tables = [state, state, *(state[name] for name in ("state_dict", "optimizer", "args") if name in state)]
    table = rng.choice(tables)
    key = rng.choice(sorted(table, key=str))
    if rng.random() < 0.3:
        del table[key]
    else:
        table[key] = rng.choice([*JUNK, torch.zeros(3), torch.tensor(float("inf"))])
    return state
