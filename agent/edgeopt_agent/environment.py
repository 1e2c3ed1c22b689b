"""A Python environment of the board's own, from wheels that the host brings: for boards with no internet and no pip.

    <root>/python/<id>/          bin/python3, pyvenv.cfg, lib/pythonX.Y/site-packages, environment.json
    <root>/python/current -> <id>
<id> is the hash of what went in; where a damaged one has that name, -<hex> follows: what is current is never taken
apart, so `current` leads to an environment always. One becomes current after its runtimes were imported there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from importlib import util
from typing import Any, Dict, Iterator, List, Optional, Tuple

from . import facts, releases, room, runtimes, store
from .files import code_path, fsync_folder, note, read_json, remove, replace_symlink, sha256_file, write_json
from .wire import RemoteError, field, is_plain_name

RECORD = "environment.json"
IMPORT_LIMIT_S = 600.0
PROGRESS_BYTES = 1 << 20
CHECK = (
    "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.environment import import_all; "
    "import_all(sys.argv[2:])"
)


def collect(root: str) -> Dict[str, Any]:
    """What wheels must fit, and the environment that is current: for the host to choose by."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": base_python(),
        "implementation": sys.implementation.name,
        "machine": facts.architecture(os.uname().machine, struct.calcsize("P")),
        "libc": libc(),
        "frequencies_max_hz": _frequencies(),
        "venv": util.find_spec("venv") is not None,
        "pip": util.find_spec("pip") is not None,
        "numpy": (runtimes.installed(["numpy"]) or {}).get("version"),
        "current": _inspect(os.path.join(root, "python", "current")),
    }


def libc() -> Optional[Dict[str, str]]:
    """{"name": glibc | musl, "version"}; None when it is neither."""
    try:
        found = parse_confstr(os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (ValueError, OSError):
        found = None
    if found is not None:
        return found
    for loader in sorted(glob.glob("/lib/ld-musl-*")):
        said = subprocess.run([loader], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr
        return parse_musl(said.decode("utf-8", "replace"))
    return None


def parse_confstr(text: str) -> Optional[Dict[str, str]]:
    found = re.match(r"glibc (\d+\.\d+)", text)
    return {"name": "glibc", "version": found[1]} if found else None


def parse_musl(text: str) -> Optional[Dict[str, str]]:
    """What musl's loader says of itself when it is run without a program."""
    found = re.search(r"^Version (\d+\.\d+)", text, re.MULTILINE) if "musl libc" in text else None
    return {"name": "musl", "version": found[1]} if found else None


def _frequencies() -> List[int]:
    """The highest clock of every core, where the kernel tells it."""
    paths = glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    return [int(text) * 1000 for text in map(facts.read, sorted(paths)) if text and text.isdigit()]


def base_python() -> str:
    """This Python outside of any virtual environment."""
    return sys.executable if sys.prefix == sys.base_prefix else os.path.realpath(sys.executable)


def set_up(context: Any, request: Dict[str, Any]) -> Dict[str, Any]:
    """The job: unpack the wheels {file name: sha256} beside what is there, import the runtimes, then switch.

    Raises RemoteError: bad-request, integrity, no-space, missing-runtime; the current environment stays then.
    """
    wheels, wanted = field(request, "wheels", dict), field(request, "runtimes", list)
    record = {
        "python": "%d.%d" % sys.version_info[:2],
        "executable": base_python(),
        "runtimes": sorted(wanted),
        "wheels": wheels,
        "system_packages": field(request, "system_packages", bool),
    }
    name = hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8")).hexdigest()
    home = os.path.join(context.root, "python")
    os.makedirs(home, exist_ok=True)
    folder = _whole_one(home, name)
    if folder is None:
        folder = _free_name(home, name)
        _unpack(context, record, folder)
    context.stage("importing the runtimes on the board")
    try:
        versions = _import(folder, wanted)
    except BaseException:
        if not _is_current(home, folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    replace_symlink(os.path.basename(folder), os.path.join(home, "current"))
    python = os.path.join(home, "current", "bin", "python3")
    if os.path.exists(os.path.join(context.root, "bin", "edgeopt-agent")):
        releases.write_entry(context.root, python)
    _forget(context.root, home, os.path.basename(folder), wheels)
    return {"id": name, "python": python, "versions": versions}


def _whole_one(home: str, name: str) -> Optional[str]:
    """The folder of an environment made of the same, which is whole."""
    folders = [os.path.join(home, entry) for entry in sorted(os.listdir(home)) if entry.startswith(name)]
    return next((folder for folder in folders if (_inspect(folder) or {}).get("whole")), None)


def _free_name(home: str, name: str) -> str:
    folder = os.path.join(home, name)
    return f"{folder}-{os.urandom(4).hex()}" if os.path.lexists(folder) else folder


def _is_current(home: str, folder: str) -> bool:
    link = os.path.join(home, "current")
    return os.path.islink(link) and os.readlink(link) == os.path.basename(folder)


def _unpack(context: Any, record: Dict[str, Any], folder: str) -> None:
    scratch = os.path.join(os.path.dirname(folder), ".new")
    remove(scratch)
    wheels = {path: list_wheel(name, path) for name, path in _wheels(context, record["wheels"])}
    total = sum(size for members in wheels.values() for _, _, size in members)
    room.make(context.root, total + store.SPARE_BYTES)
    store.require_room(context.root, total)
    site = os.path.join("lib", "python" + record["python"], "site-packages")
    os.makedirs(os.path.join(scratch, site))
    done = told = 0
    files: Dict[str, str] = {}
    for path, members in wheels.items():
        with zipfile.ZipFile(path) as archive:
            for inner, place, size in members:
                target = os.path.join(site, place)
                files[target] = _extract(archive, inner, os.path.join(scratch, target))
                done += size
                if done - told >= PROGRESS_BYTES or done == total:
                    told = done
                    context.progress(done, total, "unpacking on the board")
    _make_virtual(scratch, record)
    write_json(os.path.join(scratch, RECORD), dict(record, files=files))
    _make_durable(scratch)
    os.rename(scratch, folder)
    fsync_folder(os.path.dirname(folder))


def _make_durable(folder: str) -> None:
    """sync() first, since thousands of small files one by one take minutes on a card; but it tells no error, and what a
    disk did not take can be read from memory all the same. fsync tells, and has nothing left to do. Raises OSError."""
    os.sync()
    for place, _, names in os.walk(folder):
        for path in [os.path.join(place, name) for name in names]:
            if not os.path.islink(path):
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        fsync_folder(place)


def _wheels(context: Any, wheels: Dict[str, str]) -> Iterator[Tuple[str, str]]:
    """(file name, path of its blob), checked."""
    for name, sha256 in sorted(wheels.items()):
        if not is_plain_name(name.replace("+", "_")) or not name.endswith(".whl"):
            raise RemoteError("bad-request", f"not the name of a wheel: {name!r}")
        yield name, context.blob(sha256)


def list_wheel(name: str, path: str) -> List[Tuple[str, str, int]]:
    """(name in the archive, place below site-packages, size in bytes) of a wheel's files; no place leaves that folder.

    Raises RemoteError('integrity').
    """
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                place = _place(entry.filename)
                if entry.filename.endswith("/") or place is None:
                    continue
                parts = place.split("/")
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if place.startswith("/") or "\\" in place or {"", ".", ".."} & set(parts) or kind == stat.S_IFLNK:
                    raise RemoteError("integrity", f"{name} has a file that leaves its folder: {entry.filename!r}")
                found.append((entry.filename, place, entry.file_size))
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise RemoteError("integrity", f"{name} is not a wheel: {error}") from error
    return found


def _place(name: str) -> Optional[str]:
    """Where a wheel's file belongs below site-packages; None for programs and headers, which no runtime needs."""
    scheme = re.match(r"[^/]+\.data/([^/]+)/(.*)", name)
    if scheme is None:
        return name
    return scheme[2] if scheme[1] in ("purelib", "platlib") else None


def _extract(archive: zipfile.ZipFile, inner: str, target: str) -> str:
    """The file's SHA-256. zipfile checks its CRC."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    digest = hashlib.sha256()
    try:
        with archive.open(inner) as data, open(target, "wb") as file:
            for chunk in iter(lambda: data.read(1 << 20), b""):
                digest.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, EOFError) as error:
        raise RemoteError("integrity", f"{inner} cannot be unpacked: {error}") from error
    return digest.hexdigest()


def _make_virtual(folder: str, record: Dict[str, Any]) -> None:
    """What `python -m venv` would make, without needing the venv module, which small boards leave out."""
    os.mkdir(os.path.join(folder, "bin"))
    for name in ("python3", "python"):
        os.symlink(record["executable"], os.path.join(folder, "bin", name))
    with open(os.path.join(folder, "pyvenv.cfg"), "w", encoding="utf-8") as file:
        file.write(f"home = {os.path.dirname(record['executable'])}\n")
        file.write(f"include-system-site-packages = {str(record['system_packages']).lower()}\n")
        file.write(f"version = {record['python']}\n")


def _inspect(folder: str) -> Optional[Dict[str, Any]]:
    """The record of an environment without its list of files, and whether every byte is whole; None: there is none."""
    from . import replies
    from .schema import check

    path = os.path.join(folder, RECORD)
    if not os.path.exists(path):
        return None
    try:
        record = read_json(path)
        files = record.pop("files")
        whole = (
            bool(files)
            and os.path.exists(os.path.join(folder, "bin", "python3"))
            and all(_has(os.path.join(folder, name), sha256) for name, sha256 in files.items())
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {"whole": False}
    found = dict(record, whole=whole)
    return {"whole": False} if check(replies.SET_UP, found) else found


def _has(path: str, sha256: str) -> bool:
    return os.path.isfile(path) and sha256_file(path) == sha256


def _import(folder: str, wanted: List[str]) -> Dict[str, Any]:
    """{runtime: its package and version}, after each was imported by the environment's own Python."""
    command = [os.path.join(folder, "bin", "python3"), "-c", CHECK, code_path(), *wanted]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=IMPORT_LIMIT_S, cwd="/")
    except subprocess.TimeoutExpired as error:
        raise RemoteError("missing-runtime", f"importing {', '.join(wanted)} took over {IMPORT_LIMIT_S:g} s") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise RemoteError(
            "missing-runtime",
            f"the wheels are on the board, but {', '.join(wanted)} cannot be imported there (exit code "
            f"{done.returncode}): {said[-600:] or 'it said nothing'}; nothing was changed",
        )
    versions: Dict[str, Any] = json.loads(done.stdout.decode("utf-8").strip().splitlines()[-1])
    return versions


def import_all(wanted: List[str]) -> None:
    """In the environment's Python: import numpy and the runtimes, and say which they are."""
    import numpy

    said: Dict[str, Any] = {"numpy": {"package": "numpy", "version": numpy.__version__}}
    for name in wanted:
        adapter = runtimes.load(name)
        adapter.require()
        said[name] = adapter.available()
    sys.stdout.write("\n" + json.dumps(said) + "\n")


def _forget(root: str, home: str, name: str, wheels: Dict[str, str]) -> None:
    """A board's disk is small: wheels are unpacked now, and no other environment is used any more."""
    for entry in os.listdir(home):
        if entry not in (name, "current"):
            _drop(os.path.join(home, entry))
    for sha256 in wheels.values():
        _drop(store.path_of(root, sha256))


def _drop(path: str) -> None:
    """What is not needed any more; the new environment is current already, whatever becomes of that."""
    try:
        remove(path)
    except OSError as error:
        note(f"{path} stays: {error}")
