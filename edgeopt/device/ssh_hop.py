"""One SSH connection by paramiko: the host key is checked before anything is sent, keys and the ssh agent log in."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fnmatch
import functools
import re
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from . import ssh_config, ssh_words
from .ssh_config import Hop

if TYPE_CHECKING:
    import paramiko

LOST_AFTER_S = 20.0  # unanswered bytes, keepalives included, for that long are a lost link
DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ed25519")
USERS_SIGNATURES = "pubkeyacceptedalgorithms"
PARAMIKO_OPTIONS = {  # the first must come before the second: both are filtered from one list of signatures
    USERS_SIGNATURES: "key_types",
    "hostkeyalgorithms": "key_types",
    "ciphers": "ciphers",
    "macs": "digests",
    "kexalgorithms": "kex",
}


def connect(hop: Hop, before: paramiko.SSHClient | None, timeout_s: float, held: contextlib.ExitStack) -> Any:
    """A connected SSHClient, reached through the client of the hop before; what it holds is put into `held`.

    Raises IntegrityError (host key), DeviceUnreachable, ConfigError.
    """
    import paramiko

    host_keys = load_host_keys(hop)
    keys = Keys(hop)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_checking(hop, host_keys))
    way: Way | None = None
    try:
        way = Way(hop, before, timeout_s, held)
        held.callback(client.close)
        client.connect(
            hop.host,
            sock=way.stream,
            transport_factory=functools.partial(offering, hop, host_keys),
            username=hop.user,
            auth_strategy=keys,
            timeout=timeout_s,
            banner_timeout=timeout_s,
            auth_timeout=timeout_s,
            channel_timeout=timeout_s,
        )
    except paramiko.AuthenticationException as error:
        raise ssh_words.refused_user(hop, str(error)) from error
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise ssh_words.too_old(hop, words(error), "paramiko") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise ssh_words.unreachable(hop, (way.complaint() if way else "") or words(error)) from error
    return client


def fingerprint(key: Any) -> str:
    return ssh_words.fingerprint(key.get_name(), key.asbytes())


def words(error: BaseException) -> str:
    """What went wrong, without the number that Python puts before it."""
    return re.sub(r"^\[Errno [^\]]*\] ", "", str(error)) or type(error).__name__


# The way there


class Way:
    """A socket, or what behaves like one, to a hop's SSH server, and what a ProxyCommand says on stderr."""

    def __init__(self, hop: Hop, before: paramiko.SSHClient | None, timeout_s: float, held: contextlib.ExitStack):
        self._said: Any = None
        self.stream: Any
        if before is not None:
            transport = before.get_transport()
            assert transport is not None
            there = (hop.host, hop.port)
            self.stream = transport.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=timeout_s)
            return
        if hop.proxy_command is not None:
            self.stream = self._run(hop.proxy_command, held)
            return
        self.stream = _dialled(hop, timeout_s)
        held.callback(self.stream.close)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(LOST_AFTER_S * 1000))

    def _run(self, command: str, held: contextlib.ExitStack) -> socket.socket:
        """A real socket to the ProxyCommand, so that time-outs hold on it too."""
        ours, theirs = socket.socketpair()
        self._said = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (closed with `held`)
        ends: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": self._said}
        with theirs:
            process = subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], start_new_session=True, **ends)
        held.callback(_end, process)
        held.callback(ours.close)
        return ours

    def complaint(self) -> str:
        """The last line that the ProxyCommand said."""
        if self._said is None:
            return ""
        self._said.seek(0)
        lines = self._said.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return f"its ProxyCommand said: {lines[-1]}" if lines else "its ProxyCommand ended without a word"


def _dialled(hop: Hop, timeout_s: float) -> socket.socket:
    """The first of the host's addresses that answers; `timeout_s` is each one's."""
    failure: OSError = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(hop.host, hop.port, hop.family, socket.SOCK_STREAM):
        stream = socket.socket(family, kind, protocol)
        stream.settimeout(timeout_s)
        try:
            stream.connect(address)
            return stream
        except OSError as error:
            stream.close()
            failure = error
    raise failure


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# Host keys


@dataclasses.dataclass(frozen=True)
class HostKeys:
    """(key, file) pairs that known_hosts files have for one host, and those that they revoke."""

    known: tuple[tuple[Any, Path], ...]
    revoked: tuple[tuple[Any, Path], ...]
    authorities: tuple[Path, ...] = ()  # files with an authority for it, whose certificates only ssh can check

    def check(self, hop: Hop, shown: Any) -> None:
        """Raises IntegrityError unless the key is known and not revoked."""
        for key, file in self.revoked:
            if key == shown:
                raise ssh_words.revoked_key(hop, file, fingerprint(shown))
        if not self.known and self.authorities:
            raise ssh_words.only_authority(hop, self.authorities[0])
        if not self.known:
            raise ssh_words.unknown_key(hop, fingerprint(shown))
        if not any(key == shown for key, _ in self.known):
            alike = [pair for pair in self.known if pair[0].get_name() == shown.get_name()]
            expected, file = (alike or self.known)[0]
            raise ssh_words.changed_key(hop, file, fingerprint(expected), fingerprint(shown))

    @property
    def kinds(self) -> set[str]:
        """Algorithms by which the server can prove one of the known keys."""
        kinds = {key.get_name() for key, _ in self.known}
        return kinds | ({"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in kinds else set())


def admitted(hop: Hop) -> dict[str, list[str]]:
    """What is left of paramiko's algorithms where the config admits some only; keys are ssh_config.ALGORITHMS."""
    import paramiko

    own = paramiko.transport.SecurityOptions(paramiko.Transport)
    return {
        key: [name for name in getattr(own, PARAMIKO_OPTIONS[key]) if name in names] for key, names in hop.algorithms
    }


def offering(hop: Hop, host_keys: HostKeys, stream: Any, **options: Any) -> paramiko.Transport:
    """A Transport that offers what the config admits, and asks first for the kinds of key that are known.

    Raises ConfigError where paramiko has nothing of what the config admits.
    """
    import paramiko

    made = paramiko.Transport(stream, **options)
    security = made.get_security_options()
    for key, left in admitted(hop).items():
        if not left:
            names = ", ".join(dict(hop.algorithms)[key])
            raise ConfigError(f"{hop.name}: of the ssh config's {key} ({names}) paramiko has none; use --transport ssh")
        if key == USERS_SIGNATURES:
            made.disabled_algorithms = {"pubkeys": set(security.key_types) - set(left)}
        else:
            setattr(security, PARAMIKO_OPTIONS[key], left)
    security.key_types = sorted(security.key_types, key=lambda kind: kind not in host_keys.kinds)
    return made


def load_host_keys(hop: Hop) -> HostKeys:
    """Raises ConfigError for a file that cannot be read; one that only a default names may be missing."""
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

    found: dict[str, list[tuple[Any, Path]]] = {"known": [], "revoked": []}
    authorities: list[Path] = []
    for file in hop.known_hosts:
        if not hop.known_hosts_named and not file.exists():
            continue
        try:
            for line in file.read_text("utf-8").splitlines():
                fields = line.split()
                if not fields or fields[0].startswith("#"):
                    continue
                if fields[0] == "@cert-authority":
                    authorities += [file] if len(fields) > 1 and _names(fields[1].split(","), hop.known_as) else []
                    continue
                revokes = fields[0] == "@revoked"
                entry = HostKeyEntry.from_line(" ".join(fields[1:] if revokes else fields))
                if entry is not None and _names(entry.hostnames, hop.known_as):
                    found["revoked" if revokes else "known"].append((entry.key, file))
        except FileNotFoundError as error:
            raise ConfigError(
                f"--known-hosts {file}: no such file; name one that holds the board's host key"
            ) from error
        except (OSError, ValueError, InvalidHostKey) as error:
            flag = "--known-hosts " if hop.known_hosts_named else ""
            raise ConfigError(f"{flag}{file} cannot be read as a known_hosts file: {error}") from error
    return HostKeys(tuple(found["known"]), tuple(found["revoked"]), tuple(authorities))


def _names(patterns: list[str], name: str) -> bool:
    """Whether known_hosts' patterns (plain, hashed, with wildcards, negated) name this host."""
    import paramiko

    def fits(pattern: str) -> bool:
        if pattern.startswith("|1|"):
            return bool(paramiko.HostKeys.hash_host(name, pattern) == pattern)
        return fnmatch.fnmatchcase(name.lower(), pattern.lower().replace("[", "[[]"))

    refused = any(fits(pattern[1:]) for pattern in patterns if pattern.startswith("!"))
    return not refused and any(fits(pattern) for pattern in patterns)


def _checking(hop: Hop, keys: HostKeys) -> Any:
    """paramiko's policy for unknown keys, which it is asked about every key, as it is told none."""
    import paramiko

    class Checking(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:  # noqa: ARG002
            keys.check(hop, key)

    return Checking()


# Keys of the user


class Keys:
    """paramiko's auth strategy: keys that the agent holds, then files; never a password.

    A key named by --identity is the only one tried, and one that cannot be read is a ConfigError.
    """

    def __init__(self, hop: Hop) -> None:
        self._hop = hop
        self._unusable: list[str] = []
        self._own = None if hop.identity is None or self._agent_has(hop.identity) else private_key(hop.identity)

    def authenticate(self, transport: paramiko.Transport) -> None:
        import paramiko

        refused = 0
        with contextlib.ExitStack() as held:
            for key in self._candidates(held):
                try:
                    if not transport.auth_publickey(self._hop.user, key):
                        return
                    self._unusable.append("a key alone is not enough there")
                except paramiko.AuthenticationException:
                    refused += 1
                if not transport.is_active() and self._hop.identity is None:
                    raise ssh_words.too_many_keys(self._hop, refused)
        tried = f"{refused} key{'s' * (refused != 1)} tried"
        raise paramiko.AuthenticationException("; ".join([tried, *self._unusable]))

    def _candidates(self, held: contextlib.ExitStack) -> Iterator[Any]:
        if self._own is not None:
            yield self._own
            return
        hop = self._hop
        files = [hop.identity] if hop.identity is not None else list(hop.identities) or _default_keys()
        wanted = {blob for file in files if (blob := public_blob(file)) is not None}
        agents = _agent_keys(held) if hop.agent else []
        named = [key for key in agents if key.asbytes() in wanted]
        yield from named
        if not hop.identities_only and hop.identity is None:
            yield from (key for key in agents if key.asbytes() not in wanted)
        seen = {key.asbytes() for key in named}
        for file in files:
            if file.is_file() and public_blob(file) not in seen:
                try:
                    yield private_key(file)
                except ConfigError as error:
                    self._unusable.append(str(error).removeprefix("--identity "))

    def _agent_has(self, identity: Path) -> bool:
        with contextlib.ExitStack() as held:
            blob = public_blob(identity)
            return blob is not None and any(key.asbytes() == blob for key in _agent_keys(held))


def _agent_keys(held: contextlib.ExitStack) -> list[Any]:
    import paramiko

    try:
        agent = paramiko.Agent()
        held.callback(agent.close)
        return list(agent.get_keys())
    except (paramiko.SSHException, OSError):  # a dead agent is no agent
        return []


def only_ssh_can(hop: Hop) -> bool:
    """Whether paramiko lacks what the config adds to ssh's algorithms, or what the keys there are ask for."""
    theirs = admitted(hop)
    if any(not theirs[key] or not ssh_config.added(key, names) <= set(theirs[key]) for key, names in hop.algorithms):
        return True
    keys = load_host_keys(hop)
    if keys.authorities and not keys.known:
        return True
    if hop.identity is not None:
        return _is_security_key(public_blob(hop.identity))
    files = [*hop.identities, *(Path("~/.ssh").expanduser() / f"{name}_sk" for name in ("id_ecdsa", "id_ed25519"))]
    with contextlib.ExitStack() as held:
        agents = [key.asbytes() for key in _agent_keys(held)] if hop.agent else []
    return any(_is_security_key(blob) for blob in (*map(public_blob, files), *agents))


def _is_security_key(blob: bytes | None) -> bool:
    """Of a public key in SSH's encoding: a hardware key (FIDO), which paramiko does not know."""
    return blob is not None and blob[4:7] == b"sk-"


def _default_keys() -> list[Path]:
    return [Path("~/.ssh").expanduser() / name for name in DEFAULT_KEYS]


def public_blob(identity: Path) -> bytes | None:
    """The public half that lies beside a private key."""
    public = identity if identity.suffix == ".pub" else identity.with_name(identity.name + ".pub")
    try:
        return base64.b64decode(public.read_text("utf-8").split()[1])
    except (OSError, ValueError, IndexError):
        return None


def private_key(identity: Path) -> paramiko.PKey:
    """Raises ConfigError with the mend."""
    import paramiko

    try:
        return paramiko.PKey.from_path(identity)
    except FileNotFoundError as error:
        raise ConfigError(f"--identity {identity}: no such file; name a private key") from error
    except (paramiko.PasswordRequiredException, TypeError) as error:
        raise ConfigError(
            f"--identity {identity} is protected by a passphrase: load it with `ssh-add {shlex.quote(str(identity))}` "
            "and leave --identity out, so that the ssh agent is asked"
        ) from error
    except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise ConfigError(f"--identity {identity} is not a private key that can be read: {error}") from error
