"""On which line of a TOML text each key stands, which tomllib does not tell."""

from __future__ import annotations

import re
from collections.abc import Mapping


def line_numbers(text: str) -> dict[str, int]:
    """Dotted key -> line (from 1) of its first mention; a key within a text of several lines may fool it."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if header := re.match(r"\s*(\[\[?)\s*([\w.\-\"' ]+?)\s*\]", line):
            table = _plain(header[2])
            if header[1] == "[[":
                lines.setdefault(table, number)
                counts[table] = counts.get(table, -1) + 1
                table = f"{table}[{counts[table]}]"
            lines.setdefault(table, number)
        elif key := re.match(r"\s*([\w.\-\"' ]+?)\s*=", line):
            lines.setdefault(f"{table}.{_plain(key[1])}".lstrip("."), number)
    return lines


def line_of(key: str, lines: Mapping[str, int]) -> int | None:
    """The line of a key, or of the nearest table around it that has one."""
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines.get(key)


def _plain(dotted: str) -> str:
    return ".".join(part.strip(" \"'") for part in dotted.split("."))
