"""Whose turn it is on this board: one job works at a time, the others wait, and who gave up waiting never begins.

The lock is flock's, so it is gone with its process, however that ended. A job folder has
  asked.json     {"number": in the order of asking, "kind", "by": who asked, "followed": false for a job that is kept}
  alive          locked by its process; its time is the monotonic clock when somebody last asked how the job goes
  process.json   {"pid", "began_s": the monotonic clock when its turn came; null while it waits}
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional

from .files import read_json, write_json
from .wire import RemoteError

if TYPE_CHECKING:
    from .jobs import Context

ANSWER_S = 15.0  # a follower asks again within a few seconds
PATIENCE_S = 180.0  # longer than a host tries to mend a lost link
LOOK_S = 5.0
WORDS = 100  # characters of what a host says of itself


def note_asked(folder: str, kind: Any, by: Any, followed: bool) -> None:
    """Write asked.json, unless the job was asked for before."""
    path = os.path.join(folder, "asked.json")
    if os.path.exists(path):
        return
    jobs = os.path.dirname(folder)
    number = 1 + max((number_of(os.path.join(jobs, name)) for name in os.listdir(jobs)), default=0)
    words = by[:WORDS] if isinstance(by, str) else None
    write_json(path, {"number": number, "kind": str(kind)[:WORDS], "by": words, "followed": followed})


def number_of(folder: str) -> int:
    """Its place in the order of asking, which no clock can change; 0 where nothing tells."""
    number = _asked(folder).get("number")
    return number if isinstance(number, int) else 0


def is_kept(folder: str) -> Optional[bool]:
    """Whether it was asked for to outlive its host; None where that is not told (yet)."""
    followed = _asked(folder).get("followed")
    return not followed if isinstance(followed, bool) else None


def _asked(folder: str) -> Dict[str, Any]:
    return _dictionary(os.path.join(folder, "asked.json"))


def _dictionary(path: str) -> Dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def follow(folder: str) -> None:
    """Somebody asks how the job goes. It costs no byte of the disk."""
    now = time.monotonic_ns()
    try:
        os.utime(os.path.join(folder, "alive"), ns=(now, now))
    except OSError:
        pass  # who cannot write here did not ask for the job


def followed_s(folder: str) -> float:
    """The monotonic clock when somebody last asked."""
    return os.stat(os.path.join(folder, "alive")).st_mtime_ns / 1e9


def is_held(path: str) -> bool:
    """Whether a process holds the lock at `path`."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # another user's cannot be looked at
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def present(root: str) -> List[Dict[str, Any]]:
    """The jobs that work or wait, in the order of asking: {"job", "kind", "by", "waits", "for_s": how long it works
    (None: it waits, or does not tell), "followed": whether somebody asked for it lately}."""
    found = []
    now = time.monotonic()
    try:
        names = os.listdir(os.path.join(root, "jobs"))
    except PermissionError:
        return []
    for name in names:
        folder = os.path.join(root, "jobs", name)
        if not is_held(os.path.join(folder, "alive")) or os.path.exists(os.path.join(folder, "result.json")):
            continue
        asked, process = _asked(folder), _dictionary(os.path.join(folder, "process.json"))
        began = process.get("began_s")
        waits = began is None and not (process and "began_s" not in process)  # an older agent does not tell
        job = {"job": name, "kind": asked.get("kind") or name.partition("-")[0], "by": asked.get("by")}
        for_s = None if began is None else now - began
        lately = now - followed_s(folder) < ANSWER_S
        found.append((number_of(folder), dict(job, waits=waits, for_s=for_s, followed=lately)))
    return [job for _, job in sorted(found, key=lambda pair: (pair[0], pair[1]["job"]))]


def described(job: Dict[str, Any]) -> str:
    """One of `present` in words: its name, whose it is, and since when."""
    since = "" if job["for_s"] is None else f", at work for {job['for_s']:.0f} s"
    return f"job {job['job']} (of {job['by'] or 'an unknown host'}{since})"


class BoardLock:
    """Held while a job works. With a context it waits, saying so; without one it only tries, and tells if it holds.

    A job that had to wait begins when its follower asks after its turn came. Where nobody does, the turn is the next
    one's; where nobody does for PATIENCE_S, the job ends: its host was killed, or has given up.
    """

    def __init__(self, root: str, context: Optional[Context] = None) -> None:
        self._root = root
        self._path = os.path.join(root, "lock")
        self._context = context
        self._said: Optional[str] = None

    def __enter__(self) -> bool:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            return self._take()
        except BaseException:
            os.close(self._handle)
            raise

    def __exit__(self, *_: Any) -> None:
        os.close(self._handle)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._context is None:
                return False
            self._wait(self._context)
        if self._context is not None:
            process = os.path.join(self._context.folder, "process.json")
            write_json(process, {"pid": os.getpid(), "began_s": time.monotonic()})
        return True

    def _wait(self, context: Context) -> None:
        self._look(context)
        if is_kept(context.folder):
            with _every(LOOK_S, lambda: self._look(context)):
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            return
        while True:
            with _every(LOOK_S, lambda: self._look_and_require(context)):
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            since = time.monotonic()
            context.emit({"event": "waiting", "what": "its turn has come"})  # a follower asks again at once
            while time.monotonic() - since < ANSWER_S:
                if followed_s(context.folder) > since:
                    return
                time.sleep(0.05)
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            while followed_s(context.folder) < since:
                self._require_follower(context)
                time.sleep(0.5)

    def _look_and_require(self, context: Context) -> None:
        self._require_follower(context)
        self._look(context)

    def _look(self, context: Context) -> None:
        """Say behind which job it waits, whenever that is another one."""
        before = [job for job in present(self._root) if not job["waits"]]
        name = before[0]["job"] if before else None
        if self._said is None or name not in (None, self._said):
            self._said = name or ""
            what = f"waiting behind {described(before[0])}" if before else "another job is running on this board"
            context.emit({"event": "waiting", "what": what, "behind": name})

    def _require_follower(self, context: Context) -> None:
        if time.monotonic() - followed_s(context.folder) > PATIENCE_S:
            raise RemoteError(
                "cancelled",
                f"nobody asked for the waiting job for {PATIENCE_S:.0f} s, so it ended before it began; "
                "run the same command again",
            )


@contextmanager
def _every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Call `look` every so often while the block waits for the kernel; what it raises ends the wait, once: a second
    alarm would meet whoever handles the first."""

    def alarm(*_: Any) -> None:
        try:
            look()
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            raise

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
