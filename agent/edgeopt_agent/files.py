"""Files that survive a power cut: a temporary name, fsync of file and folder, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from typing import Any, Optional

from .wire import RemoteError


def code_path() -> str:
    """The archive (or folder) that this agent runs from."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def fsync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error  # a failed fsync() does not name its folder
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
        _make_way(path)
        os.rename(temporary, path)
    except OSError as error:
        _forget(temporary)
        raise OSError(error.errno, error.strerror, path) from error  # a failed write() does not name its file
    except BaseException:
        _forget(temporary)
        raise
    fsync_folder(os.path.dirname(path))


def append_line(path: str, line: bytes, durable: bool = False) -> None:
    """Add a whole line, or nothing: half a line would spoil the next one. Only one process at a time writes there."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        end, left = os.fstat(handle).st_size, memoryview(line + b"\n")
        try:
            while left:
                left = left[os.write(handle, left) :]
            if durable:
                os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, end)
            raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(handle)


def sweep_temporaries(folder: str) -> None:
    """Remove what write_atomic left in `folder` when the power went. Only where no other process writes."""
    for name in os.listdir(folder):
        if name.startswith(".new-"):
            remove(os.path.join(folder, name))


def replace_symlink(target: str, path: str) -> None:
    """As write_atomic, for a symlink."""
    temporary = os.path.join(os.path.dirname(path), ".new-link")
    remove(temporary)
    os.symlink(target, temporary)
    _make_way(path)
    os.rename(temporary, path)
    fsync_folder(os.path.dirname(path))


def remove(path: str) -> None:
    """A file, a symlink or a folder with all that is in it; nothing where there is none."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        _forget(path)


def note(text: str) -> None:
    """A line for the job's log, or whoever looks on. The log may lie on the disk that failed: that ends nothing."""
    try:
        os.write(2, text.encode("utf-8", "replace") + b"\n")
    except OSError:
        pass


def set_aside(path: str) -> None:
    """Give what stands at `path` another name beside it: whose it is, nobody here knows."""
    other = f"{path}.odd-{os.urandom(4).hex()}"
    os.rename(path, other)
    note(f"{path} was not what edgeopt has there; it is {other} now")


def _make_way(path: str) -> None:
    """A file or a symlink cannot take the name of a folder."""
    if os.path.isdir(path) and not os.path.islink(path):
        set_aside(path)


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # an interrupt can come after the rename too


def write_json(path: str, value: Any) -> None:
    write_atomic(path, json.dumps(value, sort_keys=True, allow_nan=False).encode("utf-8") + b"\n")


def size_of(path: str) -> Optional[int]:
    """Of a regular file, no symlink; None where there is none."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


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
        return RemoteError("read-only", text + _whose(where) + "; mount it writable, or give another --root")
    return RemoteError("crash", text)


def _whose(path: Any) -> str:
    """Whose a place is, where it is another user's: a root that was used by root is closed to the others."""
    place = path if isinstance(path, str) else ""
    while place and not os.path.lexists(place):
        place = os.path.dirname(place)
    uid = os.lstat(place).st_uid if place else os.geteuid()
    if uid == os.geteuid():
        return ""
    return f"; {place} belongs to uid {uid}, and this is uid {os.geteuid()}: log in as that user, or chown it"
