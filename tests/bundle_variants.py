"""Bundles made from a real one by changing one thing, as another model, a worse model or another version would."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import bundle as bundles


def variant(
    source: Path,
    path: Path,
    files: Mapping[str, bytes] | None = None,
    evaluation_shard: bytes | None = None,
    **changes: Any,
) -> bundles.Bundle:
    """`source` with some of its files' bytes replaced, one evaluation shard instead of its own, and manifest keys
    changed; a dict changes the keys in it."""
    opened = bundles.read(source)
    manifest = opened.manifest.model_dump(mode="json")
    own = opened.manifest.evaluation
    others = [*own.shards, *([own.golden] if own.golden else [])] if own else []
    blobs = {entry.sha256: opened.blob(entry) for entry in [*opened.manifest.files.values(), *others]}
    for name, data in (files or {}).items():
        manifest["files"][name] = add(blobs, data)
    if evaluation_shard is not None:
        manifest["evaluation"]["shards"] = [add(blobs, evaluation_shard)]
    for key, value in changes.items():
        manifest[key] = {**manifest[key], **value} if isinstance(value, dict) else value
    return bundles.write(path, bundles.Manifest.model_validate(manifest), blobs)


def add(blobs: dict[str, bytes], data: bytes) -> dict[str, Any]:
    """The entry of a new blob."""
    sha256 = hashlib.sha256(data).hexdigest()
    blobs[sha256] = data
    return {"sha256": sha256, "size_bytes": len(data)}


def changed_arrays(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """An .npz after `change` of its arrays."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def next_version(source: Path, path: Path, number: int) -> bundles.Bundle:
    """A release whose every blob is its own: another model file and another health shard, that do the same."""
    opened = bundles.read(source)
    model = opened.manifest.artifact.file
    shard = opened.blob(opened.manifest.files[opened.manifest.health.file])
    padding = np.random.default_rng(number).integers(0, 256, 400_000, dtype=np.uint8)

    def pad(arrays: dict[str, Any]) -> None:
        arrays["padding"] = padding

    files = {
        model: opened.blob(opened.manifest.files[model]) + f"version {number}".encode(),
        opened.manifest.health.file: changed_arrays(shard, pad),
    }
    return variant(source, path, files, lineage={"version": number})
