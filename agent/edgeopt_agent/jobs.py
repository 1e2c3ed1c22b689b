"""Jobs: a folder each (request.json, events.jsonl, result.json), run detached, so a lost link loses nothing.

One job works at a time (turn.py): they share the board, and a measurement beside another would be false.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from typing import Any, Dict, List, Optional, Tuple

from . import logind, power_mode, room, store, turn
from .files import append_line, code_path, note, read_json, remote_error, sha256_file, write_json
from .turn import BoardLock, is_held
from .wire import RemoteError, field, is_plain_name

KINDS = {  # (module, function), imported when such a job begins
    "bench": ("bench", "run"),
    "infer": ("bench", "infer"),
    "operators": ("placement", "run"),
    "energy": ("energy", "run"),
    "load": ("load", "run"),
    "activate": ("releases", "activate"),
    "rollback": ("releases", "rollback_job"),
    "set-up": ("environment", "set_up"),
}
KEEP_FINISHED = 20
VITAL = ("rollback",)  # the way back, for which a reserve is kept (room.py)
UNWRITTEN = "unwritten.json"
NOT_WRITTEN = (
    "the job came to its end, but the board's disk did not take its outcome: it is full or failing. Whether it did "
    "what was asked stands in its log, in its folder under jobs/ on the board"
)
MAX_EVENT_BYTES = 1 << 20
START_WAIT_S = 30.0
TERM_WAIT_S = 5.0
LAUNCH = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.jobs import work; work(*sys.argv[2:])"


_children: List["subprocess.Popen[bytes]"] = []  # jobs of this session, to be reaped when they end


class Context:
    """What a running job is given."""

    def __init__(self, root: str, folder: str) -> None:
        self.root = root
        self.folder = folder

    def emit(self, event: Dict[str, Any]) -> None:
        """Tell the host. What a full or failing disk does not take stands in the job's log: the work goes on."""
        text = json.dumps(event, allow_nan=False)
        try:
            append_line(os.path.join(self.folder, "events.jsonl"), text.encode("utf-8"))
        except OSError as error:
            note(f"an event could not be written ({error}): {text}")

    def progress(self, done: int, total: int, what: str) -> None:
        self.emit({"event": "progress", "done": done, "of": total, "what": what})

    def stage(self, what: str) -> None:
        """Something that cannot be counted begins; it goes on until the next event."""
        self.emit({"event": "stage", "what": what})

    def blob(self, sha256: Any) -> str:
        """The path of a blob, whose hash is checked before it is used."""
        return store.whole(self.root, sha256)

    def output(self, name: str) -> Dict[str, Any]:
        """How the host asks for a file of this job."""
        path = os.path.join(self.folder, name)
        return {"name": name, "size_bytes": os.path.getsize(path), "sha256": sha256_file(path)}


def start(
    root: str, job: str, request: Dict[str, Any], by: Optional[str] = None, followed: bool = True
) -> Dict[str, Any]:
    """Start a job, detached from this session; a job that is known already is left as it is.

    by: who asks, for others to read. followed: false for a job that is kept, and begins though nobody follows it.
    """
    folder = _folder(root, job)
    _forget_old(root, job)
    _require_room(root, request.get("kind") in VITAL)
    try:
        os.makedirs(folder, exist_ok=True)
        alive = os.open(os.path.join(folder, "alive"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise remote_error(error, f"job {job} cannot be started") from error
    turn.follow(folder)
    try:
        if _may_begin(folder, alive):
            turn.note_asked(folder, request.get("kind"), by, followed)
            _launch(root, folder, alive, request)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise remote_error(error, f"job {job} cannot be started") from error
    finally:
        os.close(alive)
    return {"state": state(root, job)}


def _require_room(root: str, vital: bool) -> None:
    """Raises RemoteError('no-space'); blobs that nothing uses are forgotten first, unless a job may be using them."""
    if not room.has(root):
        with BoardLock(root) as held:
            if held:
                room.make(root, vital=vital)
            elif vital:
                room.give_up_reserve(root)
        room.require(root, vital)


def _may_begin(folder: str, alive: int) -> bool:
    """Take the job's lock, unless its process was started. Another session may be about to start it, or may be killed
    before it does: the link was lost, and the host asks a second time."""
    deadline = time.monotonic() + START_WAIT_S
    while not os.path.exists(os.path.join(folder, "process.json")):
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:  # it may have run to its end before the lock was free
            return not os.path.exists(os.path.join(folder, "process.json"))
    return False


def _launch(root: str, folder: str, alive: int, request: Dict[str, Any]) -> None:
    write_json(os.path.join(folder, "request.json"), request)
    escape, _ = logind.escape()
    with open(os.path.join(folder, "log"), "ab") as log:
        _children.append(
            subprocess.Popen(
                [*escape, sys.executable, "-c", LAUNCH, code_path(), root, folder],
                env=logind.environment() if escape else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(alive,),
                cwd="/",
            )
        )


def state(root: str, job: str) -> str:
    """running | done | failed | lost (its process ended without a result)."""
    folder = _existing(root, job)
    _children[:] = [child for child in _children if child.poll() is None]
    held = is_held(os.path.join(folder, "alive"))
    result = _result(folder)
    if result is not None:
        return "done" if result["ok"] else "failed"
    return "running" if held else "lost"


def poll(root: str, job: str, offset: int, wait_s: float) -> Dict[str, Any]:
    """Events from byte `offset` on, as soon as there are any or the job ended, at the latest after `wait_s`."""
    folder = _existing(root, job)
    turn.follow(folder)
    deadline = time.monotonic() + min(wait_s, 30.0)
    while True:
        now = state(root, job)
        events, end, more = _events(os.path.join(folder, "events.jsonl"), offset)
        if more:
            now = "running"  # the end is told with the last events, so that nobody stops before them
        if events or now != "running" or time.monotonic() >= deadline:
            result = _result(folder) if now in ("done", "failed") else None
            answer: Dict[str, Any] = {"state": now, "events": events, "offset": end, "result": result}
            if now == "lost":
                answer["log"] = _tail(os.path.join(folder, "log"))
            return answer
        time.sleep(0.02)


def read_file(root: str, job: str, name: str, offset: int, limit: int) -> Any:
    """(size in bytes, bytes from `offset` on) of a file that the job wrote."""
    if not is_plain_name(name):
        raise RemoteError("bad-request", f"not a file name: {name!r}")
    path = os.path.join(_existing(root, job), name)
    if not os.path.isfile(path):
        raise RemoteError("not-found", f"job {job} has no file '{name}'")
    with open(path, "rb") as file:
        file.seek(offset)
        return os.path.getsize(path), file.read(limit)


def cancel(root: str, job: str) -> Dict[str, Any]:
    """End a running job and its workers; a job that already ended stays as it is."""
    process = os.path.join(_existing(root, job), "process.json")
    deadline = time.monotonic() + START_WAIT_S
    signals = [signal.SIGTERM, signal.SIGKILL]
    next_signal = 0.0
    while state(root, job) == "running":
        if time.monotonic() > deadline:
            raise RemoteError("crash", f"job {job} cannot be ended: its process neither starts nor dies")
        if signals and time.monotonic() >= next_signal and os.path.exists(process):
            try:
                os.killpg(read_json(process)["pid"], signals.pop(0))
            except ProcessLookupError:
                pass  # it ended meanwhile
            except PermissionError as error:
                raise remote_error(error, f"job {job} is another user's, and cannot be ended by this one") from error
            next_signal = time.monotonic() + TERM_WAIT_S
        time.sleep(0.02)
    return {"state": state(root, job)}


def work(root: str, folder: str) -> None:
    """The detached process: runs the job of `folder` and leaves result.json, whatever happens."""
    signal.signal(signal.SIGTERM, _terminated)
    context = Context(root, folder)
    try:
        try:
            write_json(os.path.join(folder, "process.json"), {"pid": os.getpid(), "began_s": None})
            write_json(os.path.join(folder, UNWRITTEN), _failure("crash", NOT_WRITTEN))
            request = read_json(os.path.join(folder, "request.json"))
            kind = field(request, "kind", str)
            if kind not in KINDS:
                raise RemoteError("bad-request", f"unknown job kind {kind!r}; known: {', '.join(KINDS)}")
            module, function = KINDS[kind]
            work_of = getattr(importlib.import_module(f".{module}", __package__), function)
            with BoardLock(root, context):
                power_mode.recover(root)
                if kind in VITAL:
                    room.make(root, vital=True)
                outcome = {"ok": True, "result": work_of(context, request)}
                room.tidy(root)
            json.dumps(outcome, allow_nan=False)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on it has an outcome, which must be written
    except RemoteError as error:
        outcome = _failure(error.kind, str(error))
    except OSError as error:
        typed = remote_error(error, f"job {os.path.basename(folder)} under {root} failed")
        outcome = _failure(typed.kind, str(typed), traceback.format_exc())
    except BaseException as error:
        outcome = _failure("crash", f"{type(error).__name__}: {error}", traceback.format_exc())
    _leave(root, folder, outcome)


def _leave(root: str, folder: str, outcome: Dict[str, Any]) -> None:
    """Write the outcome. Where the disk does not take it, the reserve is given up; and where it takes nothing at all, a
    word for that case gets the outcome's name: it was written when the job began, and a rename needs no room."""
    path, unwritten = os.path.join(folder, "result.json"), os.path.join(folder, UNWRITTEN)
    for _ in range(2):
        try:
            write_json(path, outcome)
            break
        except OSError as error:
            note(f"the job's outcome could not be written ({error}): {json.dumps(outcome)[:4000]}")
            room.give_up_reserve(root)
    if not os.path.exists(path):
        os.rename(unwritten, path)
    elif os.path.exists(unwritten):
        os.unlink(unwritten)


def _terminated(*_: Any) -> None:
    raise RemoteError("cancelled", "the job was cancelled")


def _failure(kind: str, message: str, trace: str = "") -> Dict[str, Any]:
    return {"ok": False, "error": {"kind": kind, "message": message, "traceback": trace}}


def _folder(root: str, job: str) -> str:
    if not is_plain_name(job):
        raise RemoteError("bad-request", f"not a job name: {job!r}")
    return os.path.join(root, "jobs", job)


def _existing(root: str, job: str) -> str:
    folder = _folder(root, job)
    if not os.path.exists(os.path.join(folder, "request.json")):
        raise RemoteError("not-found", f"there is no job {job} under {root}")
    return folder


def _result(folder: str) -> Any:
    path = os.path.join(folder, "result.json")
    return read_json(path) if os.path.exists(path) else None


def _events(path: str, offset: int) -> Tuple[List[Any], int, bool]:
    """(whole events from byte `offset` on, the byte after them, whether there are more)."""
    if not os.path.exists(path):
        return [], offset, False
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(MAX_EVENT_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    events = [event for event in map(_event, whole.split(b"\n")[:-1]) if event is not None]
    return events, offset + len(whole), len(data) == MAX_EVENT_BYTES


def _event(line: bytes) -> Any:
    """None for what a failing disk left of one: the others can be told all the same."""
    try:
        event = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _tail(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2000))
        return file.read().decode("utf-8", "replace")


def _forget_old(root: str, job: str) -> None:
    """Keep the newest finished jobs only, `job` among them, and as many that hosts will come back for, and of those
    that do not tell: a board's disk is small. The newest were asked for last, whatever the clock says."""
    folders: Dict[Optional[bool], List[Tuple[int, int, str]]] = {True: [], False: [], None: []}
    for name in os.listdir(os.path.join(root, "jobs")):
        folder = os.path.join(root, "jobs", name)
        try:
            if name != job and not is_held(os.path.join(folder, "alive")):
                made = os.stat(folder).st_mtime_ns
                folders[turn.is_kept(folder)].append((turn.number_of(folder), made, folder))
        except FileNotFoundError:
            continue  # another session forgot it
    for found in folders.values():
        for _, _, folder in sorted(found, reverse=True)[KEEP_FINISHED - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)
