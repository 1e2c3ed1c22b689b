"""The bundle: one file with a manifest and blobs by hash. What is in it is read by hash, never extracted by name.

A zip, stored, with fixed timestamps: `manifest.json` and `blobs/<sha256>`. The release's id is the SHA-256 of the
manifest, so it names every byte that the board will run. `files` go to the board at flash; the evaluation pack's
shards go there only when `validate` asks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from edgeopt_agent import preprocess, wire
from pydantic import Field, ValidationError

from .artifact import Artifact
from .config import Section
from .errors import ConfigError, IntegrityError

MANIFEST_LIMIT_BYTES = 4 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)
ENCRYPTED = 1  # zip's flag
MODEL_FILES = (".tflite", ".onnx", ".xml")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,120}$")]
Size = Annotated[int, Field(ge=0)]


class FileEntry(Section):
    sha256: Sha256
    size_bytes: Size


class ArtifactEntry(Section):
    """preprocess: a list of steps per input (edgeopt_agent.preprocess); options: the runtime's own settings.

    frequency_max_hz: the cap of the CPUs' clock with which it met its budgets; nobody sets it but the board's owner.
    """

    file: FileName
    runtime: FileName
    threads: Annotated[int, Field(ge=1)]
    preprocess: list[list[dict[str, Any]]]
    options: dict[str, str] = Field(default_factory=dict)
    frequency_max_hz: float | None = None


class Health(Section):
    """Limits that the board applies alone, on the shard in `file`; None: not limited."""

    file: FileName
    metric: str | None
    of: Size
    least_correct: Size | None
    greatest_median_latency_s: float | None
    greatest_output_error: float | None


class Policy(Section):
    """confirm_within_s: the application must run `edgeopt-agent confirm` in time, or the old release returns."""

    confirm_within_s: float | None = None


class Evaluation(Section):
    """The final split: shards of inputs, labels, groups and the source model's outputs (`source0`, …).

    golden: samples as files and as the arrays that they must become (decode.golden); None where they were arrays.
    confidence_threshold: below it an output goes to a person; None where the task has none.
    """

    shards: list[FileEntry]
    metric: str | None
    n: Size
    floor_drop: float
    classes: list[str]
    golden: FileEntry | None = None
    confidence_threshold: float | None = None


class StandIn(Section):
    """The profile whose board was not there, and in what the one that was measured differs from it."""

    profile: str
    name: str
    differences: list[dict[str, str]]


class MeasuredOn(Section):
    """What the board of its figures said of itself; stand_in: None where it was the profile's."""

    model: str | None = None
    machine: str | None = None
    userland: str | None = None
    cpu_model: str | None = None
    cores: int | None = None
    cores_allowed: int | None = None
    memory_bytes: int | None = None
    system: str | None = None
    stand_in: StandIn | None = None


class Manifest(Section):
    """verdict: of the accuracy on final samples; "not judged": nobody compared it with a floor (`edgeopt bundle`).

    measured_on: None where nothing was measured, or by an edgeopt that did not keep it.
    """

    format: Literal[1]
    name: FileName
    created_by: str
    profile: str
    root: str
    python: str
    verdict: Literal["pass", "undecided", "not judged"]
    budgets: dict[str, float]
    artifact: ArtifactEntry
    files: dict[FileName, FileEntry]
    health: Health
    policy: Policy
    evaluation: Evaluation | None
    measured_on: MeasuredOn | None = None
    lineage: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle: `text` is the manifest as it is hashed; `release` its SHA-256."""

    path: Path
    text: str
    manifest: Manifest
    release: str

    def blob(self, entry: FileEntry) -> bytes:
        """The bytes of one entry, checked. Raises IntegrityError."""
        data = _member(self.path, f"blobs/{entry.sha256}", entry.size_bytes)
        if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise IntegrityError(f"{self.path}: blob {entry.sha256[:12]} is damaged; get the bundle again")
        return data

    def artifact(self, folder: Path, name: str | None = None, threads: int | None = None) -> Artifact:
        """The artifact, its files written into `folder` (an empty one). Raises IntegrityError."""
        own = self.manifest.artifact
        names = [own.file, *(name for name in self.manifest.files if name not in (own.file, self.manifest.health.file))]
        for file in names:
            (folder / file).write_bytes(self.blob(self.manifest.files[file]))
        paths = [folder / file for file in names]
        count = threads or own.threads
        chosen = name or self.manifest.name
        return Artifact.of_files(paths, own.runtime, count, own.preprocess, dict(own.options), chosen)

    def check(self) -> None:
        """Read and hash every byte. Raises IntegrityError."""
        evaluation = self.manifest.evaluation
        own = [*evaluation.shards, *([evaluation.golden] if evaluation.golden else [])] if evaluation else []
        for entry in [*self.manifest.files.values(), *own]:
            self.blob(entry)


def write(path: Path, manifest: Manifest, blobs: Mapping[str, bytes]) -> Bundle:
    """Write a bundle whole or not at all; `blobs`: bytes by SHA-256. The same content gives the same file."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, data in (("manifest.json", text.encode("utf-8")), *_named(blobs)):
                info = zipfile.ZipInfo(name, EPOCH)
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return read(path)


def read(path: Path) -> Bundle:
    """Open a bundle and check its manifest. Raises ConfigError (no such file, a model's file), IntegrityError."""
    data = _member(path, "manifest.json", MANIFEST_LIMIT_BYTES)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(
            f"{path}: manifest.json, key '{key}': {first['msg']}, found {first['input']!r:.80}; this bundle was made "
            "by another version of edgeopt, or damaged"
        ) from error
    _check_consistent(path, manifest)
    return Bundle(path, data.decode("utf-8"), manifest, hashlib.sha256(data).hexdigest())


def _member(path: Path, name: str, limit_bytes: int) -> bytes:
    """One file of the zip, of at most `limit_bytes`. Raises IntegrityError; ConfigError for none, or a model."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED:
                raise IntegrityError(f"{path}: {name} is packed or encrypted; bundles are neither: get it again")
            if max(info.file_size, info.compress_size) > limit_bytes:
                raise IntegrityError(
                    f"{path}: {name} has {info.file_size} bytes, at most {limit_bytes} are allowed; get it again"
                )
            return archive.read(info)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such bundle; `edgeopt optimize` writes one into runs/<name>/, and `edgeopt bundle` makes one "
            "of a model file"
        ) from error
    except KeyError as error:
        raise IntegrityError(f"{path} is a zip without {name}, so not a whole bundle; get it again") from error
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        if path.suffix.lower() in MODEL_FILES:
            raise ConfigError(
                f"{path} is a model's file, and a bundle is needed; `edgeopt bundle {path} --profile NAME --out "
                f"{path.with_suffix('.edgeopt').name}` makes one of it"
            ) from error
        raise IntegrityError(
            f"{path} is not a whole bundle ({error}): another kind of file, or cut short; get it again"
        ) from error


def _check_consistent(path: Path, manifest: Manifest) -> None:
    for key, name in (("artifact.file", manifest.artifact.file), ("health.file", manifest.health.file)):
        if name not in manifest.files:
            raise IntegrityError(
                f"{path}: manifest.json, {key} = '{name}' is not among files: {sorted(manifest.files)}"
            )
    if "manifest.json" in manifest.files:
        raise IntegrityError(f"{path}: manifest.json lists itself among files")
    for steps in manifest.artifact.preprocess:
        if wrong := preprocess.problems(steps):
            raise IntegrityError(f"{path}: manifest.json, artifact.preprocess: {'; '.join(wrong)}")
    if not wire.is_plain_name(manifest.artifact.runtime):
        raise IntegrityError(f"{path}: manifest.json, artifact.runtime = {manifest.artifact.runtime!r} is not a name")


def _named(blobs: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    return [(f"blobs/{sha256}", blobs[sha256]) for sha256 in sorted(blobs)]
