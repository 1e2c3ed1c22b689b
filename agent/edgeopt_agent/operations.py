"""What the agent does when it is asked: by a host (wire.py), or on the board itself, without one."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO, Callable, Dict, Optional, Tuple

from . import requests, wire
from .root import prepare
from .wire import RemoteError


def do(root: str, op: str, request: Dict[str, Any], payload: bytes) -> Tuple[Any, bytes]:
    """(result, payload of the reply). Raises RemoteError, OSError."""
    if op not in OPERATIONS:
        raise RemoteError("bad-request", f"unknown op {op!r}; known: {', '.join(['hello', *OPERATIONS])}")
    requests.require(requests.REQUESTS[op], request, f"'{op}'")
    if sys.flags.no_site and "site" not in sys.modules:  # hello needs no packages; what runtimes are there, these tell
        import site

        site.main()
    result = OPERATIONS[op](root, request, payload)
    return result if isinstance(result, tuple) else (result, b"")


def _facts(_root: str, _request: Dict[str, Any], _payload: bytes) -> Any:
    from . import facts

    return facts.collect()


def _clock(_root: str, _request: Dict[str, Any], _payload: bytes) -> Any:
    import time

    return {"monotonic_s": time.monotonic()}


def _environment(root: str, _request: Dict[str, Any], _payload: bytes) -> Any:
    from . import environment

    return environment.collect(root)


def _blob_stat(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import store

    return {sha256: store.stat(root, sha256) for sha256 in request["sha256"]}


def _blob_put(root: str, request: Dict[str, Any], payload: bytes) -> Any:
    from . import room, store, turn

    size, offset = request["size_bytes"], request["offset"]
    room_needed = size - offset + store.SPARE_BYTES
    if not room.has(root, room_needed):
        with turn.BoardLock(root) as held:
            if held:  # a job that works now may use what nothing else needs
                room.make(root, room_needed)
    return store.put(root, request["sha256"], size, offset, payload)


def _job_start(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs, logind

    requests.job_request(request["request"])
    followed = request.get("followed") is not False
    started = jobs.start(root, request["job"], request["request"], request.get("by"), followed)
    return dict(started, warning=logind.escape()[1])


def _job_poll(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs

    return jobs.poll(root, request["job"], request["offset"], request["wait_s"])


def _job_file(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs

    limit = min(request["limit"], wire.CHUNK_BYTES)
    size, data = jobs.read_file(root, request["job"], request["name"], request["offset"], limit)
    return {"size_bytes": size}, data


def _job_cancel(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs

    return jobs.cancel(root, request["job"])


def _status(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    return _recovered_status(root, request["verify"])


def _recovered_status(root: str, verify: bool) -> Dict[str, Any]:
    """Status, after an overdue return to the old release; while a job works, the job sees to that itself."""
    from . import power_mode, releases, turn

    recovered = None
    if os.access(root, os.W_OK):  # a root that cannot be written can still be looked at
        with turn.BoardLock(root) as held:
            recovered = releases.recover(root) if held else None
            if held:
                power_mode.recover(root)
    return dict(releases.status(root, verify), recovered=recovered, jobs=turn.present(root))


OPERATIONS: Dict[str, Callable[[str, Dict[str, Any], bytes], Any]] = {
    "facts": _facts,
    "clock": _clock,
    "environment": _environment,
    "blob.stat": _blob_stat,
    "blob.put": _blob_put,
    "job.start": _job_start,
    "job.poll": _job_poll,
    "job.file": _job_file,
    "job.cancel": _job_cancel,
    "status": _status,
}


def on_board(root: str, command: str, release: Optional[str], replies: BinaryIO) -> None:
    """status, rollback, confirm and recover, without a host; ends the process where that went wrong."""
    try:
        outcome = _outcome(root, command, release)
    except (RemoteError, OSError) as error:
        print(f"edgeopt-agent: {error}", file=sys.stderr)
        sys.exit(4)
    replies.write(json.dumps(outcome, indent=2, sort_keys=True).encode("utf-8") + b"\n")
    replies.flush()
    if command == "rollback" and outcome["state"] != "done":
        sys.exit(4)
    if command == "status" and any(outcome[name] and not outcome[name]["whole"] for name in ("current", "previous")):
        sys.exit(5)


def _outcome(root: str, command: str, release: Optional[str]) -> Any:
    from . import jobs, releases

    prepare(root)
    if command == "rollback":
        job = f"rollback-{os.urandom(6).hex()}"
        jobs.start(root, job, {"kind": "rollback"}, "the board itself")
        offset = 0
        while True:
            now = jobs.poll(root, job, offset, 5.0)
            offset = now["offset"]
            if now["state"] != "running":
                return now if now["state"] == "done" else dict(now, **releases.status(root, verify=False))
    if command == "confirm":  # without the board's lock: the flash that waits for it holds that
        return releases.confirm(root, release)
    return _recovered_status(root, verify=True)
