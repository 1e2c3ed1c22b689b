"""The agent on a board: started over a transport, and brought there first where it is missing or damaged."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeopt_agent import wire

from ..errors import AgentFailure, DeviceUnreachable, ProtocolError
from . import Pipe, Transport
from .archive import agent_archive
from .pace import Pace

if TYPE_CHECKING:
    from .session import Placement

# `python FILE` would import runpy first, and site; hello needs neither. Nothing comes from the folder of the login.
BEGIN = (
    "import sys; sys.path = [sys.argv[1]] + [place for place in sys.path if place]; "
    "from edgeopt_agent.main import main; main(sys.argv[2:])"
)
HASH = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
PIECE = 4096
# For any Python, so that one which is too old is told by the agent. It takes no byte more than its own, since the agent
# reads what follows, and says how much has come: on a slow link the whole takes longer than a board may be silent.
BRING = f"""\
import hashlib, os, sys
folder, sha256, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
path = os.path.join(folder, ".new-%d" % os.getpid())
digest = hashlib.sha256()
os.umask(0o22)
os.write(1, b"0\\n")
try:
    if not os.path.isdir(folder):
        os.makedirs(folder)
    with open(path, "wb") as file:
        while file.tell() < size:
            data = os.read(0, min({PIECE}, size - file.tell()))
            if not data:
                break
            file.write(data)
            digest.update(data)
            os.write(1, ("%d\\n" % file.tell()).encode())
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() == sha256:
        os.rename(path, os.path.join(folder, sha256 + ".pyz"))
        for place in (folder, os.path.dirname(folder)):
            handle = os.open(place, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        os.write(1, b"whole\\n")
    else:
        os.remove(path)
        sys.exit("it arrived damaged")
except (IOError, OSError) as error:
    try:
        os.remove(path)
    except OSError:
        pass
    sys.exit(str(error))
"""
BANNER_LINES = 500
BANNER_BYTES = 4 << 20
END_S = 5.0

Event = Callable[[dict[str, Any]], None]


def started(transport: Transport, place: Placement, reply_s: float, on_event: Event) -> tuple[Pipe, bytes]:
    """(the agent's pipe after its first word, what came after that). reply_s: how long the board may be silent.

    All in one session: some servers allow no second one. Raises DeviceUnreachable, AgentFailure (no-shell, no-python,
    no-space, read-only), ProtocolError.
    """
    archive, sha256 = agent_archive()
    shell, no_agent = (f"edgeopt-{word}-{uuid.uuid4().hex}" for word in ("shell", "no-agent"))  # no banner says that
    command = _command(place, sha256, len(archive), shell, no_agent)
    launch = _Launch(transport.open(command), transport.address, place, reply_s)
    try:
        return launch.pipe, launch.hear(shell.encode(), no_agent.encode(), archive, on_event)
    except BaseException:
        launch.pipe.close()
        raise


def _command(place: Placement, sha256: str, size: int, shell: str, no_agent: str) -> str:
    """For the board's shell, which says `shell` first, and `no_agent` where the agent is to be sent."""
    folder = f"{place.root}/agent"
    archive, python, root = (shlex.quote(word) for word in (f"{folder}/{sha256}.pyz", place.python, place.root))
    bring = shlex.join([place.python, "-S", "-c", f"exec({BRING!r})", folder, sha256, str(size)])
    return (
        f"echo; echo {shell}; "
        # a small board may have no sha256sum
        f'if [ -f {archive} ] && set -- $(sha256sum < {archive} 2>/dev/null || {python} -c "{HASH}" {archive}) && '
        f'[ "$1" = {sha256} ]; then :; '
        # where its Python is missing, nothing is left on the board
        f"elif command -v {python} >/dev/null; then echo {no_agent}; {bring} || exit; "
        f"else exec {python}; fi; "
        f"exec {python} -S -c '{BEGIN}' {archive} serve --root {root}"
    )


class _Launch:
    """One start of an agent: what its board says until the agent's first word."""

    def __init__(self, pipe: Pipe, address: str, place: Placement, reply_s: float) -> None:
        self.pipe = pipe
        self._address, self._place, self._reply_s = address, place, reply_s
        self._ran = False  # a shell there
        self._brings = False  # its Python takes the agent
        self._said = b""

    def hear(self, shell: bytes, no_agent: bytes, archive: bytes, on_event: Event) -> bytes:
        """What came after the agent's first word."""
        buffer, read = b"", 0
        for _ in range(BANNER_LINES):
            while b"\n" not in buffer and len(buffer) < wire.MAX_LINE_BYTES:
                data = self._read()
                if not data:
                    raise self._end(buffer)
                buffer += data
            line, _, buffer = buffer.partition(b"\n")
            read += len(line)
            if read > BANNER_BYTES:
                raise ProtocolError(f"{self._address}: {read} bytes came before the agent's first word; is it a shell?")
            word = line.strip()
            if word == wire.SENTINEL:
                return buffer
            if word == shell:
                self._ran, self._said = True, b""
            elif word == no_agent:
                buffer = self._send(buffer, archive, on_event)
            elif not self._ran:
                self._said = (self._said + line + b"\n")[:400]
            else:
                self._said = (self._said + line + b"\n")[-400:]
        raise ProtocolError(f"{self._address}: {BANNER_LINES} lines came before the agent's first word; is it a shell?")

    def _read(self) -> bytes:
        try:
            return self.pipe.read(65536, self._reply_s)
        except DeviceUnreachable as error:
            if self._ran:
                raise
            raise DeviceUnreachable(
                f"{error}, and no shell has begun there: the board hangs, or its login shell is a menu, or a "
                "ForceCommand stands in its place"
            ) from error

    def _send(self, told: bytes, archive: bytes, on_event: Event) -> bytes:
        """The archive, piece by piece as the board tells of them, so that few bytes are on their way; what it says
        afterwards. told: what it said already, which may hold the first word."""
        pace, sent = Pace(len(archive), self._reply_s), 0
        told, self._brings = self._told(told, b"0\n")
        while self._brings and sent < len(archive):
            piece, began = archive[sent : sent + pace.size_bytes], time.monotonic()
            try:
                self.pipe.write(piece, self._reply_s)
            except DeviceUnreachable:
                if self.pipe.end(1.0)[0] is None:
                    raise
                return told  # it was refused: the end of the output tells why
            sent += len(piece)
            told, arrived = self._told(told, b"%d\n" % sent)
            if not arrived:
                return told
            pace.took(len(piece), time.monotonic() - began)
            on_event({"event": "progress", "what": "sending the agent", "done": sent, "of": len(archive)})
        told, arrived = self._told(told, b"whole\n")
        self._brings = self._brings and not arrived
        return told

    def _told(self, told: bytes, word: bytes) -> tuple[bytes, bool]:
        """(what came after a word of BRING, whether it came)."""
        while word not in told:
            if not (data := self.pipe.read(4096, self._reply_s)):
                return told, False
            told += data
        return told.partition(word)[2], True

    def _end(self, rest: bytes) -> Exception:
        """Why the command ended before the agent's first word."""
        code, stderr = self.pipe.end(END_S)
        if code == 255 or code is None:
            return DeviceUnreachable(f"{self._address}: the link was lost while the agent started")
        words = stderr or (self._said + rest).decode("utf-8", "replace").strip() or "no message"
        if not self._ran:
            return AgentFailure(
                f"{self._address}: the login works, but the account's shell runs no commands (exit code {code}): "
                f"{' '.join(words.split())[:100]}; give the account a POSIX shell there (`chsh -s /bin/sh USER`), take "
                "away what forces another command (ForceCommand in sshd_config, command= before its key), or name "
                "another user in the address",
                kind="no-shell",
            )
        if self._brings:
            return AgentFailure(
                f"{self._address}: the agent cannot be put into '{self._place.root}/agent': {words}; free space "
                "there, make it writable for this user, or give another --root",
                kind="no-space" if "space" in words else "read-only",
            )
        return AgentFailure(
            f"{self._address}: the agent does not start with '{self._place.python}' (exit code {code}): {words}; it "
            "needs Python 3.8 or later there: set python in the profile's [board], or --board-python",
            kind="no-python",
        )
