"""Content-addressed stage outputs: a stage whose inputs, parameters, versions and source are known is not run again.

<root>/stages/<key>/   files of one output, with stage.json: what it was made from, and the hash of every file
<root>/traced/<key>.json   which files a user's factory read, so that its result is found without importing it
<root>/partial/<key>/   checkpoints of a stage under way, for resuming
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from .errors import IntegrityError

# What a package may carry that decides a result; its code is covered by the versions in the stages' keys.
DATA_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".bin", ".h5", ".csv", ".parquet", ".wav", ".onnx")

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
    """`hits` and `misses` list the stages of this run, by name, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hits: list[str] = []
        self.misses: list[str] = []

    def stage(self, name: str, inputs: Mapping[str, Any], build: Build) -> Path:
        """The folder with the stage's output; `build` fills it if it is not there yet. Its files are never changed."""
        key = key_of({"stage": name, "inputs": inputs})
        folder = self.root / "stages" / key
        if self._is_whole(folder):
            self.hits.append(name)
            return folder
        self.misses.append(name)
        return self._build(name, inputs, folder, build)

    def partial(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """A folder for the checkpoints of a stage; gone once the stage is whole."""
        folder = self.root / "partial" / key_of({"stage": name, "inputs": inputs})
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def traced(self, name: str, inputs: Mapping[str, Any], build: Build) -> Path:
        """As `stage`, for user code: it is run again when a file that it read, or a module it loaded, has changed."""
        key = key_of({"traced": name, "inputs": inputs})
        record = self.root / "traced" / f"{key}.json"
        if record.exists():
            known = json.loads(record.read_text())
            folder = self.root / "stages" / str(known["stage"])
            if all(_hash_or_none(Path(path)) == found for path, found in known["files"].items()) and self._is_whole(
                folder
            ):
                self.hits.append(name)
                return folder
        self.misses.append(name)
        with _Trace() as trace:
            scratch = Path(tempfile.mkdtemp(prefix="traced-", dir=_made(self.root / "partial")))
            try:
                build(scratch)
            except BaseException:
                shutil.rmtree(scratch)
                raise
        files = {str(path): _hash_or_none(path) for path in sorted(trace.files(self.root))}
        stage = key_of({"traced": name, "inputs": inputs, "files": files})
        folder = self.root / "stages" / stage
        if not self._is_whole(folder):
            self._seal(name, inputs, scratch, folder)
        else:
            shutil.rmtree(scratch)
        _write_whole(record, json.dumps({"stage": stage, "files": files}, indent=1))
        return folder

    def _build(self, name: str, inputs: Mapping[str, Any], folder: Path, build: Build) -> Path:
        scratch = Path(tempfile.mkdtemp(prefix="stage-", dir=_made(self.root / "partial")))
        try:
            build(scratch)
        except BaseException:
            shutil.rmtree(scratch)
            raise
        self._seal(name, inputs, scratch, folder)
        checkpoints = self.root / "partial" / folder.name
        if checkpoints.exists():
            shutil.rmtree(checkpoints)
        return folder

    def _seal(self, name: str, inputs: Mapping[str, Any], scratch: Path, folder: Path) -> None:
        """Only a whole folder ever has a stage's name: its manifest is written first, the rename is last."""
        files = {
            path.relative_to(scratch).as_posix(): sha256_file(path)
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        (scratch / "stage.json").write_text(json.dumps({"stage": name, "inputs": inputs, "files": files}, indent=1))
        if folder.exists():  # damaged: it was not whole
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(folder)

    def _is_whole(self, folder: Path) -> bool:
        """False when it is absent or was damaged; then it is built again, and the damaged one dropped."""
        manifest = folder / "stage.json"
        if not manifest.exists():
            return False
        files: dict[str, str] = json.loads(manifest.read_text())["files"]
        return all(_hash_or_none(folder / name) == digest for name, digest in files.items())


class _Trace:
    """Notes the files that Python code opens for reading while it is active, and the user's modules loaded by then."""

    _active: _Trace | None = None
    _installed = False

    def __init__(self) -> None:
        self._opened: set[str] = set()

    def __enter__(self) -> _Trace:
        if not _Trace._installed:
            sys.addaudithook(_Trace._hook)  # cannot be removed; idle unless a trace is active
            _Trace._installed = True
        _Trace._active = self
        return self

    def __exit__(self, *_: object) -> None:
        _Trace._active = None

    @staticmethod
    def _hook(event: str, arguments: tuple[Any, ...]) -> None:
        active = _Trace._active
        if active is None or event != "open":
            return
        path, _mode, flags = arguments
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        if isinstance(path, str | bytes | os.PathLike) and not writing:
            active._opened.add(os.path.abspath(os.fsdecode(path)))

    def files(self, cache_root: Path) -> set[Path]:
        """Regular files that decide what the code returns: not the interpreter's, the packages' code or ours."""
        loaded = {
            file for module in list(sys.modules.values()) if isinstance(file := getattr(module, "__file__", None), str)
        }
        code = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        own = [Path(str(resources.files(name))) for name in ("edgeopt", "edgeopt_agent", "edgeopt_profiles")]
        never = [*map(Path, ("/proc", "/sys", "/dev", "/etc")), *own, cache_root.resolve()]
        kept = set()
        for path in map(Path, self._opened | loaded):
            is_package_code = any(path.is_relative_to(folder) for folder in code) and path.suffix not in DATA_SUFFIXES
            if path.suffix == ".pyc" or is_package_code or any(path.is_relative_to(folder) for folder in never):
                continue
            if path.is_file():
                kept.add(path)
        return kept


def check_json(path: Path) -> Any:
    """A JSON file of ours. Raises IntegrityError when it is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged ({error}); delete it and run again") from error


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _hash_or_none(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None


def _write_whole(path: Path, text: str) -> None:
    _made(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
