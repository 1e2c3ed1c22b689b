"""rich's console for texts of others: no markup is read in them, and nothing in them acts on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .. import visible


class Screen(Console):
    """Every text passes `visible` before it is drawn; one that is printed by itself stays in its line."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **how: Any) -> None:
        super().print(*map(_in_one_line, objects), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, str):
            renderable = Text(renderable)
        if isinstance(renderable, Text):
            renderable = _shown(renderable, visible.lines)
        return super().render(renderable, options)


def _in_one_line(printed: Any) -> Any:
    """Empty lines before it are our own."""
    if isinstance(printed, str):
        printed = Text(printed)
    if not isinstance(printed, Text):
        return printed
    blank = len(printed.plain) - len(printed.plain.lstrip("\n"))
    return _shown(printed, lambda text: text[:blank] + visible.line(text[blank:]))


def _shown(text: Text, how: Any) -> Text:
    """A copy with other signs in the same places, so that its styles stay where they are."""
    plain = how(text.plain)
    if plain == text.plain:
        return text
    found = text.copy()
    found.plain = plain
    return found
