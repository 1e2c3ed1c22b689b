"""What comes from elsewhere reaches a screen, a page or a document as text, and does nothing there."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from mutations import ESCAPES

from edgeopt import visible
from edgeopt.cli import display, document
from edgeopt.report import html, units

STRANGE = {
    "title": "\x1b]0;PWNED\x07",
    "colour": "\x1b[31mred\x1b[0m",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "link": "\x1b]8;;http://example.org\x1b\\here\x1b]8;;\x1b\\",
    "C1": "\x9b31m\x9d0;x\x9c",
    "direction": "abc\u202etxt.exe\u2066\u2069\u200f",
    "no width": "a\u200bb\ufeffc\u2060",
    "lines": "one\ntwo\r\nthree\u2028four\x85five\x0b\x0c",
    "other controls": "\x00\x08\x7f\t",
    "half": "\ud83d",
    "all": ESCAPES,
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_foreign_text_is_one_line_of_printable_signs(text: str) -> None:
    assert visible.line(text).isprintable()
    assert len(visible.line(text)) == len(text), "each is shown to have been there"
    assert units.text(text, 10_000) == visible.line(text)
    assert visible.line("µs, 5 °C − ▸ …") == "µs, 5 °C − ▸ …"


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_a_line_of_an_error_cannot_be_taken_for_another_error(text: str) -> None:
    told = visible.message(f"edgeopt: {text}\nedgeopt: all is well")
    assert all(line.isprintable() for line in told.split("\n"))
    assert [line for line in told.split("\n") if line.startswith("edgeopt")] == told.split("\n")[:1]


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_json_holds_the_same_text_and_shows_nothing_else(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    document.print_json({"found": {text: [text, "ü – 日本"]}})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"found": {text: [text, "ü – 日本"]}}
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
    assert "日本" in shown


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_screens_draw_no_foreign_escapes_and_read_no_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    strange = f"{text}[bold]bold[/bold] :smile: [red"
    table = Table()
    table.add_column(strange)
    table.add_row(Text(strange))
    table.add_row(strange)
    screen = display.screen()
    screen.print(table)
    screen.print(strange)
    screen.print(Text(strange, "bold"))
    display.echo(strange)
    with display.Display("subject") as shown:
        shown.event({"event": "waiting", "what": strange})
        shown.event({"event": "stage", "what": strange})
        shown.event({"event": "progress", "what": strange, "done": 1, "of": 2})
    told = capsys.readouterr()
    for stream in (told.out, told.err):
        assert all(sign.isprintable() or sign == "\n" for sign in stream)
    assert told.err.count("[bold]bold[/bold] :smile: [red") == 2
    assert display.screen().is_terminal is False


def test_a_terminal_gets_our_own_colours_and_no_foreign_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.text import Text

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = display.screen()
    assert screen.is_terminal
    screen.print(Text("\x1b[31mname\x1b[0m", "bold"))
    with display.Display("subject") as shown:
        shown.event({"event": "progress", "what": "\x1b]0;x\x07[red]job[/red]", "done": 1, "of": 2})
    told = capsys.readouterr()
    assert "\x1b[1m" in told.out
    for sequence in ("\x1b[31m", "\x1b]0;", "\x07"):
        assert sequence not in told.out + told.err
    assert "[red]job[/re" in told.err


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_the_page_shows_foreign_text_as_text(text: str, tmp_path: Any) -> None:
    import report_data

    run = copy.deepcopy(report_data.run())
    evil = f"{text}<script>alert(1)</script>"
    run["sentence"] = run["stop"] = run["trials"][0]["reason"] = run["board"]["model"] = evil
    run["notes"] = [evil]
    run["manifest"] = {"name": evil}
    page = html.render(run, tmp_path)
    assert "<script>alert(1)" not in page
    body = page.partition("<body")[2].partition("<script")[0]
    assert all(sign.isprintable() or sign == "\n" for sign in body)
    page.encode()
