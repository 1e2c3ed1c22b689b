"""A folder that one command keeps: its raw samples, its jobs on the board, and its document.

kept.json       {"schema", "edgeopt", "command", "asked": what the command was given, "about": what its figures need
                beside the samples, "files": the SHA-256 of each file of samples}; the last two once it was measured
jobs.json       the jobs on the board (device.journal), so that the same command takes them up
samples/        the raw samples
document.json   what --json prints (documents); it is there when the command has ended
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from . import disk, documents, report
from .cache import check_json, sha256_file
from .device.journal import Journal, differences
from .errors import ConfigError, IntegrityError
from .report import conform

SCHEMA_VERSION = 1
RECORD = "kept.json"


class Kept:
    """Where a command measures into. journal: None where nothing is kept, and `folder` is then a temporary one."""

    def __init__(self, folder: Path, command: str, asked: Mapping[str, Any], journal: Journal | None) -> None:
        self._folder, self._command, self._asked = folder, command, dict(asked)
        self.journal = journal
        self.samples = folder / "samples"
        with disk.writing(self.samples):
            self.samples.mkdir(exist_ok=True)
        if self.samples.is_symlink():
            raise ConfigError(f"{self.samples}: it is a link, which is not followed; remove it, or name a new folder")
        disk.require_room(self.samples)

    def document(self, about: dict[str, Any]) -> dict[str, Any]:
        """The command's document, computed of the samples that are there; kept where that is wanted."""
        found = documents.headed(self._command, documents.OF[self._command](about, self.samples))
        if self.journal is not None:
            files = {path.name: sha256_file(path) for path in sorted(self.samples.iterdir())}
            self._record(about=about, files=files)
            self.write(found)
        return found

    def write(self, document: Mapping[str, Any]) -> None:
        """The document as it is printed. Only where it is kept."""
        if self.journal is not None:
            disk.write(self._folder / "document.json", json.dumps(document, indent=1) + "\n")

    def begin(self) -> None:
        self._record(about=None, files=None)

    def _record(self, **measured: Any) -> None:
        head = {"schema": SCHEMA_VERSION, "edgeopt": metadata.version("edgeopt"), "command": self._command}
        disk.write(self._folder / RECORD, json.dumps({**head, "asked": self._asked, **measured}, indent=1) + "\n")


@contextlib.contextmanager
def opened(folder: Path | None, command: str, asked: Mapping[str, Any], alone: str = "") -> Iterator[Kept]:
    """`folder` for a command that begins, or that goes on where it was interrupted; None: nothing is kept.

    alone: as of Journal. Raises ConfigError where something else is there, another command, or one that has ended.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=f"edgeopt-{command}-") as text:
            yield Kept(Path(text), command, asked, None)
        return
    asked = json.loads(json.dumps(asked))
    _require_own(folder, command, asked)
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        found = Kept(folder, command, asked, Journal(folder / "jobs.json", alone))
        if not (folder / RECORD).exists():
            found.begin()
        yield found


def is_kept(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(kept.json, document.json) of a command that has ended. Raises ConfigError, IntegrityError."""
    record = check_json(folder / RECORD)
    if (
        not isinstance(record, dict)
        or record.get("schema") != SCHEMA_VERSION
        or record.get("command") not in documents.OF
    ):
        raise ConfigError(
            f"{folder / RECORD}: not schema {SCHEMA_VERSION} of {', '.join(documents.OF)}; show it with the edgeopt "
            "that wrote it"
        )
    if not (folder / "document.json").is_file():
        raise ConfigError(f"{folder}: its {record['command']} has not ended; the same command again goes on with it")
    document: dict[str, Any] = check_json(folder / "document.json")
    found = document.get("schema", documents.SCHEMA_VERSION) if isinstance(document, dict) else None
    if found != documents.SCHEMA_VERSION:
        raise ConfigError(
            f"{folder / 'document.json'}: found schema {found!r:.60}; this edgeopt reads schema "
            f"{documents.SCHEMA_VERSION}; show it with the edgeopt that wrote it"
        )
    if wrong := conform.first(document, report.schema(record["command"]), "document.json", whole=True):
        raise IntegrityError(f"{folder} is not as edgeopt writes it: {wrong}; measure again into a new folder")
    about, files = record.get("about"), record.get("files")
    if not isinstance(about, dict | None) or not isinstance(files, dict | None):
        raise IntegrityError(f"{folder / RECORD}: 'about' and 'files' must be objects; measure again into a new folder")
    return record, document


def _require_own(folder: Path, command: str, asked: Mapping[str, Any]) -> None:
    if not folder.exists() or (folder.is_dir() and set(os.listdir(folder)) <= {"lock"}):
        return
    if not folder.is_dir() or not is_kept(folder):
        raise ConfigError(f"--keep {folder}: something else is there; name a new folder")
    record = check_json(folder / RECORD)
    if (folder / "document.json").exists():
        raise ConfigError(
            f"--keep {folder}: a {record.get('command')} that has ended is there; `edgeopt report {folder}` shows it; "
            "name a new folder"
        )
    before = {"command": record.get("command"), **(record.get("asked") or {})}
    for where, there, now in differences("it", before, {"command": command, **asked}):
        raise ConfigError(
            f"--keep {folder}: {where.removeprefix('it, ')} was {there!r} when it was begun and is {now!r} now; give "
            "what was given then, or a new folder"
        )


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    def held() -> None:
        raise ConfigError(f"--keep {folder}: another edgeopt works with it now; name a new folder")

    with disk.locked(folder / "lock", held):
        yield
