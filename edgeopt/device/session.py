"""Requests, blobs and jobs over one transport. Only here is anything tried again, under one deadline."""

from __future__ import annotations

import dataclasses
import getpass
import os
import shlex
import socket
import time
from types import TracebackType
from typing import Any

from edgeopt_agent import replies, wire

from ..errors import AgentFailure, DeviceUnreachable, EdgeoptError, IntegrityError, ProtocolError
from . import Pipe, Transport, launch, transfer
from .archive import agent_archive
from .journal import Journal
from .kept_jobs import CHANGES, KeptJobs
from .launch import Event as Event
from .pace import LEAST_BYTES, Pace

REPLY_TIMEOUT_S = 60.0
POLL_S = 5.0
CANCEL_PATIENCE_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
SAY_AGAIN_S = 30.0
FOLLOWING = ("job.start", "job.poll")  # where these give up, a job is left on the board


def ignore(_event: dict[str, Any]) -> None:
    """For callers that show no progress."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where edgeopt lives on a board: its root folder and the Python that has the runtimes."""

    root: str
    python: str = "python3"


class _Lost:
    """A link that is lost, and what was said of it: every reason once, and one again when SAY_AGAIN_S have passed."""

    def __init__(self, patience_s: float, on_event: Event) -> None:
        self._until = time.monotonic() + patience_s
        self._on_event = on_event
        self._said: set[str] = set()
        self._said_at = 0.0

    def left_s(self) -> float:
        return self._until - time.monotonic()

    def say(self, reason: str) -> None:
        now = time.monotonic()
        if reason in self._said and now - self._said_at < SAY_AGAIN_S:
            return
        left = f"{self.left_s():.0f} s"
        trying = f"trying again, {left} left" if self._said else f"trying again for {left}; Ctrl-C gives up"
        self._said.add(reason)
        self._said_at = now
        self._on_event({"event": "waiting", "what": f"link lost ({reason}); {trying}"})


class Session:
    """A conversation with the agent on one board. Every operation may be repeated, so a lost link costs only time.

    `patience_s`: how long a link that was lost in the middle may stay lost before DeviceUnreachable is raised.
    `reply_s`: how long the board may be silent before the link counts as lost.
    """

    def __init__(
        self,
        transport: Transport,
        place: Placement,
        patience_s: float = 120.0,
        on_event: Event = ignore,
        reply_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        self._transport = transport
        self._place = place
        self._patience_s = patience_s
        self._reply_s = reply_s
        self._on_event = on_event
        self._pipe: Pipe | None = None
        self._buffer = b""
        self._number = 0
        self._kept = KeptJobs(self)
        self._warned = False
        self._pace = Pace(wire.CHUNK_BYTES, reply_s)
        self.spelled = f"{self.address} --root {shlex.quote(place.root)}"  # how a command names this board
        try:
            self.hello = self._connect()
        except BaseException:
            self._drop()
            self._transport.close()
            raise

    @property
    def address(self) -> str:
        return self._transport.address

    @property
    def stopping(self) -> str:
        """The command that ends what works on the board."""
        return f"`edgeopt device stop {self.spelled}`"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        self._transport.close()

    def request(self, op: str, payload: bytes = b"", timeout_s: float | None = None, **fields: Any) -> Any:
        """The result of one operation; with a payload in the reply, (result, bytes).

        Raises AgentFailure (the board's side said no), ProtocolError, DeviceUnreachable.
        """
        lost: _Lost | None = None
        pause = FIRST_PAUSE_S
        while True:
            try:
                if self._pipe is None:
                    self.hello = self._connect()
                result = self._exchange(op, payload, timeout_s or self._reply_s, fields)
                if op == "job.start":
                    self._warn(result["warning"])
                return result
            except DeviceUnreachable as error:
                self._drop()
                self._transport.close()  # and anew: its server may count the lost session as open, and allow one
                lost = lost or _Lost(self._patience_s, self._on_event)
                if lost.left_s() < 0:
                    again = "" if op in FOLLOWING else "; run the same command again when the board can be reached"
                    raise DeviceUnreachable(f"{error}; gave up after {self._patience_s:g} s{again}") from error
                lost.say(str(error))
                payload = payload[: max(LEAST_BYTES, len(payload) // 4)]  # it may have been too much at once
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _warn(self, warning: str | None) -> None:
        if warning and not self._warned:
            self._warned = True
            self.say(f"{self.address}: {warning}")

    def facts(self) -> dict[str, Any]:
        """The board's identity and abilities (edgeopt_agent.facts)."""
        result: dict[str, Any] = self.request("facts")
        return result

    def status(self, verify: bool = True) -> dict[str, Any]:
        result: dict[str, Any] = self.request("status", timeout_s=300.0, verify=verify)
        return result

    def send(self, data: bytes, what: str = "data") -> str:
        """Put a blob on the board, from the byte where an earlier try stopped; its SHA-256."""
        return transfer.send(self.request, data, what, self.address, self._on_event, self._pace)

    def run(self, request: dict[str, Any], limit_s: float = 86400.0) -> tuple[str, dict[str, Any]]:
        """Run a job to its end: (job id, result). It goes on while the link is down, but a job that still waits for its
        turn begins only while it is followed; whatever ends this here cancels it, unless it is kept.

        Raises AgentFailure with the job's own error, or when it ended without a result or passed `limit_s`.
        """
        job = self._kept.take(request)
        try:
            self.request("job.start", job=job, request=request, by=_caller(), followed=not self._kept.lasting)
            self._kept.started(job)
            return job, self._checked(job, request["kind"], self._followed(job, time.monotonic() + limit_s, limit_s))
        except DeviceUnreachable as error:
            raise DeviceUnreachable(f"{error}. {self._kept.unfollowed(job, self.stopping)}") from error
        except (AgentFailure, IntegrityError):  # it has ended, or never began
            raise
        except BaseException as error:
            self._drop()  # an interrupt may have cut a message in two
            interrupted = isinstance(error, KeyboardInterrupt)
            if not (self._kept.left(job) if interrupted else self._kept.lasting):
                self.cancel(job)
            raise

    def jobs(self) -> list[dict[str, Any]]:
        """Those that work or wait on the board, in the order of asking: {"job", "kind", "by", "waits", "for_s",
        "followed"} (edgeopt_agent.turn.present)."""
        found: list[dict[str, Any]] = self.status(verify=False)["jobs"]
        return found

    def stop(self, job: str) -> str:
        """End a job, whoever asked for it: "done" and "failed" where it had ended by itself, else how it ended."""
        state: str = self.request("job.cancel", job=job)["state"]
        return state

    def keep(self, journal: Journal | None) -> None:
        """From here on jobs are those of the journal, and Ctrl-C leaves them on the board. Raises ConfigError."""
        if journal is not None:
            journal.require_board({**self.hello["board"], "root": self._place.root})
        self._kept = KeptJobs(self, journal)

    def stop_kept(self) -> list[str]:
        """End the journal's jobs that may still run; their ids."""
        return self._kept.stop()

    def pause(self, seconds: float) -> None:
        """Sleep, unless a journal has the next job already."""
        if not self._kept.has_next():
            time.sleep(seconds)

    def _followed(self, job: str, deadline: float, limit_s: float) -> dict[str, Any]:
        offset = count = 0
        while True:
            now = self.request("job.poll", job=job, offset=offset, wait_s=POLL_S)
            count += len(now["events"])
            if now["offset"] < offset or count > replies.MOST_EVENTS:
                raise ProtocolError(
                    f"{self.address}: the reply to 'job.poll' of job {job} is not one: byte {now['offset']} after "
                    f"{offset}, {count} events, at most {replies.MOST_EVENTS} are allowed"
                )
            offset = now["offset"]
            for event in now["events"]:
                if event.get("behind"):
                    event = {**event, "what": f"{event['what']}; {self.stopping} ends that one"}
                self._on_event(event)
            if now["state"] != "running":
                return self._ended(job, now)
            if time.monotonic() > deadline:
                self.request("job.cancel", job=job)
                self._kept.forget(job)
                raise AgentFailure(f"{self.address}: job {job} did not end within {limit_s:.0f} s and was cancelled")

    def _ended(self, job: str, now: dict[str, Any]) -> dict[str, Any]:
        """Its result, noted; one that failed is forgotten, so that the same command tries again."""
        if now["state"] == "lost":
            self._kept.forget(job)
            log = now.get("log", "").strip()
            raise AgentFailure(
                f"{self.address}: job {job} ended without a result: it was killed, or the board restarted, or its disk "
                "takes nothing" + (f"; its log ends: {log[-400:]}" if log else "")
            )
        outcome = now["result"]
        if outcome is None:
            raise ProtocolError(
                f"{self.address}: the reply to 'job.poll' says that job {job} is over, without a result"
            )
        if not outcome["ok"]:
            self._kept.forget(job)
            raise self._failure(outcome["error"])
        self._kept.ended(job)
        result: dict[str, Any] = outcome["result"]
        return result

    def _checked(self, job: str, kind: str, result: dict[str, Any]) -> dict[str, Any]:
        """The result of such a job; one that is none is forgotten, so that the same command tries again."""
        if wrong := replies.result_problem(kind, result):
            self._kept.forget(job)
            raise ProtocolError(f"{self.address}: job {job} ended with what is no result of '{kind}': {wrong}")
        return result

    def say(self, what: str) -> None:
        """Tell whoever looks on."""
        self._on_event({"event": "waiting", "what": what})

    def cancel(self, job: str) -> None:
        """End a job without much patience, as who interrupts has none; what comes of it is said."""
        self._patience_s = min(self._patience_s, CANCEL_PATIENCE_S)
        try:
            if self.request("job.cancel", job=job)["state"] == "done":
                changes = job.startswith(CHANGES)
                tells = "; `edgeopt status` tells what is current" if changes else ""
                self.say(f"{self.address}: it had ended before it could be cancelled{tells}")
        except EdgeoptError as error:
            if not (isinstance(error, AgentFailure) and error.kind == "not-found"):  # interrupted before it was started
                self.say(f"job {job} may still be running on the board, and {self.stopping} ends it: {error}")

    def fetch(self, job: str, entry: dict[str, Any]) -> bytes:
        """A file that a job wrote, checked by its hash; no more is read than it is announced to have."""
        return transfer.fetch(self.request, job, entry, self.address, self._on_event)

    def _failure(self, error: dict[str, Any]) -> AgentFailure:
        return AgentFailure(f"{self.address}: {error['message']}", error["kind"], error.get("traceback") or "")

    def _connect(self) -> dict[str, Any]:
        """Start the agent, bringing it first where it is missing; its hello."""
        _, sha256 = agent_archive()
        self._pipe, self._buffer = launch.started(self._transport, self._place, self._reply_s, self._on_event)
        hello: dict[str, Any] = self._exchange("hello", b"", self._reply_s, {})
        if hello["wire"] != wire.VERSION or hello["agent_sha256"] != sha256:
            raise ProtocolError(
                f"{self.address} answers with wire {hello['wire']}, agent {hello['agent_sha256']}; "
                f"this host speaks wire {wire.VERSION} and sent agent {sha256}"
            )
        return hello

    def _exchange(self, op: str, payload: bytes, timeout_s: float, fields: dict[str, Any]) -> Any:
        assert self._pipe is not None
        self._number += 1
        self._pipe.write(wire.encode({"id": self._number, "op": op, **fields}, payload), timeout_s)
        try:
            reply, data = wire.receive(lambda: self._read_line(timeout_s), lambda n: self._read_exactly(n, timeout_s))
        except EOFError as error:
            raise DeviceUnreachable(f"{self.address}: the agent's session ended") from error
        except wire.WireError as error:
            self._drop()
            raise ProtocolError(f"{self.address}: {error}") from error
        if wrong := replies.reply_problem(op, self._number, reply):
            self._drop()
            raise ProtocolError(f"{self.address}: not a reply to request {self._number}, '{op}': {wrong}")
        if not reply["ok"]:
            raise self._failure(reply["error"])
        return (reply["result"], data) if op == "job.file" else reply["result"]

    def _read_line(self, timeout_s: float) -> bytes:
        assert self._pipe is not None
        while b"\n" not in self._buffer and len(self._buffer) < wire.MAX_LINE_BYTES:
            data = self._pipe.read(65536, timeout_s)
            if not data:
                break
            self._buffer += data
        line, end, self._buffer = self._buffer.partition(b"\n")
        return line + end

    def _read_exactly(self, size: int, timeout_s: float) -> bytes:
        assert self._pipe is not None
        while len(self._buffer) < size:
            data = self._pipe.read(65536, timeout_s)
            if not data:
                break
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _drop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _caller() -> str:
    """Who asks, for those who find the job on the board."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name for that number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
