"""The jobs that a command asked a board for, in a file, so that the same command takes them up where they are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import disk
from ..cache import check_json, key_of
from ..errors import ConfigError

SCHEMA_VERSION = 1


class Journal:
    """jobs.json: {"schema", "board", which board and folder it is, "jobs": [{"job", "state", "request_sha256",
    "request"}]} in the order in which they were asked for. state: "asked" until the board said that it began.

    alone: why a job cannot be taken up again, in words; empty: it can. Raises ConfigError, IntegrityError.
    """

    def __init__(self, path: Path, alone: str = "") -> None:
        self._path = path
        self.alone = alone
        self._next = 0
        self._kept: dict[str, Any] = {"schema": SCHEMA_VERSION, "board": None, "jobs": []}
        if path.exists():
            self._kept = check_json(path)
            if not isinstance(self._kept, dict) or self._kept.get("schema") != SCHEMA_VERSION:
                raise ConfigError(f"{path}: not a list of jobs with schema {SCHEMA_VERSION}; name a new folder")

    def require_board(self, board: Mapping[str, Any]) -> None:
        """Raises ConfigError unless it is the board of the jobs that are there; the first one is noted."""
        before = self._kept["board"]
        if before is None:
            self._kept["board"] = dict(board)
            return
        for place, there, now in differences("board", before, dict(board)):
            raise ConfigError(
                f"{self._path}: its jobs run on another board: {place} is {there!r} there, {now!r} here; name that "
                "board, or a new folder"
            )

    def take(self, request: Mapping[str, Any]) -> tuple[str, str]:
        """(job, state) of the next job that this command needs; state "new" where it was never asked for.

        Raises ConfigError where another request stands at its place.
        """
        jobs = self._kept["jobs"]
        place, self._next = self._next, self._next + 1
        wanted = json.loads(json.dumps(request))
        if place < len(jobs):
            entry = jobs[place]
            if entry["request_sha256"] != key_of(wanted):
                where, there, now = next(differences(f"job {place + 1}", entry["request"], wanted))
                raise ConfigError(
                    f"{self._path}: {where} is {there!r} there and {now!r} now, so this is not the command that the "
                    "folder was begun with; give what was given then, or a new folder"
                )
            return entry["job"], entry["state"]
        job = new_id(request)
        jobs.append({"job": job, "state": "asked", "request_sha256": key_of(wanted), "request": wanted})
        self._save()
        return job, "new"

    def note(self, job: str, state: str) -> None:
        """ "started" or "ended"."""
        for entry in self._kept["jobs"]:
            if entry["job"] == job and entry["state"] != state:
                entry["state"] = state
                self._save()

    def forget(self, job: str) -> None:
        """It has no result, and what followed it was made with it: the next command begins there anew."""
        names = [entry["job"] for entry in self._kept["jobs"]]
        if job in names:
            del self._kept["jobs"][names.index(job) :]
            self._next = min(self._next, names.index(job))
            self._save()

    def running(self) -> list[str]:
        """Jobs of which nobody here saw the end."""
        return [entry["job"] for entry in self._kept["jobs"] if entry["state"] != "ended"]

    def started(self) -> list[str]:
        return [entry["job"] for entry in self._kept["jobs"] if entry["state"] == "started"]

    def has_next(self) -> bool:
        """Whether the command had asked for another job after those that were taken."""
        return self._next < len(self._kept["jobs"])

    def _save(self) -> None:
        disk.write(self._path, json.dumps(self._kept, indent=1, allow_nan=False) + "\n")


def new_id(request: Mapping[str, Any]) -> str:
    """Of a job that nobody asked for before."""
    return f"{request['kind']}-{uuid.uuid4().hex[:16]}"


def differences(where: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """(place, before, now) of all that differs and is no dictionary or list of the same length."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            yield from differences(f"{where}, {key}", before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(f"{where}, {index + 1}", one, other)
    elif before != now:
        yield where, before, now
