"""What was measured, in words that page and terminal share: the board by its own facts, and what it stands in for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt import provenance

from . import units

LONG = 400


def name(board: Mapping[str, Any]) -> str:
    """The board's own name, or its processor's; never the profile's."""
    return units.text(provenance.named(board), 80) if board else "a board that was not recorded"


def described(board: Mapping[str, Any]) -> str:
    """All that it is: model, processor, cores, memory, architecture, system."""
    return units.text(provenance.described(board), LONG) if board else "a board that was not recorded"


def mark(board: Mapping[str, Any]) -> str | None:
    """ "on a stand-in (…) for …", beside every figure that was measured on another board than the profile's."""
    said = provenance.mark(board)
    return None if said is None else units.text(said, LONG)


def marked(table: Table, board: Mapping[str, Any]) -> Table:
    """The table, with the mark under it."""
    if said := mark(board):
        table.caption, table.caption_justify = Text(said, "yellow"), "left"
    return table


def head(document: Mapping[str, Any], console: Console) -> None:
    """What a screen of figures begins with: the board, its address and the mark."""
    board = document["board"]
    console.print(Text(f"{described(board)}, at {units.text(document['device'])}", "bold"))
    if said := mark(board):
        console.print(Text(f"marked: {said}; {different(board)}", "yellow"))


def different(board: Mapping[str, Any]) -> str:
    """In what a stand-in is not the profile's board."""
    own = board.get("stand_in")
    told = own.get("differences") if isinstance(own, Mapping) else None
    listed = [one for one in told if isinstance(one, Mapping)] if isinstance(told, list) else []
    lines = [f"{one.get('what')} {one.get('board')} instead of {one.get('profile')}" for one in listed]
    return units.text("; ".join(lines) or "in what was not recorded", LONG)


def pairs(board: Mapping[str, Any]) -> dict[str, Any]:
    """The board's facts for a list of pairs: what it stands in for in words."""
    own = {key: value for key, value in board.items() if key != "stand_in"}
    said = mark(board)
    return {"measured": said, "it differs in": different(board), **own} if said else own
