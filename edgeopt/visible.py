"""Text from elsewhere on its way to a screen: boards, bundles, models, run folders, file names. One function for all of
it, so that nothing in them moves a cursor, changes a colour or a title, writes to a clipboard or turns text around."""

from __future__ import annotations

INSTEAD = "\N{REPLACEMENT CHARACTER}"


def line(text: object) -> str:
    """In one line. What is not printable (control characters with ESC, C1, tabs and ends of lines; what sets direction
    or has no width; halves of characters) is replaced, each by one sign that shows that something stood there."""
    found = str(text)
    return found if found.isprintable() else "".join(sign if sign.isprintable() else INSTEAD for sign in found)


def lines(text: object) -> str:
    """In as many as it has."""
    return "\n".join(map(line, str(text).split("\n")))


def message(text: object) -> str:
    """In as many as it has, the later ones indented: none of them can be taken for a message of its own."""
    first, *others = lines(text).split("\n")
    return "\n".join([first, *(other if other.startswith("  ") else f"  {other}" for other in others)])


def json_text(text: str) -> str:
    """A JSON document with what is not printable in it as \\u escapes: the same values, and nothing for a screen."""
    kept = "\n"
    if all(sign.isprintable() or sign in kept for sign in text):
        return text
    return "".join(sign if sign.isprintable() or sign in kept else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place] << 8 | units[place + 1]:04x}" for place in range(0, len(units), 2))
