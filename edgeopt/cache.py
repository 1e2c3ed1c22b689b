"""Content-addressed stage outputs: a stage whose inputs, parameters, versions and source are known is not run again.

<root>/stages/<key>/   files of one output, with stage.json: what it was made from, and the hash of every file
<root>/traced/<key>.json   which files a user's factory read, so that its result is found without importing it
<root>/partial/<key>/   a stage under way: its output, and checkpoints for resuming
<root>/locks/<key>      held by the process that builds it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from edgeopt_agent import wire

from . import disk
from .errors import IntegrityError
from .trace import Trace, listing

Build = Callable[[Path], None]


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8"))


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Installed versions without importing anything; None for what is absent."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def source_of(*modules: str) -> str:
    """One hash over the source files of our own modules, e.g. source_of("edgeopt/lower/tflite.py")."""
    parts = []
    for module in modules:
        package, _, rest = module.partition("/")
        parts.append(sha256_bytes(resources.files(package).joinpath(rest).read_bytes()))
    return key_of(parts)


def default_root() -> Path:
    """$EDGEOPT_CACHE, else edgeopt under the user's cache folder."""
    chosen = os.environ.get("EDGEOPT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt"


class Cache:
    """`hits` and `misses` list the stages of this run, by name, in order; `took_s` tells how long each miss took.

    `waiting` is told the name of a stage that another process is building: this one waits and then finds it.
    written: folders that a run writes to; what user code may have seen of them does not count as used.
    """

    def __init__(
        self, root: Path, waiting: Callable[[str], None] = lambda _: None, written: Sequence[Path] = ()
    ) -> None:
        self.root = root
        self._written = [path.absolute() for path in (root, *written)]
        self.hits: list[str] = []
        self.misses: list[str] = []
        self.took_s: dict[str, float] = {}
        self._waiting = waiting

    def stage(self, name: str, inputs: Mapping[str, Any], build: Build) -> Path:
        """The folder with the stage's output; `build` fills it if it is not there yet. Its files are never changed."""
        key = key_of({"stage": name, "inputs": inputs})
        with self._lock(name, key):
            return self._found(name, key) or self._build(name, inputs, key, build)

    def partial(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """A folder for the checkpoints of a stage; gone once the stage is whole."""
        return _made(self.root / "partial" / key_of({"stage": name, "inputs": inputs}) / "checkpoints")

    def forget(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Drop a stage's output, so that it is built again."""
        key = key_of({"stage": name, "inputs": inputs})
        with self._lock(name, key):
            shutil.rmtree(self.root / "stages" / key, ignore_errors=True)

    def traced(self, name: str, inputs: Mapping[str, Any], build: Build) -> Path:
        """As `stage`, for user code: it is run again when something that it used has changed (see trace.py)."""
        key = key_of({"traced": name, "inputs": inputs})
        record = self.root / "traced" / f"{key}.json"
        with self._lock(name, key):
            known = _unchanged(record, self._written)
            found = self._found(name, known) if known else None
            if found is not None:
                return found
            used: dict[str, Any] = {}

            def traced_build(folder: Path) -> None:
                with Trace() as trace:
                    build(folder)
                seen = trace.files(self.root, self._written)
                used["files"] = {str(path): _hash_or_none(path) for path in sorted(seen)}
                used["folders"] = {folder: listing(folder, self._written) for folder in sorted(trace.folders)}
                used["packages"] = versions(trace.packages())

            folder = self._build(name, inputs, key, traced_build)
            disk.write(record, json.dumps({"stage": key, **used}, indent=1))
            return folder

    @contextlib.contextmanager
    def _lock(self, name: str, key: str) -> Iterator[None]:
        """One process builds a stage; the lock is the kernel's, so it goes with its process."""
        with disk.locked(self.root / "locks" / key, lambda: self._waiting(name), "EDGEOPT_CACHE"):
            yield

    def _found(self, name: str, key: str) -> Path | None:
        folder = self.root / "stages" / key
        if not _is_whole(folder):
            return None
        self.hits.append(name)
        return folder

    def _build(self, name: str, inputs: Mapping[str, Any], key: str, build: Build) -> Path:
        """Only a whole folder ever has a stage's name: its list of hashes is written last, then it is renamed."""
        self.misses.append(name)
        began = time.monotonic()
        folder, partial = self.root / "stages" / key, _made(self.root / "partial" / key)
        scratch = partial / "output"
        shutil.rmtree(scratch, ignore_errors=True)  # a killed build left it
        scratch.mkdir()
        try:
            with disk.writing(scratch, "EDGEOPT_CACHE"):
                build(scratch)
        except BaseException:
            shutil.rmtree(scratch)
            if not any(partial.iterdir()):
                partial.rmdir()
            raise
        files = {
            path.relative_to(scratch).as_posix(): sha256_file(path)
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        disk.write(scratch / "stage.json", json.dumps({"stage": name, "inputs": inputs, "files": files}, indent=1))
        if folder.exists():  # it was damaged
            shutil.rmtree(folder)
        _made(folder.parent)
        scratch.rename(folder)
        shutil.rmtree(partial)
        self.took_s[name] = self.took_s.get(name, 0.0) + time.monotonic() - began
        return folder


def _is_whole(folder: Path) -> bool:
    """False when it is absent or damaged; then it is built again, and the damaged one dropped."""
    try:
        files: dict[str, str] = json.loads((folder / "stage.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(_hash_or_none(folder / name) == digest for name, digest in files.items())


def _unchanged(record: Path, written: Sequence[Path]) -> str | None:
    """The stage of a record all of whose dependencies are as they were; None otherwise."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        same = (
            all(_hash_or_none(Path(path)) == digest for path, digest in known["files"].items())
            and all(listing(folder, written) == names for folder, names in known["folders"].items())
            and versions(known["packages"]) == known["packages"]
        )
        return str(known["stage"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


MOST_JSON_BYTES = 256 << 20


def check_json(path: Path) -> Any:
    """A JSON file of ours. Raises IntegrityError when it is not JSON, OSError."""
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"more than {MOST_JSON_BYTES} bytes")
        return wire.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged ({error}); delete it and run again") from error


def _made(folder: Path) -> Path:
    with disk.writing(folder, "EDGEOPT_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _hash_or_none(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None
