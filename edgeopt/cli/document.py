"""--json: one document on stdout, whatever the user's code and the frameworks print meanwhile."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

import click

from .. import visible
from . import terminal

_kept: TextIO | None = None


def keep_stdout() -> None:
    """From here on file descriptor 1 is stderr, for C++ too; only `print_json` writes to what stdout was."""
    global _kept
    sys.stdout.flush()
    _kept = terminal.open_words(os.dup(1))
    os.dup2(2, 1)


def print_json(document: Any) -> None:
    click.echo(visible.json_text(json.dumps(document, indent=2, ensure_ascii=False)), file=_kept)
