"""Blobs to a board and files of its jobs from there, piece by piece; what the board says of them is not believed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from edgeopt_agent import replies, wire

from ..errors import AgentFailure, IntegrityError, ProtocolError
from .pace import Pace

MOST_DAMAGED = 2  # times that a blob may arrive damaged
MOST_STANDSTILLS = 20  # pieces after which the board has no more of a blob than before

Request = Callable[..., Any]
Event = Callable[[dict[str, Any]], None]


def send(request: Request, data: bytes, what: str, address: str, on_event: Event, pace: Pace) -> str:
    """Put a blob on the board, from the byte where an earlier try stopped; its SHA-256. request: Session.request."""
    sha256 = hashlib.sha256(data).hexdigest()
    held = _held(request, sha256, address)
    damaged = standstills = 0
    while not held["whole"]:
        offset = held["have"]
        if offset > len(data) and not damaged:  # of no upload of this: the board drops it when the first byte comes
            damaged, offset = 1, 0
        if offset > len(data) or standstills > MOST_STANDSTILLS:
            raise ProtocolError(f"{address} says it has {offset} of {len(data)} bytes of {what}")
        on_event({"event": "progress", "what": f"sending {what}", "done": offset, "of": len(data)})
        chunk = data[offset : offset + pace.size_bytes]
        began = time.monotonic()
        try:
            held = request("blob.put", chunk, sha256=sha256, size_bytes=len(data), offset=offset)
            pace.took(held["have"] - offset, time.monotonic() - began)
        except AgentFailure as error:
            damaged += error.kind == "integrity"
            if error.kind != "integrity" or damaged > MOST_DAMAGED:
                raise
            held = {"have": 0, "whole": False}
        standstills += held["have"] <= offset
        if not held["whole"] and held["have"] == len(data):
            held = _held(request, sha256, address)
    return sha256


def _held(request: Request, sha256: str, address: str) -> dict[str, Any]:
    """{"have": bytes of a blob on the board, "whole"}."""
    found: dict[str, dict[str, Any]] = request("blob.stat", sha256=[sha256])
    if sha256 not in found:
        raise ProtocolError(f"{address}: the reply to 'blob.stat' says nothing of {sha256[:12]}")
    return found[sha256]


def fetch(request: Request, job: str, entry: dict[str, Any], address: str, on_event: Event) -> bytes:
    """A file that a job wrote, checked by its hash. entry: replies.OUTPUT, as the job's result has it."""
    name, size = entry["name"], entry["size_bytes"]
    if size > replies.MOST_FILE_BYTES:
        raise ProtocolError(
            f"{address}: file {name} of job {job} is said to have {size} bytes, at most {replies.MOST_FILE_BYTES} are "
            "allowed"
        )
    data = bytearray()
    while len(data) < size:
        limit = min(wire.CHUNK_BYTES, size - len(data))
        now, chunk = request("job.file", job=job, name=name, offset=len(data), limit=limit)
        if len(chunk) != limit or now["size_bytes"] != size:
            raise ProtocolError(
                f"{address}: file {name} of job {job} is not as announced: {len(chunk)} bytes where {limit} were asked "
                f"for, {now['size_bytes']} in all, {size} announced"
            )
        data += chunk
        on_event({"event": "progress", "what": f"fetching {name}", "done": len(data), "of": size})
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise IntegrityError(f"{address}: file {name} of job {job} does not have its announced hash")
    return bytes(data)
