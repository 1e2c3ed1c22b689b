"""The bundle: one file with a manifest and blobs by hash. What is in it is read by hash, never extracted by name.

A zip, stored, with fixed timestamps: `manifest.json` and `blobs/<sha256>`. The release's id is the SHA-256 of the
manifest, so it names every byte that the board will run. `files` go to the board at flash; the evaluation pack's
shards go there only when `validate` asks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from edgeopt_agent import preprocess, requests, wire
from pydantic import Field, ValidationError

from . import disk
from . import profile as profiles
from .artifact import Artifact
from .config import Section
from .errors import ConfigError, IntegrityError

MANIFEST_LIMIT_BYTES = 4 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)
ENCRYPTED = 1  # zip's flag
MOST_NUMBER = 1e15
MODEL_FILES = (".tflite", ".onnx", ".xml")
LIBRARIES = {("tflite", "delegate")}  # options of a runtime that name a library of the board
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:+-]*")  # what the value of any other option may be
MOST_NAMES = 4096  # of files, and of shards
MOST_EXPANSION = 2.0  # times the bundle's own size, when every name has its own copy

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,120}$")]
Size = Annotated[int, Field(ge=0, le=requests.MOST_SIZE)]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,4096}$")]  # no control characters
Number = Annotated[float, Field(ge=-MOST_NUMBER, le=MOST_NUMBER)]


class FileEntry(Section):
    sha256: Sha256
    size_bytes: Size


class ArtifactEntry(Section):
    """preprocess: a list of steps per input (edgeopt_agent.preprocess); options: the runtime's own settings.

    frequency_max_hz: the cap of the CPUs' clock with which it met its budgets; nobody sets it but the board's owner.
    """

    file: FileName
    runtime: FileName
    threads: Annotated[int, Field(ge=1, le=4096)]
    preprocess: list[list[dict[str, Any]]]
    options: dict[str, str] = Field(default_factory=dict)
    frequency_max_hz: Number | None = None


class Health(Section):
    """Limits that the board applies alone, on the shard in `file`; None: not limited."""

    file: FileName
    metric: str | None
    of: Size
    least_correct: Size | None
    greatest_median_latency_s: Number | None
    greatest_output_error: Number | None


class Policy(Section):
    """confirm_within_s: the application must run `edgeopt-agent confirm` in time, or the old release returns."""

    confirm_within_s: Number | None = None


class Evaluation(Section):
    """The final split: shards of inputs, labels, groups and the source model's outputs (`source0`, …).

    golden: samples as files and as the arrays that they must become (decode.golden); None where they were arrays.
    confidence_threshold: below it an output goes to a person; None where the task has none.
    """

    shards: list[FileEntry]
    metric: str | None
    n: Size
    floor_drop: Number
    classes: list[str]
    golden: FileEntry | None = None
    confidence_threshold: Number | None = None


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
    """verdict: of the accuracy on final samples; "fail": it was packed nevertheless (`optimize
    --bundle-anyway`), "not judged": nobody compared it with a floor (`edgeopt bundle`).

    root, python: of the board that it was made for, to be read by people. Nothing obeys them: where edgeopt lives on a
    board, and which program runs there, is said by the board's profile or its owner.

    measured_on: None where nothing was measured, or by an edgeopt that did not keep it.
    """

    format: Literal[1]
    name: FileName
    created_by: Line
    profile: Line
    root: Line
    python: Line
    verdict: Literal["pass", "undecided", "fail", "not judged"]
    budgets: dict[str, Number]
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
        if data.startswith(b"PK"):
            _require_stored(data, f"{self.path}: blob {entry.sha256[:12]}")
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
        for entry in {entry.sha256: entry for entry in _entries(self.manifest)}.values():
            self.blob(entry)

    def require_own_libraries(
        self, board: profiles.DeviceProfile | None, given: Mapping[str, str] | None = None
    ) -> None:
        """What a board loads into its processes is named by its profile (where none is known, by the one of edgeopt's
        that the bundle was made for) or by the user, in `given`; never by a bundle alone. Raises ConfigError."""
        known = board or profiles.named(self.manifest.profile)
        own = known.npu.delegate.value if known and known.npu and known.npu.delegate else None
        for option, value in self.manifest.artifact.options.items():
            named = (self.manifest.artifact.runtime, option) in LIBRARIES
            if not named or option in (given or {}) or value == own:
                continue
            of = f"profile '{known.id}' names {own or 'none'}" if known else "no profile of the board is known"
            raise ConfigError(
                f"{self.path}: its {option} is {value}, and {of}; a bundle alone does not say what a board loads: give "
                f"the board's own profile with --profile, with {option} in its [npu]"
            )


def write(path: Path, manifest: Manifest, blobs: Mapping[str, bytes]) -> Bundle:
    """Write a bundle whole or not at all; `blobs`: bytes by SHA-256. The same content gives the same file."""
    _check_consistent(path, manifest)
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in (("manifest.json", text.encode("utf-8")), *_named(blobs)):
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return read(disk.write(path, content.getbuffer()))


def read(path: Path) -> Bundle:
    """Open a bundle and check its manifest. Raises ConfigError (no such file, a model's file), IntegrityError."""
    data = _member(path, "manifest.json", MANIFEST_LIMIT_BYTES)
    try:
        text = data.decode("utf-8")
        value = wire.parse(text)
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(
            f"{path}: manifest.json, key '{key}': {first['msg']}, found {first['input']!r:.80}; this bundle was made "
            "by another version of edgeopt, or damaged"
        ) from error
    except ValueError as error:
        raise IntegrityError(
            f"{path}: manifest.json is not JSON: {error}; the bundle is damaged, get it again"
        ) from error
    _check_consistent(path, manifest)
    _check_expansion(path, manifest)
    if wrong := requests.manifest_problem(value):
        raise IntegrityError(f"{path}: manifest.json, {wrong}; no board takes this bundle")
    return Bundle(path, text, manifest, hashlib.sha256(data).hexdigest())


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
    for option, value in manifest.artifact.options.items():
        if why := _wrong_option(manifest, option, value):
            raise IntegrityError(f"{path}: manifest.json, artifact.options.{option} = {value!r:.200}: {why}")


def _wrong_option(manifest: Manifest, option: str, value: str) -> str | None:
    """Why a release may not have that option of its runtime: it could load what the release itself brings."""
    if (manifest.artifact.runtime, option) not in LIBRARIES:
        return None if WORD.fullmatch(value) else "a word is allowed, not a path"
    path = PurePosixPath(value)
    if not value.startswith("/") or value.startswith("//") or str(path) != value or ".." in path.parts:
        return "the absolute path of a library of the board is needed, without . and .."
    brought = {*manifest.files, *(entry.sha256 for entry in manifest.files.values())}
    if path.is_relative_to(manifest.root) or brought & set(path.parts):
        return "a bundle brings no library: it must be one of the board's own, outside of edgeopt's folder"
    return None


def _entries(manifest: Manifest) -> Iterator[FileEntry]:
    """Every name's blob; one blob may have several names."""
    yield from manifest.files.values()
    if manifest.evaluation is not None:
        yield from manifest.evaluation.shards
        if manifest.evaluation.golden is not None:
            yield manifest.evaluation.golden


def _check_expansion(path: Path, manifest: Manifest) -> None:
    """A small bundle must not become a large release: one blob can have a thousand names."""
    sizes = [entry.size_bytes for entry in _entries(manifest)]
    held = path.stat().st_size
    if len(sizes) > MOST_NAMES or sum(sizes) > MOST_EXPANSION * held:
        raise IntegrityError(
            f"{path}: its {len(sizes)} files and shards would take {sum(sizes)} bytes, and the bundle has {held}; at "
            f"most {MOST_NAMES} of them and {MOST_EXPANSION:g} times its size are allowed; get it again"
        )


def _require_stored(data: bytes, what: str) -> None:
    """Arrays of a bundle are stored as they are: packed, half a megabyte of them can take a gigabyte of memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return  # no archive, so nothing that could be unpacked; whoever reads it says what is wrong
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    total = sum(member.file_size for member in members)
    if packed or total > len(data):
        raise IntegrityError(
            f"{what} is an archive of {len(data)} bytes that would take {total}; arrays in a bundle are not packed: "
            "get it again"
        )


def _named(blobs: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    return [(f"blobs/{sha256}", blobs[sha256]) for sha256 in sorted(blobs)]
