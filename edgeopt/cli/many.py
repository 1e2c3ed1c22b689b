"""One command on several boards: one after the other, one line and one verdict each, the worst exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import EdgeoptError, IntegrityError
from .common import Boards, Where, print_json
from .display import echo, echo_message, screen

# From what needs somebody most to what needs nobody: damage or a wrong key, a board that failed, one that did not
# answer, what the host lacks, a wrong option, and then verdicts: fail before undecided before pass.
WORST_FIRST = (70, IntegrityError.exit_code, 4, 3, 6, 2, 10, 11, 0)


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command found on one board. `verdict` and `details` are its line in the table of several boards."""

    document: dict[str, Any]
    verdict: str
    details: str
    code: int = 0


def on_each(
    boards: Boards, work: Callable[[Where], Done], show: Callable[[dict[str, Any]], None], as_json: bool
) -> int:
    """`work` on every board; with one its errors are raised, with several they are that board's verdict.

    The exit code: the board's own, or of several the first that WORST_FIRST has.
    """
    if not boards.several:
        done = work(boards.chosen[0])
        print_json(done.document) if as_json else show(done.document)
        return done.code
    rows: list[Done] = []
    try:
        for where in boards.chosen:
            echo(f"{where.device} ({len(rows) + 1} of {len(boards.chosen)})", err=True)
            rows.append(_one(where, work))
    finally:  # what was done before an interrupt is told as well
        if rows:
            _tell(boards.chosen, rows, as_json)
    return worst([row.code for row in rows])


def worst(codes: Sequence[int]) -> int:
    return min(codes, key=WORST_FIRST.index)


def _one(where: Where, work: Callable[[Where], Done]) -> Done:
    try:
        done = work(where)
    except EdgeoptError as error:
        echo_message(f"edgeopt: {error}")
        kind = type(error).__name__
        document = {"error": {"kind": kind, "message": str(error)}, "board": {"name": where.name}}
        return Done(document, _words(error), _shortened(str(error).removeprefix(f"{where.text}: ")), error.exit_code)
    return done


def _words(error: EdgeoptError) -> str:
    return {3: "unreachable", 4: "failed", 5: "refused", 2: "wrong option", 6: "cannot"}.get(error.exit_code, "failed")


def _shortened(text: str, width: int = 70) -> str:
    line = text.splitlines()[0]
    return line if len(line) <= width else line[: width - 1] + "…"


def _tell(boards: Sequence[Where], rows: Sequence[Done], as_json: bool) -> None:
    if as_json:
        entries = [
            {"device": where.device, **row.document, "outcome": row.verdict, "exit_code": row.code}
            for where, row in zip(boards, rows, strict=False)
        ]
        print_json({"devices": entries, "exit_code": worst([row.code for row in rows])})
        return
    from ..report import board
    from ..report.rows import Rows

    table = Rows()
    for title in ("board", "serial", "verdict", ""):
        table.add_column(title)
    for where, row in zip(boards, rows, strict=False):
        serial = (row.document.get("board") or {}).get("serial")
        said = board.mark(row.document.get("board") or {})
        details = f"{row.details}; marked: measured {said}" if said else row.details
        table.add_row(where.device, serial or "not told", row.verdict, details)
    screen().print(table)
