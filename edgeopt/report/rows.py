"""A table that no screen is too narrow for: figures are never cut or broken, and what does not fit comes row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

UNLIMITED = 10_000
INDENT, BETWEEN = "    ", "   "


class Rows(Table):
    """rich's table whose columns get what they need first: a right-justified one its longest line, another its longest
    word; what is left goes to the first ones that can use it. Where the screen has not as much, a row becomes lines of
    "title cell   title cell" under its first."""

    def __init__(self, title: str | None = None) -> None:
        super().__init__(box=box.SIMPLE_HEAD, pad_edge=False, title=title)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns:
            column.width = None
        wide = options.update(width=UNLIMITED, max_width=UNLIMITED)
        ranges = [_range(console, wide, column) for column in self.columns]
        between = Measurement.get(console, wide, self).maximum - sum(most for _, most in ranges)
        spare = options.max_width - between - sum(least for least, _ in ranges)
        if spare < 0:
            yield from self._row_by_row(console, options)
            return
        for column, (least, most) in zip(self.columns, ranges, strict=True):
            more = min(spare, most - least)
            column.width, spare = least + more, spare - more
        yield from super().__rich_console__(console, options)

    def _row_by_row(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        titles = [_text(column.header) for column in self.columns]
        cells = [list(column.cells) for column in self.columns]
        if self.title:
            yield _text(self.title)
        for first, *rest in zip(*cells, strict=True):
            head = Text.assemble((f"{titles[0].plain} ".lstrip(), "dim"), Text.assemble(_text(first), style="bold"))
            yield from _lines(console, options, head, "")
            told = Text()
            for title, cell in zip(titles[1:], rest, strict=True):
                if _text(cell).plain.strip():
                    own = Text.assemble((f"{title.plain} ".lstrip(), "dim"), _text(cell))
                    ends = told.cell_len + len(BETWEEN) + own.cell_len > options.max_width - len(INDENT)
                    if told and ends:
                        yield from _lines(console, options, told, INDENT)
                        told = Text()
                    told = Text.assemble(told, BETWEEN if told else "", own)
            yield from _lines(console, options, told, INDENT)
        yield _text(self.caption or "")


def _lines(console: Console, options: ConsoleOptions, text: Text, indent: str) -> Iterator[Any]:
    """A text in lines that all begin with `indent`."""
    for line in console.render_lines(text, options.update_width(max(1, options.max_width - len(indent))), pad=False):
        yield from (Segment(indent), *line, Segment.line())


def _range(console: Console, wide: ConsoleOptions, column: Column) -> tuple[int, int]:
    """The least and the most characters that its title and its cells can use."""
    title = Measurement.get(console, wide, _text(column.header))
    own = [Measurement.get(console, wide, _text(cell)) for cell in column.cells]
    least = [one.maximum if column.justify == "right" or column.no_wrap else one.minimum for one in own]
    return max(title.minimum, *least, 0), max(title.maximum, *(one.maximum for one in own), 0)


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))
