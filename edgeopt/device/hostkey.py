"""The host key that a board shows before anybody trusts it: nothing is said to it that it could keep."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .. import disk
from . import Address, registry, ssh_config, ssh_hop, ssh_words, takes_ssh

if TYPE_CHECKING:
    import paramiko

TIMEOUT_S = 15.0


@dataclasses.dataclass(frozen=True)
class HostKey:
    """`line` is what a known_hosts file keeps; `fingerprint` as `ssh-keygen -l` prints it: SHA256:…"""

    kind: str
    fingerprint: str
    line: str


def shown_by(address: Address) -> HostKey:
    """Asked for by the transport that the address names. Jump hosts on the way are verified and logged in to.

    Raises DeviceUnreachable, ConfigError, and IntegrityError for a jump host's key.
    """
    from .openssh import OpenSshTransport

    try:
        kind, key = OpenSshTransport(address, TIMEOUT_S).shown_key() if takes_ssh(address) else _asked(address)
    except ssh_words.NothingInCommon:
        if address.transport != "auto" or shutil.which("ssh") is None:
            raise
        kind, key = OpenSshTransport(address, TIMEOUT_S).shown_key()
    digest = ssh_words.fingerprint(kind, base64.b64decode(key)).partition(" ")[2]
    return HostKey(kind, digest, f"{ssh_config.chain(address)[-1].known_as} {kind} {key}\n")


def keep(key: HostKey, path: Path) -> None:
    disk.write(path, key.line, mode=0o600, durable=True, named_by=registry.VARIABLE)


def _asked(address: Address) -> tuple[str, str]:
    """(type, key in base64) by paramiko: the key exchange with the board, and nothing after it."""
    import paramiko

    hops = ssh_config.chain(address)
    for hop in hops:
        ssh_config.refuse_what_only_ssh_can(hop)
    before: paramiko.SSHClient | None = None
    way: ssh_hop.Way | None = None
    with contextlib.ExitStack() as held:
        for hop in hops[:-1]:
            before = ssh_hop.connect(hop, before, TIMEOUT_S, held)
        hop = hops[-1]
        try:
            way = ssh_hop.Way(hop, before, TIMEOUT_S, held)
            transport = ssh_hop.offering(hop, ssh_hop.HostKeys((), ()), way.stream)
            held.callback(transport.close)
            transport.banner_timeout = TIMEOUT_S
            transport.start_client(timeout=TIMEOUT_S)
            key = transport.get_remote_server_key()
        except paramiko.ssh_exception.IncompatiblePeer as error:
            raise ssh_words.too_old(hop, ssh_hop.words(error), "paramiko") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ssh_words.unreachable(hop, (way.complaint() if way else "") or ssh_hop.words(error)) from error
        return key.get_name(), key.get_base64()
