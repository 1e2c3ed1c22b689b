"""Files that edgeopt writes on this machine: whole or not at all, never through a link that stands at their name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import ConfigError

# What a disk, and not a fault of ours, answers; with the mend.
MENDS = {
    errno.ENOSPC: "free room there, or name a place on another disk",
    errno.EDQUOT: "free room there, or name a place on another disk",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "name a place of yours, or change its permissions",
    errno.EPERM: "name a place of yours, or change its permissions",
    errno.ENOTDIR: "a file stands where a folder is needed: name another place, or move that file",
    errno.EEXIST: "a file stands where a folder is needed: name another place, or move that file",
    errno.EISDIR: "a folder stands where a file is needed: name another place, or move that folder",
    errno.ELOOP: "a link stands there, which is not followed: remove it, or name another place",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EIO: "the disk fails: look into the kernel's log, and name a place on another disk",
    errno.EFBIG: "name a place on a disk that takes files of that size",
    errno.EMFILE: "close other programs, or raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
}
ROOM_BYTES = 1 << 20  # more than the raw samples and the document of a long command


def problem(error: OSError, place: Path | None = None, named_by: str = "") -> str | None:
    """What a disk of this machine refused, with its place and the mend; None where the error is of another kind.

    place: what was to be written; named is what stood in the way, where the error tells another.
    named_by: the variable or option with which another place is named.
    """
    if error.errno == errno.ENOENT and "temporary directory" in str(error):
        return "no folder for temporary files can be written; free room, or name one with TMPDIR"
    mend = MENDS.get(error.errno or 0)
    if mend is None:
        return None
    met = Path(os.fsdecode(error.filename)) if isinstance(error.filename, bytes | str | os.PathLike) else None
    is_beside = met is not None and place is not None and met.parent == place.parent  # a temporary name of ours
    where = place if met is None or is_beside else met
    other = f" ({named_by} names it)" if named_by else ""
    return f"{where or 'a file of this machine'}: {os.strerror(error.errno or 0)}; {mend}{other}"


@contextlib.contextmanager
def writing(place: Path, named_by: str = "") -> Iterator[None]:
    """Raises ConfigError naming `place`, or the folder above it, where the block meets what a disk refuses."""
    try:
        yield
    except OSError as error:
        words = problem(error, place, named_by)
        if words is None:
            raise
        raise ConfigError(words) from error


def write(
    path: Path, content: str | bytes | memoryview, mode: int = 0o644, durable: bool = False, named_by: str = ""
) -> Path:
    """`path` with `content`, text as UTF-8, by a file beside it and a rename; a link at that name is replaced.

    durable: it is on the disk when this returns. Raises ConfigError.
    """
    import tempfile  # which costs every --help 10 ms

    with writing(path, named_by):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return path


@contextlib.contextmanager
def locked(path: Path, held: Callable[[], None] = lambda: None, named_by: str = "") -> Iterator[None]:
    """The lock of that file, which is made where it is not, and otherwise left as it is.

    held: called where another process has it, before it is waited for; it may raise.
    Raises ConfigError, for a link too.
    """
    with writing(path, named_by):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Takes a file away, where it is there. Raises ConfigError."""
    with writing(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def require_room(folder: Path, size_bytes: int = ROOM_BYTES) -> None:
    """Writes that much into `folder` and takes it away again. Raises ConfigError, before anything is measured."""
    import tempfile

    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(size_bytes))
