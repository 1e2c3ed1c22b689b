"""Boards over the system's own `ssh`: for what only it can do (hardware keys, old servers), with the same strictness.

One master connection per transport lives in a private folder; each command is a session of it. The user's config is
read after settings of ours that it cannot undo, on jump hosts too: strict host keys, no questions, no passwords.
"""

from __future__ import annotations

import base64
import contextlib
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from ..errors import ConfigError, EdgeoptError
from . import Address, ssh_config, ssh_hop, ssh_words
from .local import ProcessPipe
from .ssh_config import Hop

CONNECT_TIMEOUT_S = 15.0
KEEPALIVE_S = 5
KEEPALIVES_LOST = 3
IDLE_S = 60  # a master whose host process was killed ends by itself after that long without a command
CLOSE_TIMEOUT_S = 5.0
LEAVE_S = 0.5
LONGEST_FOLDER = 60  # characters; a socket's path may have about 100

SETTINGS = """\
IgnoreUnknown ForkAfterAuthentication,SessionType,StdinNull,UpdateHostKeys
Host *
  StrictHostKeyChecking yes
  NoHostAuthenticationForLocalhost no
  VerifyHostKeyDNS no
  UpdateHostKeys no
  BatchMode yes
  PreferredAuthentications publickey
  ConnectTimeout {connect_s:.0f}
  ConnectionAttempts 1
  ServerAliveInterval {keepalive_s}
  ServerAliveCountMax {keepalives_lost}
  ControlMaster no
  ControlPath none
  ForwardAgent no
  ForwardX11 no
  ClearAllForwardings yes
  PermitLocalCommand no
  RemoteCommand none
  RequestTTY no
  Tunnel no
  AddKeysToAgent no
  VisualHostKey no
  EscapeChar none
  ForkAfterAuthentication no
  SessionType default
  StdinNull no
  LogLevel DEBUG1
"""
NOISE = re.compile(  # what says nothing about the cause
    r"debug\d: |OpenSSH_|Authenticated to |kex_exchange_identification: |Connection closed by UNKNOWN|"
    r"banner exchange: Connection to UNKNOWN|stdio forwarding failed|\*\* |@|Warning: Permanently"
)
CONNECTING = re.compile(r"^(ssh: )?(connect to host \S+ port \d+: )?")


def is_needed(address: Address) -> bool:
    """Whether the ssh config, the keys or the known hosts ask for what paramiko cannot do. Raises ConfigError."""
    return any(hop.only_ssh or ssh_hop.only_ssh_can(hop) for hop in ssh_config.chain(address))


class OpenSshPipe(ProcessPipe):
    def close(self) -> None:
        """The command's input ends first, and it has a moment to go: dropbear mixes up channels otherwise (ssh.py)."""
        if not self._stdin.closed:
            with contextlib.suppress(OSError):
                self._stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_S)
        super().close()

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        code, stderr = super().end(timeout_s)
        return (None if code is not None and (code < 0 or code == 255) else code), stderr


class OpenSshTransport:
    """`timeout_s`: how long connecting may take."""

    def __init__(self, address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.address = address.text
        self._target = address
        self._timeout_s = timeout_s
        self._folder: Path | None = None
        self._hops: list[Hop] = []

    def open(self, command: str) -> OpenSshPipe:
        if not self._is_connected():
            self.close()
            self._connect()
        assert self._folder is not None
        # were the master gone, ssh would connect anew, with nobody to read its refusals: `false` stands in the way
        quiet = ["-o", "LogLevel=QUIET", "-o", "ProxyCommand=false", "-T"]
        return OpenSshPipe([*self._ssh(*quiet), f"exec /bin/sh -c {shlex.quote(command)}"], self.address)

    def close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is None:
            return
        if (folder / "master").exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                leave = self._ssh("-o", "ProxyCommand=false", "-O", "exit", folder=folder)
                subprocess.run(
                    leave,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=CLOSE_TIMEOUT_S,
                    check=False,
                )
        shutil.rmtree(folder, ignore_errors=True)  # without its socket no master is found again, and idleness ends it

    def _is_connected(self) -> bool:
        if self._folder is None:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CLOSE_TIMEOUT_S)
            try:
                probe.connect(str(self._folder / "master"))
            except OSError:
                return False
        return True

    def shown_key(self) -> tuple[str, str]:
        """(type, key in base64) of the host key that the board shows; no key of the user's is offered to it.

        Jump hosts on the way are verified and logged in to as ever. Raises as open() does.
        """
        known = self._prepare() / "shown"
        ask = ["StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={_quoted(known)}", "GlobalKnownHostsFile=none"]
        ask += ["HashKnownHosts=no", "PreferredAuthentications=none", "PubkeyAuthentication=no"]
        try:
            _, said = self._begin(["-v", *_set(ask)], "true")
            if not known.is_file():
                raise self._failure(said)
            kind, key = known.read_text("utf-8").split()[1:3]
            return kind, key
        finally:
            self.close()

    def _connect(self) -> None:
        """Start the master; returns when it is logged in."""
        self._prepare()
        # without -v, a master that will persist hides what its ProxyCommand or jump host says
        settings = ["ControlMaster=yes", f"ControlPersist={IDLE_S}"]
        try:
            code, said = self._begin(["-v", "-f", "-N", *_set(settings)])
            if code != 0:
                raise self._failure(said)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> Path:
        """The private folder of one connection, with its config."""
        self._hops = ssh_config.chain(self._target)
        _check_files(self._target)
        temporary = tempfile.gettempdir()
        where = temporary if len(temporary) <= LONGEST_FOLDER else "/tmp"
        self._folder = Path(tempfile.mkdtemp(prefix="edgeopt-ssh-", dir=where))  # mode 0700
        (self._folder / "config").write_text(_config(self._timeout_s, self._target))
        return self._folder

    def _begin(self, options: list[str], *command: str) -> tuple[int, str]:
        """(exit code of ssh, what it said). Raises DeviceUnreachable, ConfigError."""
        assert self._folder is not None
        said = self._folder / "said"
        try:
            with said.open("wb") as errors:
                done = subprocess.run(
                    [*self._ssh(*options), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    timeout=self._timeout_s,
                    start_new_session=True,
                    check=False,
                )
        except FileNotFoundError as error:
            raise ConfigError("--transport ssh: there is no `ssh` command here: install OpenSSH's client") from error
        except subprocess.TimeoutExpired as error:
            raise ssh_words.unreachable(self._hops[-1], f"no login within {self._timeout_s:g} s") from error
        return done.returncode, said.read_text("utf-8", "replace")

    def _failure(self, said: str) -> EdgeoptError:
        return _failure(self._hops, self._target, said)

    def _ssh(self, *options: str, folder: Path | None = None) -> list[str]:
        folder = folder or self._folder
        assert folder is not None
        target = self._target
        own = ["-l", target.user] if target.user else []
        own += ["-p", str(target.port)] if target.port else []
        own += ["-i", str(target.identity), "-o", "IdentitiesOnly=yes"] if target.identity else []
        if target.known_hosts:
            own += ["-o", f"UserKnownHostsFile={_quoted(target.known_hosts)}", "-o", "GlobalKnownHostsFile=none"]
        return [
            "ssh",
            "-F",
            str(folder / "config"),
            "-S",
            str(folder / "master"),
            *options,
            *own,
            "--",
            str(target.host),
        ]


def _set(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]


def _config(timeout_s: float, target: Address) -> str:
    """Our settings first: of each, ssh takes the first value that it reads."""
    text = SETTINGS.format(connect_s=max(1, timeout_s), keepalive_s=KEEPALIVE_S, keepalives_lost=KEEPALIVES_LOST)
    file = ssh_config.config_file(target.config)
    own = str(ssh_config.home() / ".ssh")
    files = [f"{own}/config", "/etc/ssh/ssh_config"] if file is None else [] if file == "none" else [file]
    text += "".join(f"Include {_quoted(Path(name))}\n" for name in files)
    return text + f"Host *\n  UserKnownHostsFile {_quoted(Path(own, 'known_hosts'))}\n"


def _quoted(path: Path) -> str:
    """A path as ssh_config takes it, whatever is in it."""
    return '"{}"'.format(str(path).replace("%", "%%"))


def _check_files(target: Address) -> None:
    if target.identity is not None and not target.identity.exists():
        raise ConfigError(f"--identity {target.identity}: no such file; name a private key")
    if target.known_hosts is not None and not target.known_hosts.is_file():
        raise ConfigError(f"--known-hosts {target.known_hosts}: no such file; name one that holds the board's host key")


def _failure(hops: list[Hop], target: Address, said: str) -> EdgeoptError:
    """What ssh's own words mean, and which of the hosts on the way they are about."""
    lines = [line for line in said.splitlines() if line.strip() and not NOISE.match(line)]
    last = CONNECTING.sub("", lines[-1]) if lines else "ssh said nothing"
    hop = _meant(hops, said)
    shown = (re.findall(r"Server host key: (\S+ SHA256:\S+)", said) or ["ssh-ed25519 (ssh does not tell which)"])[-1]
    if "REVOKED HOST KEY DETECTED" in said:
        return ssh_words.revoked_key(hop, " or ".join(map(str, hop.known_hosts)), shown)
    if offending := re.search(r"Offending \S+ key in (.+):(\d+)", said):
        return ssh_words.changed_key(hop, offending[1], _key_in(Path(offending[1]), int(offending[2])), shown)
    if "Host key verification failed" in said:
        return ssh_words.unknown_key(hop, shown)
    if re.search(r"no matching .* found", last):
        return ssh_words.too_old(hop, last, "ssh")
    if re.search(r"Bad configuration option|Bad owner or permissions on|terminating, \d+ bad", said):
        return ConfigError(f"ssh cannot read its configuration: {'; '.join(lines)}; mend that file")
    if "Too many authentication failures" in said and target.identity is None:
        return ssh_words.too_many_keys(hop, len(re.findall("Offering public key", said)))
    if "Permission denied" in last or "Too many authentication failures" in said:
        if target.identity is not None and hop is hops[-1]:
            ssh_hop.Keys(hop)  # says what is wrong with the file itself, if anything is
        return ssh_words.refused_user(hop, last)
    return ssh_words.unreachable(hop, last)


def _meant(hops: list[Hop], said: str) -> Hop:
    """The hop that a refusal names; the board's where none is named."""
    patterns = (r"host key is known for (\S+) and", r"ost key for (\S+) has changed", r"The \S+ host key for (\S+)")
    names = [name for pattern in patterns for name in re.findall(pattern, said)]
    hosts = re.findall(r"^(\S+)@(\S+): Permission denied", said, re.MULTILINE)
    hosts += [("", host) for host in re.findall(r"^ssh: connect to host (\S+) port", said, re.MULTILINE)]
    for hop in hops:
        if hop.known_as in names or any(host == hop.host and user in ("", hop.user) for user, host in hosts):
            return hop
    return hops[-1]


def _key_in(file: Path, number: int) -> str:
    """The fingerprint of the key on one line of a known_hosts file."""
    try:
        fields = file.read_text("utf-8", "replace").splitlines()[number - 1].split()
        kind, blob = fields[1:3]
        return ssh_words.fingerprint(kind, base64.b64decode(blob))
    except (OSError, ValueError, IndexError):
        return "another key"
