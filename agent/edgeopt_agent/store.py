"""Blobs by their SHA-256. An upload continues at its byte; a blob has its name only when it is whole and checked."""

from __future__ import annotations

import os
from typing import Any, Dict

from .files import fsync_folder, remote_error, sha256_file
from .wire import RemoteError, is_sha256

SPARE_BYTES = 1 << 20  # left free for records and logs


def path_of(root: str, sha256: Any) -> str:
    if not is_sha256(sha256):
        raise RemoteError("bad-request", f"not a SHA-256: {sha256!r}")
    return os.path.join(root, "store", sha256)


def _partial(root: str, sha256: str) -> str:
    return path_of(root, sha256) + ".part"


def stat(root: str, sha256: str) -> Dict[str, Any]:
    """How many bytes are here, and whether the blob is whole; a damaged one counts as absent."""
    path, partial = path_of(root, sha256), _partial(root, sha256)
    if os.path.exists(path) and sha256_file(path) == sha256:
        os.utime(path)
        return {"have": os.path.getsize(path), "whole": True}
    return {"have": os.path.getsize(partial) if os.path.exists(partial) else 0, "whole": False}


def put(root: str, sha256: str, size_bytes: int, offset: int, data: bytes) -> Dict[str, Any]:
    """Append `data` at `offset`. Raises RemoteError: no-space before a byte is written, integrity when it ends wrong."""
    path, partial = path_of(root, sha256), _partial(root, sha256)
    have = os.path.getsize(partial) if os.path.exists(partial) else 0
    if offset != have:
        return {"have": have, "whole": False}
    disk = os.statvfs(os.path.dirname(path))
    free = disk.f_bavail * disk.f_frsize
    if size_bytes - offset + SPARE_BYTES > free:
        if os.path.exists(partial):
            os.unlink(partial)
        raise RemoteError(
            "no-space",
            f"{os.path.dirname(path)} has {free} bytes free; {size_bytes - offset} are still to come and "
            f"{SPARE_BYTES} must stay free; free some space there, or give another --root",
        )
    try:
        with open(partial, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise remote_error(error, f"blob {sha256[:12]} cannot be written") from error
    have = offset + len(data)
    if have < size_bytes:
        return {"have": have, "whole": False}
    if have > size_bytes or sha256_file(partial) != sha256:
        os.unlink(partial)
        raise RemoteError("integrity", f"blob {sha256[:12]} arrived damaged and was dropped; send it again")
    os.rename(partial, path)
    fsync_folder(os.path.dirname(path))
    return {"have": have, "whole": True}


def whole(root: str, sha256: Any) -> str:
    """The path of a blob after its hash was checked. Raises RemoteError: not-found, integrity."""
    path = path_of(root, sha256)
    if not os.path.exists(path):
        raise RemoteError("not-found", f"blob {sha256[:12]} is not on the board")
    if sha256_file(path) != sha256:
        raise RemoteError("integrity", f"blob {sha256[:12]} on the board is damaged; send it again")
    return path
