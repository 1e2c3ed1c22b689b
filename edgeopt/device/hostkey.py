"""The host key that a board shows before anybody trusts it. Nothing but the key exchange happens."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

from ..errors import ConfigError, DeviceUnreachable
from . import Address
from .registry import write_text

TIMEOUT_S = 15.0


@dataclasses.dataclass(frozen=True)
class HostKey:
    """`line` is what a known_hosts file keeps; `fingerprint` as `ssh-keygen -l` prints it: SHA256:…"""

    kind: str
    fingerprint: str
    line: str


def shown_by(address: Address) -> HostKey:
    """Raises DeviceUnreachable, and ConfigError for a board behind a jump host."""
    import paramiko

    from .ssh import fingerprint
    from .ssh_config import chain

    hops = chain(address)
    hop = hops[-1]
    if len(hops) > 1 or hop.proxy_command:
        raise ConfigError(
            f"{address.text} is reached through another host, so its key cannot be asked for directly: connect once "
            f"with `ssh {address.host}`, compare the fingerprint, and add it with --known-hosts ~/.ssh/known_hosts"
        )
    try:
        with socket.create_connection((hop.host, hop.port), TIMEOUT_S) as connection:
            transport = paramiko.Transport(connection)
            try:
                transport.banner_timeout = TIMEOUT_S
                transport.start_client(timeout=TIMEOUT_S)
                key = transport.get_remote_server_key()
            finally:
                transport.close()
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise DeviceUnreachable(
            f"{address.text} cannot be reached: {error}; is the board on, on this network, and listening on that port?"
        ) from error
    kind, _, digest = fingerprint(key).partition(" ")
    return HostKey(kind, digest, f"{hop.known_as} {key.get_name()} {key.get_base64()}\n")


def keep(key: HostKey, path: Path) -> None:
    write_text(path, key.line)
