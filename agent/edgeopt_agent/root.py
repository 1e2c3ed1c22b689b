"""The board's edgeopt folder: there, and able to do what atomic activation needs."""

from __future__ import annotations

import os

from .wire import RemoteError

FOLDERS = ("store", "releases", "activations", "jobs")


def prepare(root: str) -> None:
    """Make what is missing, and refuse a root that cannot do what atomic activation needs. Raises RemoteError, OSError.

    One that has its folders has shown it; there, status must answer on a full or read-only disk too.
    """
    if all(os.path.isdir(os.path.join(root, name)) for name in FOLDERS):
        return
    _check(root)
    for name in FOLDERS:
        os.makedirs(os.path.join(root, name), exist_ok=True)


def _check(root: str) -> None:
    probe = os.path.join(root, f".probe-{os.urandom(8).hex()}")
    try:
        os.makedirs(root, exist_ok=True)
        os.mkdir(probe)
    except OSError as error:
        raise _unwritable(root, error) from error
    link, other = os.path.join(probe, "a"), os.path.join(probe, "b")
    try:
        os.symlink("x", link)
        os.symlink("y", other)
        os.rename(other, link)
        if os.readlink(link) != "y":
            raise OSError(None, "rename does not replace a symlink")
        handle = os.open(probe, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        unwritable = _unwritable(root, error)
        if unwritable.kind == "no-space":
            raise unwritable from error
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


def _unwritable(root: str, error: OSError) -> RemoteError:
    from .files import remote_error

    return remote_error(error, f"the board's root '{root}' cannot be written")
