"""Boards over SSH with paramiko: strict host keys, keys and the ssh agent only, a time-out on every wait."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import re
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DeviceUnreachable, IntegrityError
from . import Address

if TYPE_CHECKING:
    import paramiko

CONNECT_TIMEOUT_S = 15.0
KEEPALIVE_S = 5
STDERR_BYTES = 2000

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # our errors say what failed; its tracebacks frighten


def fingerprint(key: Any) -> str:
    """As `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode("ascii").rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


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
            raise DeviceUnreachable(f"{self._address}: the link was lost ({_words(error)})") from error

    def finish_input(self) -> None:
        try:
            self._channel.shutdown_write()
        except (OSError, EOFError) as error:
            raise DeviceUnreachable(f"{self._address}: the link was lost ({_words(error)})") from error

    def read(self, limit: int, timeout_s: float) -> bytes:
        self._channel.settimeout(timeout_s)
        try:
            data: bytes = self._channel.recv(limit)
            return data
        except TimeoutError as error:
            raise DeviceUnreachable(f"{self._address} was silent for {timeout_s:g} s") from error
        except (OSError, EOFError) as error:
            raise DeviceUnreachable(f"{self._address}: the link was lost ({_words(error)})") from error

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        deadline = time.monotonic() + timeout_s
        self._drain.join(timeout_s)
        while not self._channel.exit_status_ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        code = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
        return None if code == -1 else code, self._stderr.decode("utf-8", "replace").strip()

    def close(self) -> None:
        _close(self._channel)


class SshTransport:
    """`timeout_s`: how long connecting, and starting a command, may take."""

    def __init__(self, address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.address = address.text
        self._target = address
        self._timeout_s = timeout_s
        self._client: paramiko.SSHClient | None = None

    def open(self, command: str) -> SshPipe:
        import paramiko

        client = self._client
        transport = client.get_transport() if client is not None else None
        if transport is None or not transport.is_active():
            self.close()
            client = self._connect()
            transport = client.get_transport()
        assert transport is not None
        try:
            channel = transport.open_session(timeout=self._timeout_s)
            with _closed_after(channel, self._timeout_s):
                channel.exec_command(f"exec /bin/sh -c {shlex.quote(command)}")
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise DeviceUnreachable(f"{self.address}: no command can be started ({error})") from error
        return SshPipe(channel, self.address)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connect(self) -> paramiko.SSHClient:
        import paramiko

        target = self._target
        known_hosts = target.known_hosts or Path("~/.ssh/known_hosts").expanduser()
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_reject_unknown(known_hosts, target))
        if known_hosts.exists() or target.known_hosts is not None:
            _load_host_keys(client, known_hosts)
        key = _private_key(target.identity) if target.identity is not None else None
        try:
            self._handshake(client, key, known_hosts)
        except BaseException:
            client.close()
            raise
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(KEEPALIVE_S)
        self._client = client
        return client

    def _handshake(self, client: paramiko.SSHClient, key: Any, known_hosts: Path) -> None:
        import paramiko

        target = self._target
        try:
            client.connect(
                target.host or "",
                port=target.port,
                username=target.user,
                pkey=key,
                look_for_keys=key is None,
                allow_agent=key is None,
                timeout=self._timeout_s,
                banner_timeout=self._timeout_s,
                auth_timeout=self._timeout_s,
                channel_timeout=self._timeout_s,
            )
        except paramiko.BadHostKeyException as error:
            raise IntegrityError(
                f"{target.text}: THE HOST KEY CHANGED: {known_hosts} has {fingerprint(error.expected_key)}, the board "
                f"shows {fingerprint(error.key)}. If the board was reinstalled, remove the old key with "
                f"`ssh-keygen -f {known_hosts} -R {_host_entry(target)}` and add the new one; nothing was sent"
            ) from error
        except paramiko.AuthenticationException as error:
            raise DeviceUnreachable(
                f"{target.text} refused user '{target.user or 'of this machine'}' ({error}): name the right user in "
                "the address and its private key with --identity, or load the key into the ssh agent"
            ) from error
        except (paramiko.SSHException, OSError, EOFError, socket.gaierror) as error:
            raise DeviceUnreachable(
                f"{target.text} cannot be reached: {_words(error)}; is the board on, on this network, and listening on "
                "that port?"
            ) from error


def _words(error: BaseException) -> str:
    """What went wrong, without the number that Python puts before it."""
    return re.sub(r"^\[Errno [^\]]*\] ", "", str(error)) or type(error).__name__


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


def _load_host_keys(client: paramiko.SSHClient, known_hosts: Path) -> None:
    from paramiko.hostkeys import InvalidHostKey

    try:
        client.load_host_keys(str(known_hosts))
    except FileNotFoundError as error:
        raise ConfigError(
            f"--known-hosts {known_hosts}: no such file; name one that holds the board's host key"
        ) from error
    except (OSError, ValueError, InvalidHostKey) as error:
        raise ConfigError(f"--known-hosts {known_hosts} cannot be read as a known_hosts file: {error}") from error


def _private_key(identity: Path) -> paramiko.PKey:
    import paramiko

    try:
        return paramiko.PKey.from_path(identity)
    except FileNotFoundError as error:
        raise ConfigError(f"--identity {identity}: no such file; name a private key") from error
    except (paramiko.PasswordRequiredException, TypeError) as error:
        raise ConfigError(
            f"--identity {identity} is protected by a passphrase: load it with `ssh-add {identity}` and leave "
            "--identity out, so that the ssh agent is asked"
        ) from error
    except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise ConfigError(f"--identity {identity} is not a private key that can be read: {error}") from error


def _kind(key: Any) -> str:
    """The key's type as ssh-keyscan takes it: ed25519, ecdsa, rsa."""
    return str(key.get_name()).removeprefix("ssh-").partition("-")[0]


def _host_entry(target: Address) -> str:
    return str(target.host) if target.port == 22 else f"'[{target.host}]:{target.port}'"


def _reject_unknown(known_hosts: Path, target: Address) -> Any:
    import paramiko

    class RejectUnknown(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:  # noqa: ARG002
            raise IntegrityError(
                f"{target.text}: its host key is unknown: the board shows {fingerprint(key)}, and {known_hosts} has "
                f"no key for {_host_entry(target)}. Compare the fingerprint with the board's own "
                "(`ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` there), then add it with "
                f"`ssh-keyscan -t {_kind(key)} -p {target.port} {target.host} >> {known_hosts}`; nothing was sent"
            )

    return RejectUnknown()
