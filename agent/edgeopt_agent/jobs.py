"""Jobs: a folder each (request.json, events.jsonl, result.json), run detached, so a lost link loses nothing.

One job works at a time: they share the board, and a measurement beside another would be false. The lock is flock's,
so it is gone with its process, however that ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from typing import Any, Dict, List, Optional

from . import store
from .files import read_json, remote_error, sha256_file, write_json
from .wire import RemoteError, is_plain_name
from .worker import code_path

KEEP_FINISHED = 20
MAX_EVENT_BYTES = 1 << 20
LAUNCH = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.jobs import work; work(*sys.argv[2:])"


class Context:
    """What a running job is given."""

    def __init__(self, root: str, folder: str) -> None:
        self.root = root
        self.folder = folder

    def emit(self, event: Dict[str, Any]) -> None:
        with open(os.path.join(self.folder, "events.jsonl"), "ab", buffering=0) as file:
            file.write(json.dumps(event, allow_nan=False).encode("utf-8") + b"\n")

    def progress(self, done: int, total: int, what: str) -> None:
        self.emit({"event": "progress", "done": done, "of": total, "what": what})

    def blob(self, sha256: Any) -> str:
        """The path of a blob, whose hash is checked before it is used."""
        return store.whole(self.root, sha256)

    def output(self, name: str) -> Dict[str, Any]:
        """How the host asks for a file of this job."""
        path = os.path.join(self.folder, name)
        return {"name": name, "size_bytes": os.path.getsize(path), "sha256": sha256_file(path)}


def start(root: str, job: str, request: Dict[str, Any]) -> Dict[str, Any]:
    """Start a job, detached from this session; a job that is known already is left as it is."""
    folder = _folder(root, job)
    if _was_begun(folder):
        return {"state": state(root, job)}
    try:
        _forget_old(root)
        os.makedirs(folder, exist_ok=True)
        alive = os.open(os.path.join(folder, "alive"), os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(alive, fcntl.LOCK_EX)
        write_json(os.path.join(folder, "request.json"), request)
        with open(os.path.join(folder, "log"), "ab") as log:
            subprocess.Popen(
                [sys.executable, "-c", LAUNCH, code_path(), root, folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(alive,),
                cwd="/",
            )
        os.close(alive)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise remote_error(error, f"job {job} cannot be started") from error
    return {"state": "running"}


def state(root: str, job: str) -> str:
    """running | done | failed | lost (its process ended without a result)."""
    folder = _existing(root, job)
    held = _is_held(os.path.join(folder, "alive"))
    result = _result(folder)
    if result is not None:
        return "done" if result["ok"] else "failed"
    return "running" if held else "lost"


def poll(root: str, job: str, offset: int, wait_s: float) -> Dict[str, Any]:
    """Events from byte `offset` on, as soon as there are any or the job ended, at the latest after `wait_s`."""
    folder = _existing(root, job)
    deadline = time.monotonic() + min(wait_s, 30.0)
    while True:
        now = state(root, job)
        events, end = _events(os.path.join(folder, "events.jsonl"), offset)
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
    folder = _existing(root, job)
    deadline = time.monotonic() + 10.0
    signalled = False
    while state(root, job) == "running" and time.monotonic() < deadline:
        if not signalled and os.path.exists(os.path.join(folder, "process.json")):
            os.killpg(read_json(os.path.join(folder, "process.json"))["pid"], signal.SIGTERM)
            signalled = True
        time.sleep(0.02)
    return {"state": state(root, job)}


def work(root: str, folder: str) -> None:
    """The detached process: runs the job of `folder` and leaves result.json, whatever happens."""
    from . import bench, releases

    kinds = {"bench": bench.run, "infer": bench.infer, "activate": releases.activate, "rollback": releases.rollback_job}
    signal.signal(signal.SIGTERM, _terminated)
    write_json(os.path.join(folder, "process.json"), {"pid": os.getpid()})
    context = Context(root, folder)
    try:
        request = read_json(os.path.join(folder, "request.json"))
        if request.get("kind") not in kinds:
            raise RemoteError("bad-request", f"unknown job kind {request.get('kind')!r}; known: {', '.join(kinds)}")
        with BoardLock(root, context):
            outcome = {"ok": True, "result": kinds[request["kind"]](context, request)}
    except RemoteError as error:
        outcome = _failure(error.kind, str(error))
    except OSError as error:
        typed = remote_error(error, f"job {os.path.basename(folder)} failed")
        outcome = _failure(typed.kind, str(typed), traceback.format_exc())
    except BaseException as error:
        outcome = _failure("crash", f"{type(error).__name__}: {error}", traceback.format_exc())
    write_json(os.path.join(folder, "result.json"), outcome)


class BoardLock:
    """Held while a job works. With a context it waits, saying so; without one it only tries, and tells if it holds."""

    def __init__(self, root: str, context: Optional[Context] = None) -> None:
        self._path = os.path.join(root, "lock")
        self._context = context

    def __enter__(self) -> bool:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._context is None:
                return False
            self._context.emit({"event": "waiting", "what": "another job is running on this board"})
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        return True

    def __exit__(self, *_: Any) -> None:
        os.close(self._handle)


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


def _was_begun(folder: str) -> bool:
    """False also for a job whose session was killed between its request and its process."""
    asked = os.path.exists(os.path.join(folder, "request.json"))
    return asked and (os.path.exists(os.path.join(folder, "process.json")) or _is_held(os.path.join(folder, "alive")))


def _is_held(path: str) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def _result(folder: str) -> Any:
    path = os.path.join(folder, "result.json")
    return read_json(path) if os.path.exists(path) else None


def _events(path: str, offset: int) -> Any:
    if not os.path.exists(path):
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(MAX_EVENT_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line.decode("utf-8")) for line in whole.splitlines()], offset + len(whole)


def _tail(path: str) -> str:
    with open(path, "rb") as file:
        return file.read()[-2000:].decode("utf-8", "replace")


def _forget_old(root: str) -> None:
    """Keep the newest finished jobs only: a board's disk is small."""
    jobs: List[str] = sorted(
        (entry.path for entry in os.scandir(os.path.join(root, "jobs")) if entry.is_dir()), key=os.path.getmtime
    )
    for folder in jobs[: max(0, len(jobs) - KEEP_FINISHED)]:
        if not _is_held(os.path.join(folder, "alive")):
            shutil.rmtree(folder)
