"""Entry points on the board: `serve` speaks wire.py over stdin and stdout; status, rollback, confirm and recover
work there without a host.

The archive is compiled at every start, so what only some operations need is imported by them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Tuple

from . import facts, logind, wire
from .files import check_root, code_path, remote_error, sha256_file
from .wire import RemoteError, count, field, seconds

FOLDERS = ("store", "releases", "activations", "jobs")


def _prepare(root: str) -> None:
    check_root(root)
    for name in FOLDERS:
        os.makedirs(os.path.join(root, name), exist_ok=True)


def _hello(root: str, _request: Dict[str, Any], _payload: bytes) -> Any:
    archive = code_path()
    return {
        "wire": wire.VERSION,
        "agent_sha256": sha256_file(archive) if os.path.isfile(archive) else None,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "root": root,
        "pid": os.getpid(),
        "warning": logind.escape()[1],
        "board": facts.identity(),
    }


def _facts(_root: str, _request: Dict[str, Any], _payload: bytes) -> Any:
    return facts.collect()


def _clock(_root: str, _request: Dict[str, Any], _payload: bytes) -> Any:
    import time

    return {"monotonic_s": time.monotonic()}


def _environment(root: str, _request: Dict[str, Any], _payload: bytes) -> Any:
    from . import environment

    return environment.collect(root)


def _blob_stat(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import store

    return {sha256: store.stat(root, sha256) for sha256 in field(request, "sha256", list)}


def _blob_put(root: str, request: Dict[str, Any], payload: bytes) -> Any:
    from . import store

    size, offset = count(request, "size_bytes"), count(request, "offset")
    return store.put(root, field(request, "sha256", str), size, offset, payload)


def _job_start(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs

    return jobs.start(root, field(request, "job", str), field(request, "request", dict))


def _job_poll(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs

    return jobs.poll(root, field(request, "job", str), count(request, "offset"), seconds(request, "wait_s"))


def _job_file(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs

    offset, limit = count(request, "offset"), min(count(request, "limit"), wire.CHUNK_BYTES)
    size, data = jobs.read_file(root, field(request, "job", str), field(request, "name", str), offset, limit)
    return {"size_bytes": size}, data


def _job_cancel(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    from . import jobs

    return jobs.cancel(root, field(request, "job", str))


def _status(root: str, request: Dict[str, Any], _payload: bytes) -> Any:
    return _recovered_status(root, field(request, "verify", bool))


def _recovered_status(root: str, verify: bool) -> Dict[str, Any]:
    """Status, after an overdue return to the old release; while a job works, the job sees to that itself."""
    from . import jobs, power_mode, releases

    recovered = None
    if os.access(root, os.W_OK):  # a root that cannot be written can still be looked at
        with jobs.BoardLock(root) as held:
            recovered = releases.recover(root) if held else None
            if held:
                power_mode.recover(root)
    return dict(releases.status(root, verify), recovered=recovered)


OPERATIONS: Dict[str, Callable[[str, Dict[str, Any], bytes], Any]] = {
    "hello": _hello,
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


def answer(root: str, request: Dict[str, Any], payload: bytes) -> Tuple[Dict[str, Any], bytes]:
    """The reply to one request, errors included."""
    number = None
    trace = ""
    try:
        number, op = count(request, "id"), field(request, "op", str)
        if op not in OPERATIONS:
            raise RemoteError("bad-request", f"unknown op {op!r}; known: {', '.join(OPERATIONS)}")
        result = OPERATIONS[op](root, request, payload)
        data = b""
        if isinstance(result, tuple):
            result, data = result
        return {"id": number, "ok": True, "result": result}, data
    except RemoteError as error:
        kind, message = error.kind, str(error)
    except OSError as error:
        typed = remote_error(error, f"'{request.get('op')}' failed")
        kind, message, trace = typed.kind, str(typed), _trace()
    except Exception as error:
        kind, message, trace = "crash", f"{type(error).__name__}: {error}", _trace()
    return _refusal(number, kind, message, trace), b""


def _trace() -> str:
    import traceback

    return traceback.format_exc()


def _refusal(number: Any, kind: str, message: str, trace: str = "") -> Dict[str, Any]:
    return {"id": number, "ok": False, "error": {"kind": kind, "message": message, "traceback": trace}}


def serve(root: str, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the stream ends. A root that cannot be used answers every request with the reason."""
    sink.write(b"\n" + wire.SENTINEL + b"\n")  # a banner may have left its last line open
    sink.flush()
    unusable = _why_unusable(root)
    while True:
        try:
            request, payload = wire.receive(lambda: source.readline(wire.MAX_LINE_BYTES), source.read)
            if unusable is not None:
                reply, data = _refusal(request.get("id"), unusable.kind, str(unusable)), b""
            else:
                reply, data = answer(root, request, payload)
            sink.write(wire.encode(reply, data))
            sink.flush()
        except (EOFError, BrokenPipeError):
            return
        except wire.WireError as error:  # where the next message begins cannot be known
            sink.write(wire.encode(_refusal(None, "bad-request", str(error))))
            sink.flush()
            return


def _why_unusable(root: str) -> Optional[RemoteError]:
    try:
        _prepare(root)
    except RemoteError as error:
        return error
    except OSError as error:
        return remote_error(error, f"the board's root '{root}' cannot be prepared")
    return None


def _on_board(root: str, command: str) -> Any:
    """status, rollback, confirm and recover, without a host."""
    from . import jobs, releases

    _prepare(root)
    if command == "rollback":
        job = f"rollback-{os.urandom(6).hex()}"
        jobs.start(root, job, {"kind": "rollback"})
        offset = 0
        while True:
            now = jobs.poll(root, job, offset, 5.0)
            offset = now["offset"]
            if now["state"] != "running":
                return now
    if command == "confirm":  # without the board's lock: the flash that waits for it holds that
        return releases.confirm(root)
    return _recovered_status(root, verify=True)


def _chosen(arguments: List[str]) -> Tuple[str, str]:
    """(command, root)."""
    if len(arguments) == 3 and arguments[:2] == ["serve", "--root"]:  # how every host begins
        command, root = arguments[0], arguments[2]
    else:
        import argparse

        parser = argparse.ArgumentParser(prog="edgeopt-agent", description="What edgeopt runs on a board.")
        parser.add_argument("command", choices=["serve", "status", "rollback", "confirm", "recover"])
        parser.add_argument("--root", required=True, help="the board's edgeopt folder")
        given = parser.parse_args(arguments)
        command, root = given.command, given.root
    return command, os.path.abspath(os.path.expanduser(root))


def main(arguments: List[str]) -> None:
    command, root = _chosen(arguments)
    replies = os.fdopen(os.dup(1), "wb")  # what hooks and runtimes print to stdout must not reach the answer
    os.dup2(2, 1)
    if command == "serve":
        serve(root, sys.stdin.buffer, replies)
        return
    try:
        outcome = _on_board(root, command)
    except (RemoteError, OSError) as error:
        print(f"edgeopt-agent: {error}", file=sys.stderr)
        sys.exit(4)
    replies.write(json.dumps(outcome, indent=2, sort_keys=True).encode("utf-8") + b"\n")
    replies.flush()
    if command == "rollback" and outcome["state"] != "done":
        sys.exit(4)
    if command == "status" and any(outcome[name] and not outcome[name]["whole"] for name in ("current", "previous")):
        sys.exit(5)
