"""What both SSH transports say when they refuse or fail: the same words, so that a mend is learned once."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from ..errors import ConfigError, DeviceUnreachable, IntegrityError
from . import registry
from .ssh_config import Hop

OWN_KEYS = (
    "`ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` there, or, where dropbear serves, "
    "`dropbearkey -y -f /etc/dropbear/dropbear_ed25519_host_key`"
)


def fingerprint(key_type: str, blob: bytes) -> str:
    """Of a public key in SSH's own encoding, as `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")
    return f"{key_type} SHA256:{digest}"


def unknown_key(hop: Hop, shown: str) -> IntegrityError:
    """`shown` is the key's fingerprint, which begins with its type."""
    kind = shown.split()[0].removeprefix("ssh-").removeprefix("rsa-").partition("-")[0]
    files = " or ".join(map(str, hop.known_hosts[:1])) or "no file of known hosts"
    return IntegrityError(
        f"{hop.name}: its host key is unknown: the board shows {shown}, and {files} has no key for "
        f"{quoted(hop)}. Compare the fingerprint with the board's own ({OWN_KEYS}), "
        f"then add it with `{_adding(hop, kind, files)}`{_or_by_name(hop)}; nothing was sent"
    )


def changed_key(hop: Hop, where: object, expected: str, shown: str) -> IntegrityError:
    name = registry.named_by(Path(str(where)))
    mend = (
        f"make its new key known with `{registry.adding(name)}`, which shows it and asks"
        if name
        else f"remove the old key with `ssh-keygen -f {where} -R {quoted(hop)}` and add the new one"
    )
    return IntegrityError(
        f"{hop.name}: THE HOST KEY CHANGED: {where} has {expected}, the board shows {shown}. If the board was "
        f"reinstalled, {mend}; nothing was sent"
    )


def revoked_key(hop: Hop, where: object, shown: str) -> IntegrityError:
    return IntegrityError(
        f"{hop.name}: its host key {shown} is marked as revoked in {where}: whoever answers there is not to be "
        "trusted; give the board a new host key. Nothing was sent"
    )


def refused_user(hop: Hop, detail: str) -> DeviceUnreachable:
    return DeviceUnreachable(
        f"{hop.name} refused user '{hop.user}' ({detail}): name the right user in the address and its private key "
        "with --identity, or load the key into the ssh agent"
    )


def unreachable(hop: Hop, detail: str) -> DeviceUnreachable:
    return DeviceUnreachable(
        f"{hop.name} cannot be reached: {detail}; is the board on, on this network, and listening on that port?"
    )


class NothingInCommon(DeviceUnreachable):
    """Server and transport know no common algorithm; another transport may."""


def too_old(hop: Hop, detail: str, transport: str) -> NothingInCommon:
    """The server's algorithms are from another decade: the last, or, for paramiko, the next."""
    lines = "`KexAlgorithms +diffie-hellman-group14-sha1` and `HostKeyAlgorithms +ssh-rsa`"
    mend = f"add what it offers to the host's entry in ~/.ssh/config, for instance {lines}"
    if transport != "paramiko":
        return NothingInCommon(f"{hop.name}: {detail}: its SSH server is old. Update it, or {mend}")
    return NothingInCommon(
        f"{hop.name}: {detail}: paramiko and its SSH server know nothing in common. Use --transport ssh (or auto); "
        f"where that fails too, its SSH server is old: update it, or {mend}"
    )


def too_many_keys(hop: Hop, tried: int) -> DeviceUnreachable:
    """The server hung up before all keys were tried; sshd does after MaxAuthTries, six unless told otherwise."""
    return DeviceUnreachable(
        f"{hop.name}: its SSH server hung up after {tried} key{'s' * (tried != 1)} that it does not know: it allows no "
        f"more tries (sshd: MaxAuthTries), and the right key of user '{hop.user}' was not among them. Name that key "
        "with --identity, then no other is tried; or, in the host's entry of ~/.ssh/config, with IdentityFile and "
        "`IdentitiesOnly yes`; or take the others out of the ssh agent (`ssh-add -D`)"
    )


def only_authority(hop: Hop, file: Path) -> ConfigError:
    """A certified host key, which paramiko cannot check."""
    return ConfigError(
        f"{hop.name}: {file} trusts an authority (@cert-authority) for {quoted(hop)} and no key of its own, which the "
        "paramiko transport cannot check; use --transport ssh"
    )


def quoted(hop: Hop) -> str:
    """The host as known_hosts has it, safe in a shell."""
    return f"'{hop.known_as}'" if "[" in hop.known_as else hop.known_as


def _or_by_name(hop: Hop) -> str:
    """A board can be made known by name, which shows its key and asks; a jump host on the way cannot."""
    if not hop.name.startswith("ssh://") or " " in hop.name:
        return ""
    name = registry.named_by(hop.known_hosts[0]) if hop.known_hosts else None
    command = registry.adding(name) if name else f"edgeopt device add NAME {hop.name}"
    return f", or make it known by a name: `{command}` shows the key and asks"


def _adding(hop: Hop, kind: str, file: str) -> str:
    """The command that adds the host's key to a file, once a person has compared it."""
    if not hop.direct:  # ssh-keyscan knows no way through another host; ssh shows the fingerprint and asks
        return f"ssh -o UserKnownHostsFile={file} {hop.spelled}"
    scan = f"ssh-keyscan -t {kind} -p {hop.port} {hop.host}"
    standard = hop.host if hop.port == 22 else f"[{hop.host}]:{hop.port}"
    # under a HostKeyAlias the line that ssh-keyscan prints has the wrong name in front
    scan += "" if hop.known_as == standard else f" | sed 's/^[^ ]*/{hop.known_as}/'"
    return f"{scan} >> {file}"
