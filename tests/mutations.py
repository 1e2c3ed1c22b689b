"""Documents and bytes with one thing or a few changed, by a seeded source of chance: what fuzzers feed to readers."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

ESCAPES = "\x1b]0;TITLE\x07\x1b[31mRED\x1b[0m\x1b]52;c;AAAA\x07[bold]x[/bold]\u202e\x9b2J\ud800\nforged: line"
ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 2**70, 10**25, 1e308, -1e308, 1e-320, 0.5, float("nan"), float("inf")),
    *(
        "",
        "x",
        "x" * 64,
        "0" * 64,
        "nan",
        ESCAPES,
        "A" * 20_000,
        "\0",
        "../../../../tmp/edgeopt-written",
        "/etc/passwd",
    ),
    *([], {}, [None], [[]], [0, 1], {"a": 1}, {"value": None}, {"": {}}, {ESCAPES: ESCAPES}),
]


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document, as keys from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*above, key)
        yield from places(item, (*above, key))


def document(given: Any, chance: random.Random) -> Any:
    """A copy with one to three values replaced, removed, doubled, made deep or moved."""
    found = copy.deepcopy(given)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        there = list(places(found))
        if not there:
            return chance.choice(ODD)
        *outer, last = chance.choice(there)
        holder = found
        for key in outer:
            holder = holder[key]
        _change(holder, last, found, there, chance)
    return found


def _change(holder: Any, key: Any, whole: Any, there: list[tuple[Any, ...]], chance: random.Random) -> None:
    way = chance.random()
    if way < 0.6:
        holder[key] = copy.deepcopy(chance.choice(ODD))
    elif way < 0.75:
        del holder[key]
    elif way < 0.82 and isinstance(holder, list):
        holder.extend([copy.deepcopy(holder[key])] * chance.choice((1, 50)))
    elif way < 0.88 and isinstance(holder, dict):
        holder[chance.choice((ESCAPES, "new", "../x", ""))] = copy.deepcopy(holder[key])
    elif way < 0.92:
        for _ in range(chance.choice((3, 300))):
            holder[key] = [holder[key]]
    else:
        other: Any = whole
        for step in chance.choice(there):
            other = other[step]
        holder[key] = copy.deepcopy(other) if not _holds(other, holder) else None


def _holds(value: Any, holder: Any) -> bool:
    """Whether it would be put into itself."""
    if value is holder:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_holds(item, holder) for item in inner)


def data(given: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or put in."""
    found = bytearray(given)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(len(found)) if found else 0
        way = chance.random()
        if way < 0.5 and found:
            found[place] ^= 1 << chance.randrange(8)
        elif way < 0.65:
            del found[place:]
        elif way < 0.8:
            found[place:place] = chance.randbytes(chance.choice((1, 4, 100)))
        elif way < 0.9 and found:
            found[place : place + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        else:
            del found[place : place + chance.choice((1, 10, 1000))]
    return bytes(found)
