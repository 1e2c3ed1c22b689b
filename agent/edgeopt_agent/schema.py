"""What a value may be, said once: a schema is a function that raises Mismatch for a value that it does not take.

Schemas are put together from the functions here; requests.py and replies.py hold those of the contract. Keys that a
record does not name are let through, since versions differ; wrong types, numbers that cannot be and unsafe names are
not.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

Schema = Callable[[Any], None]

MOST_WHOLE = 1 << 53  # what every JSON reader takes for a whole number
MOST_NUMBER = 1e15
MOST_SECONDS = 1e9
MOST_TEXT = 8192  # characters
MOST_ITEMS = 1_000_000
SHOWN = 60


class Mismatch(ValueError):
    """`place`: where in the value, outermost first; `wanted`: what is allowed there; `found`: what stands there."""

    def __init__(self, wanted: str, found: Any) -> None:
        super().__init__(wanted)
        self.place: List[Union[str, int]] = []
        self.wanted, self.found = wanted, found

    def __str__(self) -> str:
        if self.place and self.found is ABSENT:
            return f"'{self._at()}' is missing; it must be {self.wanted}"
        where = f"'{self._at()}' must be" if self.place else "it must be"
        return f"{where} {self.wanted}, not {shown(self.found)}"

    def _at(self) -> str:
        text = ""
        for key in self.place:
            text += f"[{key}]" if isinstance(key, int) else f".{_cut(str(key))}"
        return text.lstrip(".")


class _Absent:
    """A key that is not there."""


ABSENT = _Absent()


def check(schema: Schema, value: Any) -> Optional[str]:
    """What is wrong with a value, in words; None where nothing is."""
    try:
        schema(value)
    except Mismatch as mismatch:
        return str(mismatch)
    return None


def shown(value: Any) -> str:
    """A foreign value for a message: short, printable ASCII."""
    return _cut(ascii(value) if not isinstance(value, (list, dict)) else f"{type(value).__name__} {ascii(value)[:200]}")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "~"


def text(most: int = MOST_TEXT) -> Schema:
    """A string of at most so many characters that can be written as UTF-8."""

    def take(value: Any) -> None:
        if not isinstance(value, str) or len(value) > most:
            raise Mismatch(f"a text of at most {most} characters", value)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Mismatch("a text without half characters (surrogates)", value) from None

    return take


def matching(pattern: str, words: str) -> Schema:
    """A string that the whole pattern describes; words: what that is."""
    known = re.compile(pattern)

    def take(value: Any) -> None:
        if not isinstance(value, str) or known.fullmatch(value) is None:
            raise Mismatch(words, value)

    return take


def one_of(*values: str) -> Schema:
    def take(value: Any) -> None:
        if not isinstance(value, str) or value not in values:
            raise Mismatch(f"one of {', '.join(values)}", value)

    return take


def flag(value: Any) -> None:
    """true or false."""
    if not isinstance(value, bool):
        raise Mismatch("true or false", value)


def whole(least: int = 0, most: int = MOST_WHOLE) -> Schema:
    def take(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Mismatch("a whole number", value)
        if not least <= value <= most:
            raise Mismatch(f"a whole number from {least} to {most}", value)

    return take


def number(least: float = -MOST_NUMBER, most: float = MOST_NUMBER) -> Schema:
    """A finite number."""

    def take(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Mismatch("a number", value)
        if not least <= value <= most:  # NaN is in no range
            raise Mismatch(f"a number from {least:g} to {most:g}", value)

    return take


def seconds(least: float = 0.0) -> Schema:
    return number(least, MOST_SECONDS)


def maybe(schema: Schema) -> Schema:
    """null, or what the schema takes."""

    def take(value: Any) -> None:
        if value is not None:
            schema(value)

    return take


def items(schema: Schema, least: int = 0, most: int = MOST_ITEMS) -> Schema:
    """A list of so many, each as the schema says."""

    def take(value: Any) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Mismatch(f"a list of {least} to {most}", value)
        for index, item in enumerate(value):
            _inside(index, schema, item)

    return take


def table(key: Schema, value: Schema, least: int = 0, most: int = MOST_ITEMS) -> Schema:
    """An object whose keys are names."""

    def take(found: Any) -> None:
        if not isinstance(found, dict) or not least <= len(found) <= most:
            raise Mismatch(f"an object of {least} to {most} entries", found)
        for name, item in found.items():
            _inside(name, key, name)
            _inside(name, value, item)

    return take


def record(required: Dict[str, Schema], optional: Optional[Dict[str, Schema]] = None) -> Schema:
    """An object with these keys, and perhaps others."""
    known: Sequence[Tuple[str, Schema]] = list((optional or {}).items())

    def take(value: Any) -> None:
        if not isinstance(value, dict):
            raise Mismatch("an object", value)
        for name, schema in required.items():
            _inside(name, schema, value.get(name, ABSENT))
        for name, schema in known:
            if name in value:
                _inside(name, schema, value[name])

    return take


def _inside(key: Union[str, int], schema: Schema, value: Any) -> None:
    try:
        schema(value)
    except Mismatch as mismatch:
        mismatch.place.insert(0, key)
        raise
