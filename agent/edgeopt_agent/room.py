"""Room on the board's disk: what nothing uses goes, and a reserve is kept for the way back to a whole release.

<root>/reserve/    empty files and one of RESERVE_BYTES, given up when a rollback or a return would lack the room
Only with BoardLock, but for `has`.
"""

from __future__ import annotations

import os
import shutil
from typing import Set

from . import activations, store
from .files import fsync_folder, note, read_json, remove, set_aside
from .wire import RemoteError

KEEP_PREVIOUS = 2
RECORDS_BYTES = 64 << 10  # what a job must be able to write: its events, its end, and a new activation
RECORDS_FILES = 24
RESERVE_BYTES = 256 << 10
RESERVE_FILES = 32


def has(root: str, size_bytes: int = RECORDS_BYTES) -> bool:
    """Whether a job of this board can write so much, and its files."""
    disk = os.statvfs(root)
    has_names = disk.f_files == 0 or disk.f_favail >= RECORDS_FILES  # some file systems do not count them
    return has_names and disk.f_bavail * disk.f_frsize >= size_bytes


def make(root: str, size_bytes: int = RECORDS_BYTES, vital: bool = False) -> None:
    """Forget blobs that nothing uses until there is room, the longest unused first. vital: those of an upload under way
    too, and at last the reserve: a board must be able to go back. Without room, whoever writes will fail and say so."""
    if has(root, size_bytes):
        return
    try:
        for age_s, _, path in store.loose_blobs(root, _used(root)):
            if not vital and age_s < store.RECENT_S:
                break
            remove(path)
            if has(root, size_bytes):
                return
    except (OSError, _Unknown) as error:
        note(f"no room was made in the store: {error}")
    if vital:
        give_up_reserve(root)


def require(root: str, vital: bool) -> None:
    """Raises RemoteError('no-space') where a job could not leave its records."""
    if not has(root) and not vital:
        raise RemoteError(
            "no-space",
            f"{root} has {store.free_bytes(root)} bytes and {os.statvfs(root).f_favail} names for files free; a job "
            f"needs {RECORDS_BYTES} and {RECORDS_FILES}; free some space there, or give another --root",
        )


def give_up_reserve(root: str) -> None:
    shutil.rmtree(os.path.join(root, "reserve"), ignore_errors=True)


def keep_reserve(root: str) -> None:
    """Set the reserve aside, unless it is there or the disk has no room for it."""
    folder, names = os.path.join(root, "reserve"), [str(number) for number in range(RESERVE_FILES)]
    try:
        if os.path.isdir(folder) and set(os.listdir(folder)) >= {"space", *names}:
            return
        if os.path.lexists(folder) and not os.path.isdir(folder):
            set_aside(folder)
        if not has(root, RESERVE_BYTES + store.SPARE_BYTES):
            return
        os.makedirs(folder, exist_ok=True)
        for name in names:
            os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o600))
        handle = os.open(os.path.join(folder, "space"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(handle, 0, RESERVE_BYTES)
        finally:
            os.close(handle)
        fsync_folder(folder)
        fsync_folder(root)
    except OSError as error:
        note(f"no reserve is kept for the way back: {error}")


def tidy(root: str) -> None:
    """Keep the store within its quota, and the reserve. What the releases here need stays whatever its size; what could
    not be done waits for the next job."""
    try:
        store.trim(root, _used(root))
    except (OSError, _Unknown) as error:
        note(f"the store was not trimmed: {error}")
    if activations.current_number(root) is not None:
        keep_reserve(root)


def collect_garbage(root: str) -> None:
    """Keep the current release, KEEP_PREVIOUS to return to, and blobs that an upload under way may need."""
    chain = activations.chain(root, KEEP_PREVIOUS)
    kept = {
        "activations": {str(record["number"]) for record in chain},
        "releases": {record["release"] for record in chain},
    }
    try:
        for folder, names in kept.items():
            for name in os.listdir(os.path.join(root, folder)):
                if name not in names:
                    remove(os.path.join(root, folder, name))
    except OSError as error:
        note(f"what nothing uses stays until the next flash: {error}")


class _Unknown(Exception):
    """Which blobs a release needs cannot be read, so all stay."""


def _used(root: str) -> Set[str]:
    used = set()
    for release in os.listdir(os.path.join(root, "releases")):
        folder = os.path.join(root, "releases", release)
        if os.path.isdir(folder):
            try:
                manifest = read_json(os.path.join(folder, "manifest.json"))
                used |= {str(entry["sha256"]) for entry in manifest["files"].values()}
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise _Unknown(f"release {release[:12]} is damaged") from error
    return used
