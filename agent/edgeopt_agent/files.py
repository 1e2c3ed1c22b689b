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


def read_text(path: str) -> str:
    """Raises OSError, ValueError for what is not UTF-8."""
    with open(path, "rb") as file:
        return file.read().decode("utf-8")


def read_json(path: str) -> Any:
    return json.loads(read_text(path))


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
