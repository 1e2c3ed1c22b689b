"""The board's edgeopt folder: there, able to do what atomic activation needs, and nobody else's to change."""

from __future__ import annotations

import errno
import os
import stat

from .wire import RemoteError

FOLDERS = ("store", "releases", "activations", "jobs")
PROGRAMS = ("agent", "bin", "hooks", "python")
FILES = ("lock", "store.lock", "log.jsonl", "power-mode.json")
SHARED = ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock")
UMASK = 0o022  # the application reads a release as another user; nobody but this one writes


def prepare(root: str) -> None:
    """Make what is missing, and refuse a root that cannot do what atomic activation needs. Raises RemoteError, OSError.

    One that has its folders has shown it; there, status must answer on a full or read-only disk too.
    """
    os.umask(UMASK)
    _require_own(root)
    _set_odd_aside(root)
    if _has_folders(root):
        return
    _check(root)
    for name in FOLDERS:
        os.makedirs(os.path.join(root, name), exist_ok=True)


def _has_folders(root: str) -> bool:
    return all(os.path.isdir(os.path.join(root, name)) for name in FOLDERS)


def others_may_change(found: os.stat_result) -> bool:
    """Whether another user of the board could put something else there: it is theirs, or open to everybody. A folder
    like /tmp, where only owners rename and delete, is open to new names only."""
    is_open = bool(found.st_mode & stat.S_IWOTH)
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        is_open = False
    return is_open or found.st_uid not in (0, os.geteuid())


def _require_own(root: str) -> None:
    """What lies in a root is run, as this user: others must not be able to change it. Raises RemoteError."""
    mend = "mend that on the board, or give another --root"
    for path in (root, *(os.path.join(root, name) for name in (*FOLDERS, *PROGRAMS))):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if found.st_uid not in (0, os.geteuid()):
            raise RemoteError(
                "unsupported-root",
                f"'{path}' belongs to another user of the board (uid {found.st_uid}, and this is uid {os.geteuid()}), "
                f"who could change what runs from the root '{root}': log in as that user, or {mend}",
            )
        if not found.st_mode & stat.S_IWOTH:
            continue
        if path == root and found.st_uid == os.geteuid() and _holds_nothing_else(root):  # such is a new tmpfs
            os.chmod(root, stat.S_IMODE(found.st_mode) & ~UMASK)
            continue
        if found.st_uid == os.geteuid() and not _has_folders(root):
            _check(root)  # a file system that keeps no modes lacks more than that
        raise RemoteError(
            "unsupported-root",
            f"every user of the board may write into '{path}' (mode {stat.S_IMODE(found.st_mode):o}), and what lies "
            f"there is run: see that nothing foreign is in it and `chmod -R go-w '{path}'`, or {mend}",
        )
    above = os.path.dirname(os.path.realpath(root))
    while above != "/":
        if os.path.isdir(above) and os.stat(above).st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise RemoteError(
                "unsupported-root",
                f"every user of the board may write into '{above}', above the root '{root}', and so exchange it: "
                f"`chmod o-w '{above}'` there, or {mend}",
            )
        above = os.path.dirname(above)


def _holds_nothing_else(root: str) -> bool:
    """Whether nobody but this user has anything there, and nothing but edgeopt; /tmp and its like are everybody's."""
    own = {*FOLDERS, *PROGRAMS, *FILES, "current", "reserve", "lost+found"}
    names = os.listdir(root)
    are_ours = all(os.lstat(os.path.join(root, name)).st_uid == os.geteuid() for name in names)
    return os.path.realpath(root) not in SHARED and are_ours and own >= set(names)


def _set_odd_aside(root: str) -> None:
    """Where edgeopt has been, what stands in a place of its own and is of another kind is kept under another name. On a
    disk that cannot be written it stays: status answers all the same."""
    if sum(os.path.isdir(os.path.join(root, name)) for name in FOLDERS) < 2:
        return
    for names, is_right in ((FOLDERS, os.path.isdir), (FILES, os.path.isfile)):
        for name in names:
            path = os.path.join(root, name)
            if os.path.lexists(path) and not is_right(path):
                from .files import set_aside  # not at every start

                try:
                    set_aside(path)
                except OSError as error:
                    if error.errno != errno.EROFS:
                        raise


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
