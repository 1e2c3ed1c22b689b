"""What a user's code depends on, noted while it runs, so that its result can be found again without running it.

Seen: files opened by Python code (also those looked for and absent), folders listed, modules loaded, installed
packages, and files of weights beside the user's modules, which native code may read unseen. Not seen: environment
variables, the network, other files that native code opens.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

# What a package may carry that decides a result beside its version; beside the user's modules, what native code reads.
DATA_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".bin", ".h5", ".csv", ".parquet", ".wav", ".onnx")
CACHE_FOLDERS = ("stages", "traced", "partial", "locks")
IMPORTS = ("<frozen importlib", metadata.__file__)
SKIPPED_FOLDERS = ("runs", "node_modules", "__pycache__")


class Trace:
    """A context; `files()`, `folders` and `packages()` tell afterwards what was used in it, by this thread."""

    _active: Trace | None = None
    _is_hooked = False

    def __init__(self) -> None:
        self.folders: set[str] = set()
        self._opened: set[str] = set()
        self._thread = threading.get_ident()

    def __enter__(self) -> Trace:
        if not Trace._is_hooked:
            sys.addaudithook(Trace._hook)  # cannot be removed; idle unless a trace is active
            Trace._is_hooked = True
        Trace._active = self
        return self

    def __exit__(self, *_: object) -> None:
        Trace._active = None

    @staticmethod
    def _hook(event: str, arguments: tuple[Any, ...]) -> None:
        active = Trace._active
        if active is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or threading.get_ident() != active._thread:
            return
        name = os.path.abspath(os.fsdecode(path))
        if event != "open":
            # The import system lists every folder on its path; what it finds there is known from modules and packages.
            if not sys._getframe(1).f_code.co_filename.startswith(IMPORTS):
                active.folders.add(name)
        elif not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            active._opened.add(name)

    def files(self, cache: Path, written: Sequence[Path]) -> set[Path]:
        """Files that decide what the code returned, absent ones too: not the interpreter's, not code of installed
        packages, not edgeopt's own, nothing below `cache`, and of the weights beside modules none below `written`."""
        modules = {Path(file) for file in _loaded_files()}
        kept = {path for path in modules | set(map(Path, self._opened)) if _is_users(path, cache)}
        beside = {path.parent for path in modules & kept}
        return kept | {path for folder in beside for path in _weights(folder, written) if _is_users(path, cache)}

    def packages(self) -> list[str]:
        """Distributions of the modules that are loaded now."""
        owners = _owners()
        return sorted({owner for name in list(sys.modules) if "." not in name for owner in owners.get(name, ())})


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Top-level module -> distributions; reading them takes a second where much is installed."""
    return metadata.packages_distributions()


def listing(folder: str, written: Sequence[Path]) -> list[str] | None:
    """The names in a folder, but for those of `written` and of folders that are never looked into; None where there is
    none."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    return sorted(name for name in names if name not in SKIPPED_FOLDERS and Path(folder, name) not in written)


def _loaded_files() -> Iterator[str]:
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            yield file


def _is_users(path: Path, cache: Path) -> bool:
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = [Path(str(resources.files(name))) for name in ("edgeopt", "edgeopt_agent", "edgeopt_profiles")]
    never = [*map(Path, ("/proc", "/sys", "/dev", "/etc")), *own, *(cache.resolve() / name for name in CACHE_FOLDERS)]
    if path.suffix == ".pyc" or path.is_dir() or any(path.is_relative_to(folder) for folder in never):
        return False
    return path.suffix in DATA_SUFFIXES or not any(path.is_relative_to(folder) for folder in installed)


def _weights(folder: Path, written: Sequence[Path]) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not name.startswith(".") and Path(where, name) not in written
        ]
        yield from (Path(where) / name for name in names if Path(name).suffix in DATA_SUFFIXES)
