"""Boards: an address and a profile. session.py speaks edgeopt_agent.wire with an agent, which launch.py starts over a
transport, which carries bytes:

local.py      this machine
ssh.py        SSH by paramiko; ssh_hop.py is one connection of it, ssh_config.py what ~/.ssh/config says
openssh.py    SSH by the system's own `ssh`
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Protocol

from ..errors import ConfigError

SHELL_LETTERS = frozenset("'`\"$;&<>|(){}")  # a ProxyCommand is a shell's, and names are put into it


class Pipe(Protocol):
    """One command running on the board."""

    def write(self, data: bytes, timeout_s: float) -> None:
        """Send all of `data`. Raises DeviceUnreachable when the link is lost or does not take it in time."""

    def finish_input(self) -> None:
        """Tell the command that its stdin ended."""

    def read(self, limit: int, timeout_s: float) -> bytes:
        """At least one byte, at most `limit`; b"" at the end. Raises DeviceUnreachable after `timeout_s` of silence."""

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        """(exit code or None, the last of stderr) of a command whose output ended."""

    def close(self) -> None:
        """Let go of the command; harmless when it ended."""


class Transport(Protocol):
    """A way to run commands on one board."""

    address: str

    def open(self, command: str) -> Pipe:
        """Start a POSIX shell command. Raises DeviceUnreachable, IntegrityError (host key), ConfigError."""

    def close(self) -> None:
        """End the connection."""


@dataclasses.dataclass(frozen=True)
class Address:
    """`local`, or `ssh://[user@]host[:port]`, with the files that ssh needs. The host may be an alias of ~/.ssh/config;
    what is None is the config's to say. `config` is a file to read instead of it, or "none"."""

    text: str
    host: str | None = None
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    transport: str = "paramiko"
    config: str | None = None


def parse_address(
    text: str, identity: Path | None = None, known_hosts: Path | None = None, transport: str = "paramiko"
) -> Address:
    """`transport`: one of profile.TRANSPORTS.

    Raises ConfigError for anything but `local` and ssh URLs without a password.
    """
    if text == "local":
        return Address(text)
    match = re.fullmatch(
        r"ssh://(?:([^:/\s]+)@)?(\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[^\W_][^@:/\s]*)(?::(\d{1,5}))?/?", text
    )
    if match is None or int(match[3] or 22) not in range(1, 65536):
        raise ConfigError(
            f"device '{text}' is not an address: allowed are 'local' and 'ssh://[user@]host[:port]' "
            "(no password in it: keys and the ssh agent are used; IPv6 as [fe80::1%eth0])"
        )
    if odd := sorted({*(match[1] or ""), *match[2].strip("[]")} & SHELL_LETTERS):
        raise ConfigError(
            f"device '{text}': {' '.join(odd)} may not stand in a user's or host's name, as a shell might read it"
        )
    port = int(match[3]) if match[3] else None
    host = re.sub("%25(?=.)", "%", match[2].strip("[]"))  # a URI's way to write an address's zone
    return Address(text, host, match[1], port, identity, known_hosts, transport)


def open_transport(address: Address) -> Transport:
    """The transport for an address; ssh is connected when the first command is run."""
    if address.host is None:
        from .local import LocalTransport

        return LocalTransport()
    from .openssh import OpenSshTransport
    from .ssh import AutoTransport, SshTransport

    if takes_ssh(address):
        return OpenSshTransport(address)
    return AutoTransport(address) if address.transport == "auto" else SshTransport(address)


def takes_ssh(address: Address) -> bool:
    """Whether the system's `ssh` speaks to that address, and not paramiko. Raises ConfigError."""
    from .openssh import is_needed

    return address.transport == "ssh" or (address.transport == "auto" and is_needed(address))
