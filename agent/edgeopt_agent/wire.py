"""The contract between host and board: framing, operations, error kinds. Units are SI and stand in the names.

Framing: every message is one JSON object on one line. A message whose `bytes` is n is followed by n raw bytes.
The agent first prints SENTINEL on a line of its own, so that login banners and noisy shells before it are skipped.

Request   {"id": 7, "op": "blob.put", ...}
Reply     {"id": 7, "ok": true, "result": {...}}  or  {"id": 7, "ok": false, "error": {"kind", "message", "traceback"}}

Operations
  hello                                           -> wire, agent_sha256 (by its name), python, root, pid,
                                                     board (facts.identity()), hardware (facts.hardware())
  facts                                           -> board facts (facts.py)
  clock                                           -> monotonic_s, the clock of a job's marks
  environment                                     -> what wheels must fit, and what is set up (environment.py)
  blob.stat  sha256[]                             -> {sha256: {"have": bytes held, "whole": bool}}
  blob.put   sha256 size_bytes offset + raw bytes -> {"have", "whole"}; appends at `offset`, checked when whole
  job.start  job request [by followed]            -> {"state", "warning": text or null}; the same job twice is one job;
                                                     by: who asks; followed: false for one that begins unfollowed
  job.poll   job offset wait_s                    -> {"state", "events", "offset", "result"}
  job.file   job name offset limit                -> {"size_bytes"} + raw bytes
  job.cancel job                                  -> {"state"}
  status     verify                               -> releases.status(), "recovered", "jobs": turn.present()
Job requests carry `kind`, one of jobs.KINDS. An artifact in them is
  {"file", "files": {name: sha256}, "runtime", "threads", "preprocess": steps per input, "options": the runtime's own};
`file` is the one of `files` that the runtime is told to load; it finds the others beside it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, Tuple

VERSION = 1
SENTINEL = b"edgeopt-wire-%d" % VERSION
MAX_LINE_BYTES = 8 << 20
CHUNK_BYTES = 256 << 10
MOST_DIGITS = 300  # of a whole number

ERROR_KINDS = (
    "bad-request",  # the host sent what this version does not know
    "not-found",  # a job, blob or release that is not here
    "no-space",  # the board's disk is full
    "read-only",  # the root cannot be written
    "unsupported-root",  # no symlinks, rename or fsync there
    "missing-runtime",  # the runtime's package is not installed for this Python
    "fallback",  # the accelerator that was asked for is not there, or cannot be used
    "runtime",  # the runtime refused the model or failed while running it
    "integrity",  # a hash does not match
    "health",  # the health check failed; nothing was activated
    "hook",  # a hook of the board's owner failed
    "no-release",  # nothing to roll back to
    "no-sensor",  # no power sensor, or not the one that is asked for
    "cancelled",
    "crash",  # anything else: see the traceback
)


class WireError(Exception):
    """What arrived is not a message of this contract."""


class RemoteError(Exception):
    """Raised on the board with one of ERROR_KINDS; travels to the host as it is."""

    def __init__(self, kind: str, message: str) -> None:
        assert kind in ERROR_KINDS, kind
        super().__init__(message)
        self.kind = kind


def encode(message: Dict[str, Any], payload: bytes = b"") -> bytes:
    """One message as bytes. NaN and infinity are refused: JSON has none."""
    assert "bytes" not in message, "'bytes' announces the payload"
    if payload:
        message = dict(message, bytes=len(payload))
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("utf-8") + b"\n" + payload


def decode(line: bytes) -> Dict[str, Any]:
    """The object on one line. Raises WireError."""
    try:
        message = parse(line.decode("utf-8"))
    except ValueError as error:
        raise WireError(f"not a JSON line: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise WireError(f"not a JSON object: {line[:80]!r}")
    size = message.get("bytes", 0)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_LINE_BYTES:
        raise WireError(f"'bytes' must be an integer from 0 to {MAX_LINE_BYTES}, not {size!r}")
    return message


def receive(read_line: Callable[[], bytes], read_exactly: Callable[[int], bytes]) -> Tuple[Dict[str, Any], bytes]:
    """The next message and its payload. Raises EOFError when the stream ends before a whole message, WireError."""
    line = read_line()
    if not line.endswith(b"\n"):
        if len(line) >= MAX_LINE_BYTES:
            raise WireError(f"a line of more than {MAX_LINE_BYTES} bytes")
        raise EOFError("the stream ended")
    message = decode(line)
    size = message.get("bytes", 0)
    payload = read_exactly(size) if size else b""
    if len(payload) != size:
        raise EOFError("the stream ended inside a payload")
    return message, payload


def field(message: Dict[str, Any], name: str, kind: type) -> Any:
    """A required field of a request, of the type told. Raises RemoteError('bad-request')."""
    value = message.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RemoteError("bad-request", f"'{name}' must be {kind.__name__}, not {value!r}")
    return value


def count(message: Dict[str, Any], name: str) -> int:
    """A required integer of a request, 0 or more. Raises RemoteError('bad-request')."""
    value: int = field(message, name, int)
    if value < 0:
        raise RemoteError("bad-request", f"'{name}' must be 0 or more, not {value!r}")
    return value


def seconds(message: Dict[str, Any], name: str) -> float:
    """A required duration of a request. Raises RemoteError('bad-request')."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise RemoteError("bad-request", f"'{name}' must be a number of seconds, not {value!r}")
    return float(value)


def parse(text: str) -> Any:
    """The value of a JSON text that came from elsewhere. Raises ValueError, also for NaN, for infinity (1e999 is read
    as that), for whole numbers of thousands of digits and for what is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_countable)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:40]} is more than a number can hold")
    return value


def _countable(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def is_sha256(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) is not None


def is_plain_name(text: Any) -> bool:
    """True for a file or job name that cannot leave its folder."""
    return isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}", text) is not None
