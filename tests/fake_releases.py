"""Releases of the agent's fake runtime, activated in this process: what a board does, without what a runtime costs."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from boards import fake_model, npz
from edgeopt_agent import jobs, releases, store
from edgeopt_agent.root import prepare


@dataclass(frozen=True)
class Release:
    """text: the manifest; blobs: bytes by name."""

    text: str
    blobs: dict[str, bytes]

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.blobs.items()}


def release(number: int, **changes: Any) -> Release:
    """One whose every blob is its own; a dict among `changes` changes keys of the manifest's dict."""
    blobs = {
        "m.json": fake_model(version=number),
        "health.npz": npz(np.ones((2, 4), np.float32), pad=np.full(8, number)),
    }
    limits = dict.fromkeys(("metric", "least_correct", "greatest_median_latency_s", "greatest_output_error"))
    manifest: dict[str, Any] = {
        "format": 1,
        "name": f"fake{number}",
        "created_by": "tests",
        "profile": "generic-x86-64",
        "root": "/nowhere",
        "python": "python3",
        "verdict": "pass",
        "budgets": {},
        "artifact": {"file": "m.json", "runtime": "fake", "threads": 1, "preprocess": [], "options": {}},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for name, data in blobs.items()
        },
        "health": {"file": "health.npz", "of": 2, **limits},
        "policy": {},
        "evaluation": None,
        "lineage": {"version": number},
    }
    for key, value in changes.items():
        manifest[key] = {**manifest[key], **value} if isinstance(value, dict) else value
    return Release(json.dumps(manifest), blobs)


def activate(root: Path, made: Release, folder: str | None = None) -> dict[str, Any]:
    """Send and activate, as a flash does; what the job answers. Raises RemoteError."""
    prepare(str(root))
    for data in made.blobs.values():
        sha256 = hashlib.sha256(data).hexdigest()
        if not store.stat(str(root), sha256)["whole"]:
            store.put(str(root), sha256, len(data), 0, data)
    with jobs.BoardLock(str(root)) as held:
        assert held
        return releases.activate(context(root, folder), {"release": made.id, "manifest": made.text})


def context(root: Path, folder: str | None = None) -> jobs.Context:
    """A job of its own."""
    place = root / "jobs" / (folder or f"job-{time.monotonic_ns()}")
    place.mkdir()
    return jobs.Context(str(root), str(place))


def current(root: Path) -> tuple[str | None, str | None]:
    """(current release, the one a rollback returns to), every byte of both hashed here and not by the agent."""
    link = root / "current"
    record = json.loads((link / "record.json").read_text())
    assert os.readlink(link) == f"activations/{record['number']}"
    assert os.path.realpath(link / "release") == os.path.realpath(root / "releases" / record["release"])
    before = record["previous_activation"]
    previous = json.loads((root / f"activations/{before}/record.json").read_text())["release"] if before else None
    for found in filter(None, (record["release"], previous)):
        folder = root / "releases" / found
        text = (folder / "manifest.json").read_bytes()
        assert hashlib.sha256(text).hexdigest() == found
        for name, entry in json.loads(text)["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    return record["release"], previous
