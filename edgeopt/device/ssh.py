"""Boards over SSH with paramiko: through jump hosts too, a time-out on every wait."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import DeviceUnreachable
from . import Address, Pipe, ssh_config, ssh_hop, ssh_words
from .openssh import OpenSshTransport
from .ssh_hop import fingerprint as fingerprint
from .ssh_hop import words

if TYPE_CHECKING:
    import paramiko

CONNECT_TIMEOUT_S = 15.0
KEEPALIVE_S = 5
STDERR_BYTES = 2000
LEAVE_S = 0.5

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # our errors say what failed; its tracebacks frighten


class SshPipe:
    def __init__(self, channel: paramiko.Channel, address: str) -> None:
        self._channel = channel
        self._address = address
        self._stderr = b""
        self._drain = threading.Thread(target=self._collect_stderr, daemon=True)
        self._drain.start()

    def _collect_stderr(self) -> None:
        """Read stderr all the time: a full window would stop the board's side."""
        while True:
            try:
                data = self._channel.recv_stderr(4096)
            except TimeoutError:
                continue
            except (OSError, EOFError):
                return
            if not data:
                return
            self._stderr = (self._stderr + data)[-STDERR_BYTES:]

    def write(self, data: bytes, timeout_s: float) -> None:
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(data)
        except TimeoutError as error:
            raise DeviceUnreachable(f"{self._address} took no data for {timeout_s:g} s") from error
        except (OSError, EOFError) as error:
            raise DeviceUnreachable(f"{self._address}: the link was lost ({words(error)})") from error

    def finish_input(self) -> None:
        try:
            self._channel.shutdown_write()
        except (OSError, EOFError) as error:
            raise DeviceUnreachable(f"{self._address}: the link was lost ({words(error)})") from error

    def read(self, limit: int, timeout_s: float) -> bytes:
        self._channel.settimeout(timeout_s)
        try:
            data: bytes = self._channel.recv(limit)
            return data
        except TimeoutError as error:
            raise DeviceUnreachable(f"{self._address} was silent for {timeout_s:g} s") from error
        except (OSError, EOFError) as error:
            raise DeviceUnreachable(f"{self._address}: the link was lost ({words(error)})") from error

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        deadline = time.monotonic() + timeout_s
        self._drain.join(timeout_s)
        while not self._channel.exit_status_ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        code = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
        return None if code == -1 else code, self._stderr.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """dropbear may mix up channels when one is closed under a running command and the next is opened at once:
        the command's input is ended first, and it has a moment to go."""
        deadline = time.monotonic() + LEAVE_S
        with contextlib.suppress(EOFError, OSError):
            self._channel.shutdown_write()
            while not self._channel.closed and time.monotonic() < deadline:
                time.sleep(0.005)
        _close(self._channel)


class SshTransport:
    """`timeout_s`: how long each step of connecting, and starting a command, may take."""

    def __init__(self, address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.address = address.text
        self._target = address
        self._timeout_s = timeout_s
        self._held = contextlib.ExitStack()
        self._transport: paramiko.Transport | None = None

    def open(self, command: str) -> SshPipe:
        import paramiko

        try:
            try:
                channel = self._connected().open_session(timeout=self._timeout_s)
            except paramiko.ChannelException:  # a server may allow one session only, and the last one is not over yet
                self.close()
                channel = self._connected().open_session(timeout=self._timeout_s)
            with _closed_after(channel, self._timeout_s):
                channel.exec_command(f"exec /bin/sh -c {shlex.quote(command)}")
        except (paramiko.SSHException, OSError, EOFError) as error:
            lives = self._transport is not None and self._transport.is_active()
            self.close()
            why = ": does its SSH server allow sessions (MaxSessions), and commands for that user?" if lives else ""
            raise DeviceUnreachable(f"{self.address}: no command can be started ({words(error)}){why}") from error
        return SshPipe(channel, self.address)

    def close(self) -> None:
        self._transport = None
        self._held.close()

    def _connected(self) -> paramiko.Transport:
        if self._transport is None or not self._transport.is_active():
            self.close()
            return self._connect()
        return self._transport

    def _connect(self) -> paramiko.Transport:
        """A verified connection on every hop; the board's is returned."""
        hops = ssh_config.chain(self._target)
        for hop in hops:
            ssh_config.refuse_what_only_ssh_can(hop)
        client: paramiko.SSHClient | None = None
        try:
            for hop in hops:
                client = ssh_hop.connect(hop, client, self._timeout_s, self._held)
                client.get_transport().set_keepalive(KEEPALIVE_S)
        except BaseException:
            self.close()
            raise
        assert client is not None
        self._transport = client.get_transport()
        assert self._transport is not None
        return self._transport


class AutoTransport:
    """paramiko, and the system's ssh from the moment on that the board's server turns out to know nothing that paramiko
    does."""

    def __init__(self, address: Address) -> None:
        self.address = address.text
        self._target = address
        self._chosen: SshTransport | OpenSshTransport = SshTransport(address)

    def open(self, command: str) -> Pipe:
        try:
            return self._chosen.open(command)
        except ssh_words.NothingInCommon:
            if isinstance(self._chosen, OpenSshTransport) or shutil.which("ssh") is None:
                raise
            self._chosen = OpenSshTransport(self._target)
            return self._chosen.open(command)

    def close(self) -> None:
        self._chosen.close()


@contextlib.contextmanager
def _closed_after(channel: paramiko.Channel, timeout_s: float) -> Iterator[None]:
    """paramiko waits for the answer to exec without an end of its own; a closed channel ends it."""
    timer = threading.Timer(timeout_s, _close, [channel])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _close(channel: paramiko.Channel) -> None:
    with contextlib.suppress(EOFError, OSError):  # the connection under it may be gone already
        channel.close()
