"""Files that survive a power cut: a temporary name, fsync of file and folder, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from typing import Any

from .wire import RemoteError


def code_path() -> str:
    """The archive (or folder) that this agent runs from."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def fsync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str, data: bytes, mode: int = 0o644) -> None:
    """Either the old file or the whole new one is at `path`, whatever happens."""
    temporary = os.path.join(os.path.dirname(path), f".new-{os.urandom(8).hex()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        _forget(temporary)
        raise OSError(error.errno, error.strerror, path) from error  # a failed write() does not name its file
    except BaseException:
        _forget(temporary)
        raise
    fsync_folder(os.path.dirname(path))


def sweep_temporaries(folder: str) -> None:
    """Remove what write_atomic left in `folder` when the power went. Only where no other process writes."""
    for name in os.listdir(folder):
        if name.startswith(".new-"):
            _forget(os.path.join(folder, name))


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # an interrupt can come after the rename too


def write_json(path: str, value: Any) -> None:
    write_atomic(path, json.dumps(value, sort_keys=True, allow_nan=False).encode("utf-8") + b"\n")


def read_json(path: str) -> Any:
    with open(path, "rb") as file:
        return json.loads(file.read().decode("utf-8"))


def sha256_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def remote_error(error: OSError, doing: str) -> RemoteError:
    """The typed error for what the file system answered; `doing` says what was tried."""
    where = error.filename if error.filename is not None else ""
    text = f"{doing}: {error.strerror or error}" + (f" ({where})" if where else "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RemoteError("no-space", text + "; free some space there, or give another --root")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return RemoteError("read-only", text + "; mount it writable, fix its owner, or give another --root")
    return RemoteError("crash", text)


def check_root(root: str) -> None:
    """Make `root`, and refuse one that cannot do what atomic activation needs. Raises RemoteError.

    A root with a current release has shown it; there, status must answer on a full or read-only disk too.
    """
    if os.path.islink(os.path.join(root, "current")):
        return
    probe = os.path.join(root, f".probe-{os.urandom(8).hex()}")
    try:
        os.makedirs(root, exist_ok=True)
        os.mkdir(probe)
    except OSError as error:
        raise remote_error(error, f"the board's root '{root}' cannot be written") from error
    link, other = os.path.join(probe, "a"), os.path.join(probe, "b")
    try:
        os.symlink("x", link)
        os.symlink("y", other)
        os.rename(other, link)
        if os.readlink(link) != "y":
            raise OSError(errno.ENOTSUP, "rename does not replace a symlink")
        fsync_folder(probe)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise remote_error(error, f"the board's root '{root}' cannot be written") from error
        raise RemoteError(
            "unsupported-root",
            f"the file system under '{root}' cannot hold releases ({error.strerror}): it needs symlinks, an atomic "
            "rename over a symlink and fsync of folders (vfat has none); choose a root on ext4, f2fs or the like",
        ) from error
    finally:
        for path in (link, other):
            if os.path.islink(path):
                os.unlink(path)
        os.rmdir(probe)
