"""Entry points on the board: `serve` speaks wire.py over stdin and stdout; status, rollback, confirm and recover
work there without a host.

The archive is compiled at every start. What must be there to say hello is here and in wire, root and facts, which
import little; operations.py has everything else.
"""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO, Dict, List, Optional, Tuple

from . import facts, wire
from .root import prepare
from .wire import RemoteError, count, field


def _hello(root: str) -> Dict[str, Any]:
    name, _, kind = os.path.abspath(__file__).split("/")[-3].rpartition(".")
    return {
        "wire": wire.VERSION,
        "agent_sha256": name if kind == "pyz" else None,  # the host had that checked before it started this
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "root": root,
        "pid": os.getpid(),
        "board": facts.identity(),
        "hardware": facts.hardware(),
    }


def answer(root: str, request: Dict[str, Any], payload: bytes) -> Tuple[Dict[str, Any], bytes]:
    """The reply to one request, errors included."""
    number = None
    trace = ""
    try:
        number, op = count(request, "id"), field(request, "op", str)
        if op == "hello":
            return {"id": number, "ok": True, "result": _hello(root)}, b""
        from . import operations

        result, data = operations.do(root, op, request, payload)
        return {"id": number, "ok": True, "result": result}, data
    except RemoteError as error:
        kind, message = error.kind, str(error)
    except OSError as error:
        typed = _typed(error, f"'{request.get('op')}' failed")
        kind, message, trace = typed.kind, str(typed), _trace()
    except Exception as error:
        kind, message, trace = "crash", f"{type(error).__name__}: {error}", _trace()
    return _refusal(number, kind, message, trace), b""


def _typed(error: OSError, doing: str) -> RemoteError:
    from .files import remote_error

    return remote_error(error, doing)


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
            sink.write(_encoded(reply, data))
            sink.flush()
        except (EOFError, BrokenPipeError):
            return
        except wire.WireError as error:  # where the next message begins cannot be known
            sink.write(wire.encode(_refusal(None, "bad-request", str(error))))
            sink.flush()
            return


def _encoded(reply: Dict[str, Any], data: bytes) -> bytes:
    """A file that was damaged may hold a number that no answer can, and its answer must not end the session."""
    try:
        return wire.encode(reply, data)
    except ValueError as error:
        return wire.encode(_refusal(reply["id"], "crash", f"the answer cannot be written: {error}"))


def _why_unusable(root: str) -> Optional[RemoteError]:
    try:
        prepare(root)
    except RemoteError as error:
        return error
    except OSError as error:
        return _typed(error, f"the board's root '{root}' cannot be prepared")
    return None


def _chosen(arguments: List[str]) -> Tuple[str, str, Optional[str]]:
    """(command, root, the release that `confirm` means)."""
    if len(arguments) == 3 and arguments[:2] == ["serve", "--root"]:  # how every host begins
        return arguments[0], arguments[2], None
    import argparse

    parser = argparse.ArgumentParser(prog="edgeopt-agent", description="What edgeopt runs on a board.")
    parser.add_argument("command", choices=["serve", "status", "rollback", "confirm", "recover"])
    parser.add_argument("--root", required=True, help="the board's edgeopt folder")
    parser.add_argument("--release", help="with confirm: the release that is meant, else whichever is current")
    given = parser.parse_args(arguments)
    if given.release is not None and given.command != "confirm":
        parser.error("--release belongs to confirm")
    return given.command, given.root, given.release


def main(arguments: List[str]) -> None:
    command, root, release = _chosen(arguments)
    root = os.path.abspath(os.path.expanduser(root))
    replies = os.fdopen(os.dup(1), "wb")  # what hooks and runtimes print to stdout must not reach the answer
    os.dup2(2, 1)
    if command == "serve":
        serve(root, sys.stdin.buffer, replies)
    else:
        from . import operations

        operations.on_board(root, command, release, replies)
