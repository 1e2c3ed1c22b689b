"""What people see: the page, the terminal's screens, and the schema of run.json."""

from __future__ import annotations

from importlib import resources

SCHEMA_VERSION = 1  # of run.json: one more where a key goes, or means something else; new keys may come without it


def schema_text() -> str:
    """The JSON Schema of run.json."""
    return (resources.files(__name__) / "run.schema.json").read_text(encoding="utf-8")
