"""Blobs by their SHA-256. An upload continues at its byte; a blob has its name only when it is whole and checked."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Set, Tuple

from .files import fsync_folder, remote_error, remove, sha256_file, size_of
from .wire import RemoteError, is_sha256

QUOTA_BYTES = 1 << 30  # of blobs that no release uses; on a small disk half of what they could have
RECENT_S = 3600.0  # blobs this young may belong to an upload under way
SPARE_BYTES = 1 << 20  # left free for records and logs
MODE = 0o644  # the application reads them as another user


def path_of(root: str, sha256: Any) -> str:
    if not is_sha256(sha256):
        raise RemoteError("bad-request", f"not a SHA-256: {sha256!r}")
    return os.path.join(root, "store", sha256)


def _partial(root: str, sha256: str) -> str:
    return path_of(root, sha256) + ".part"


def stat(root: str, sha256: str) -> Dict[str, Any]:
    """How many bytes are here, and whether the blob is whole; a damaged one counts as absent."""
    path = path_of(root, sha256)
    size = size_of(path)
    if size is not None and sha256_file(path) == sha256:
        _touch(path)
        return {"have": size, "whole": True}
    return {"have": size_of(_partial(root, sha256)) or 0, "whole": False}


def put(root: str, sha256: str, size_bytes: int, offset: int, data: bytes) -> Dict[str, Any]:
    """Append `data` at `offset`. Raises RemoteError: no-space before a byte is written, integrity if it ends wrong."""
    with _one_writer(root):
        return _append(root, sha256, size_bytes, offset, data)


@contextmanager
def _one_writer(root: str) -> Iterator[None]:
    """Two hosts may send the same blob at the same time; the lock is gone with its process."""
    handle = os.open(os.path.join(root, "store.lock"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _append(root: str, sha256: str, size_bytes: int, offset: int, data: bytes) -> Dict[str, Any]:
    path, partial = path_of(root, sha256), _partial(root, sha256)
    have = size_of(partial)
    if have is None or have > size_bytes:  # nothing, or what no upload left
        remove(partial)
        have = 0
    if offset != have:
        return stat(root, sha256)
    try:
        require_room(root, size_bytes - offset)
    except RemoteError:
        remove(partial)
        raise
    try:
        with open(partial, "ab") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), MODE)
            os.fsync(file.fileno())
    except OSError as error:
        # After a failed fsync the kernel calls these bytes written: they can still be read, and the next fsync
        # succeeds, but the disk may never have them. Only writing them again makes them durable.
        remove(partial)
        raise remote_error(error, f"blob {sha256[:12]} cannot be written") from error
    have = offset + len(data)
    if have < size_bytes:
        return {"have": have, "whole": False}
    if have > size_bytes or sha256_file(partial) != sha256:
        remove(partial)
        raise RemoteError("integrity", f"blob {sha256[:12]} arrived damaged and was dropped; send it again")
    _name(partial, path, sha256)
    return {"have": have, "whole": True}


def _name(partial: str, path: str, sha256: str) -> None:
    """Give a whole blob its name; where that name is not durable, it has none."""
    if size_of(path) is None:
        remove(path)
    try:
        os.rename(partial, path)
        fsync_folder(os.path.dirname(path))
    except OSError as error:
        remove(partial)
        remove(path)
        raise remote_error(error, f"blob {sha256[:12]} cannot be written") from error


def require_room(root: str, size_bytes: int, spare_bytes: int = SPARE_BYTES) -> None:
    """Raises RemoteError('no-space') unless `size_bytes` fit under `root` and `spare_bytes` stay free."""
    free = free_bytes(root)
    if size_bytes + spare_bytes > free:
        raise RemoteError(
            "no-space",
            f"{root} has {free} bytes free; {size_bytes} are still to come and {spare_bytes} must stay free; "
            "free some space there, or give another --root",
        )


def free_bytes(root: str) -> int:
    disk = os.statvfs(root)
    return disk.f_bavail * disk.f_frsize


def trim(root: str, used: Set[str]) -> None:
    """Forget blobs that no release uses, the longest unused first, until the others are within the quota: inputs and
    evaluation shards stay here for the next time, but not without end. What was used lately stays in any case."""
    loose = loose_blobs(root, used)
    held = sum(size for _, size, _ in loose)
    quota = min(QUOTA_BYTES, (free_bytes(root) + held) // 2)
    for age_s, size, path in loose:
        if held <= quota or age_s < RECENT_S:
            return
        remove(path)
        held -= size


def loose_blobs(root: str, used: Set[str]) -> List[Tuple[float, int, str]]:
    """(seconds since it was used, size in bytes, path) of what no release uses, the longest unused first.

    A board's clock goes back where no battery keeps it: what was used more than RECENT_S in the future was not used
    lately, and nobody knows when it was.
    """
    found = []
    for entry in os.scandir(os.path.join(root, "store")):
        if entry.name not in used:
            known = entry.stat(follow_symlinks=False)
            age_s = time.time() - known.st_mtime
            found.append((age_s if age_s > -RECENT_S else float("inf"), known.st_size, entry.path))
    return sorted(found, key=lambda blob: -blob[0])


def lay_out(paths: Dict[str, str], folder: str) -> None:
    """Put files side by side under their names, as symlinks: a runtime looks for an artifact's second file there."""
    os.mkdir(folder)
    for name, path in paths.items():
        os.symlink(os.path.realpath(path), os.path.join(folder, name))


def whole(root: str, sha256: Any) -> str:
    """The path of a blob after its hash was checked. Raises RemoteError: not-found, integrity."""
    path = path_of(root, sha256)
    if size_of(path) is None:
        raise RemoteError("not-found", f"blob {sha256[:12]} is not on the board")
    if sha256_file(path) != sha256:
        raise RemoteError("integrity", f"blob {sha256[:12]} on the board is damaged; send it again")
    _touch(path)
    return path


def _touch(path: str) -> None:
    """It was used: trim() forgets others first."""
    try:
        os.utime(path)
    except PermissionError:
        pass  # another user's: this one may read it, and that is all that was asked for
