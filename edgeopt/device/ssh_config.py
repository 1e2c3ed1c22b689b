"""What ~/.ssh/config says about a board, as `ssh -G` resolves it; where there is no ssh, as paramiko reads the file.

The command line wins over the config. EDGEOPT_SSH_CONFIG, if set, is read instead of ~/.ssh/config and
/etc/ssh/ssh_config; `none` reads nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError, DeviceUnreachable
from . import Address

CONFIG_VARIABLE = "EDGEOPT_SSH_CONFIG"
RESOLVE_TIMEOUT_S = 15.0  # a Match exec, or a name server for CanonicalizeHostname, may take its time
MOST_HOPS = 8
ONLY_SSH = {  # what paramiko has no means for, and the values that ask for nothing
    "pkcs11provider": {"none"},
    "revokedhostkeys": {"none"},
    "knownhostscommand": {"none"},
    "certificatefile": {"none"},
    "bindaddress": set[str](),
    "bindinterface": set[str](),
    "proxyusefdpass": {"no", "false"},
}
ALGORITHMS = ("pubkeyacceptedalgorithms", "hostkeyalgorithms", "ciphers", "macs", "kexalgorithms")
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}

NAMES = "nhrk"  # tokens that an address or another's config may fill
UNREAD_BY_SHELLS = re.compile(r"[\w.%@:+-]*")

Settings = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Hop:
    """One SSH connection: the board's, or a jump host's on the way to it. `name` is what errors call it.

    algorithms: (key of ALGORITHMS, the names that the config admits) where it is not what ssh admits by itself.
    """

    name: str
    host: str
    port: int
    user: str
    known_hosts: tuple[Path, ...]
    known_as: str
    identity: Path | None = None
    identities: tuple[Path, ...] = ()
    identities_only: bool = False
    agent: bool = True
    proxy_command: str | None = None
    only_ssh: tuple[str, ...] = ()
    family: int = socket.AF_UNSPEC
    known_hosts_named: bool = False
    spelled: str = ""
    direct: bool = True
    algorithms: tuple[tuple[str, tuple[str, ...]], ...] = ()


def chain(address: Address) -> list[Hop]:
    """The connections to make, in order; the board's is the last. Raises ConfigError."""
    assert address.host is not None
    settings = resolve(address.host, address.user, address.port, address.config)
    hop = _hop(address.text, address.host, settings)
    if address.known_hosts is not None:
        hop = dataclasses.replace(hop, known_hosts=(address.known_hosts,), known_hosts_named=True)
    if address.identity is not None:
        hop = dataclasses.replace(hop, identity=address.identity, only_ssh=_without(hop.only_ssh, "certificatefile"))
    hops = [*_jumps(settings, address, 1), hop]
    return [
        dataclasses.replace(each, direct=number == 0 and not each.proxy_command) for number, each in enumerate(hops)
    ]


def refuse_what_only_ssh_can(hop: Hop) -> None:
    """Raises ConfigError where the config asks for what paramiko has no means for: nothing is left out silently."""
    if hop.only_ssh:
        raise ConfigError(
            f"{hop.name}: the ssh config's {', '.join(hop.only_ssh)} cannot be honoured by the paramiko transport; "
            "use --transport ssh"
        )


def resolve(host: str, user: str | None, port: int | None, config: str | None = None) -> Settings:
    """The config's settings for one host; keys are lower case. Raises ConfigError with ssh's or paramiko's own words.

    `config` is a file to read instead of the user's and the system's, or "none".
    """
    ssh = shutil.which("ssh")
    found = _ask_ssh(ssh, host, user, port, config) if ssh else _ask_paramiko(host, config)
    given = {"user": user, "port": str(port) if port else None}
    return {**found, **{key: (value,) for key, value in given.items() if value}}


def config_file(config: str | None = None) -> str | None:
    """The file that ssh is told to read instead of its own; None: ssh's own, the system's included.

    ssh asks the user database where home is; elsewhere edgeopt follows HOME, and so it does here.
    """
    chosen = config or os.environ.get(CONFIG_VARIABLE)
    if chosen and chosen.lower() != "none" and not Path(chosen).expanduser().is_file():
        raise ConfigError(f"ssh config '{chosen}' ({CONFIG_VARIABLE}): no such file; name one, or 'none'")
    if chosen:
        return str(Path(chosen).expanduser()) if chosen.lower() != "none" else "none"
    if home() == _database_home():
        return None
    own = home() / ".ssh" / "config"
    return str(own) if own.is_file() else "none"


def home() -> Path:
    return Path("~").expanduser()


def _database_home() -> Path:
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def _ask_ssh(ssh: str, host: str, user: str | None, port: int | None, config: str | None) -> Settings:
    file = config_file(config)
    command = [ssh, "-G", *(["-F", file] if file else []), *(["-l", user] if user else [])]
    found = _told(host, [*command, *(["-p", str(port)] if port else []), "--", host])
    own = _defaults(ssh)
    return {key: values for key, values in found.items() if key not in ALGORITHMS or values != own.get(key)}


@functools.cache
def _defaults(ssh: str) -> Settings:
    return _told("localhost", [ssh, "-G", "-F", "none", "--", "localhost"])


def added(key: str, names: tuple[str, ...]) -> set[str]:
    """Those of a setting of ALGORITHMS that ssh does not offer by itself."""
    ssh = shutil.which("ssh")
    own = _defaults(ssh).get(key, ("",))[0].split(",") if ssh else names
    return set(names) - set(own)


def _told(host: str, command: list[str]) -> Settings:
    """What `ssh -G` prints."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceUnreachable(f"ssh://{host}: `ssh -G {host}` gave no answer in {RESOLVE_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if "Pseudo-terminal" not in line]
        raise ConfigError(f"ssh cannot read its configuration for '{host}': {'; '.join(words)}; mend that file")
    found: dict[str, tuple[str, ...]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found[key] = (*found.get(key, ()), value)
    return found


def _ask_paramiko(host: str, config: str | None) -> Settings:
    import paramiko

    chosen = config_file(config)
    file = Path(chosen) if chosen else home() / ".ssh" / "config"
    if chosen == "none" or not file.exists():
        return {}
    text = file.read_text("utf-8", "replace")
    beyond = re.search(r"^\s*(Include\b.*|Match\b.*\bexec\b.*)$", text, re.IGNORECASE | re.MULTILINE)
    if beyond:
        raise ConfigError(
            f"{file}: '{beyond[1].strip()}' cannot be honoured without the `ssh` command, which this machine lacks: "
            f"install OpenSSH's client, or name a file without it in {CONFIG_VARIABLE}"
        )
    try:
        options = paramiko.SSHConfig.from_text(text).lookup(host)
    except paramiko.SSHException as error:
        raise ConfigError(f"{file} cannot be read as an ssh config: {error}") from error
    return {key: tuple(value) if isinstance(value, list) else (value,) for key, value in options.items()}


def _hop(name: str, spelled: str, settings: Settings) -> Hop:
    one = {key: values[0] for key, values in settings.items()}
    host, port = one.get("hostname", spelled), int(one.get("port", 22))
    user = one.get("user") or getpass.getuser()
    tokens = {"%": "%", "n": spelled, "h": host, "p": str(port), "r": user, "k": one.get("hostkeyalias", spelled)}
    tokens |= {"d": str(home()), "u": getpass.getuser(), "i": str(os.getuid()), "L": socket.gethostname()}
    agent = one.get("identityagent", "SSH_AUTH_SOCK")
    own_agent = agent.lower() == "none" or agent in ("SSH_AUTH_SOCK", os.environ.get("SSH_AUTH_SOCK"))
    beyond = [key for key, nothing in ONLY_SSH.items() if key in one and one[key].lower() not in nothing]
    command = one.get("proxycommand", "none")
    algorithms = {key: tuple(one[key].split(",")) for key in ALGORITHMS if key in one}
    beyond += [key for key, names in algorithms.items() if names[0][0] in "+-^"]  # only ssh knows what is added to
    return Hop(
        name=name,
        host=host,
        port=port,
        user=user,
        known_hosts=_known_hosts(one),
        spelled=spelled,
        known_as=one.get("hostkeyalias") or (host if port == 22 else f"[{host}]:{port}"),
        identities=tuple(_path(name, entry, tokens) for entry in settings.get("identityfile", ()) if entry != "none"),
        identities_only=one.get("identitiesonly", "no") in ("yes", "true"),
        agent=agent.lower() != "none",
        proxy_command=None if command.lower() == "none" else _expanded(name, command, tokens, to_shell=True),
        family=FAMILIES.get(one.get("addressfamily", "any"), socket.AF_UNSPEC),
        only_ssh=(*beyond, *(() if own_agent else ("identityagent",))),
        algorithms=tuple(algorithms.items()),
    )


def _jumps(settings: Settings, address: Address, depth: int) -> list[Hop]:
    """The hops of a ProxyJump. Only the first may have jumps of its own: it says how to reach the next ones."""
    jump = settings.get("proxyjump", ("none",))[0]
    if jump.lower() == "none":
        return []
    if depth > MOST_HOPS:
        raise ConfigError(
            f"{address.text}: ProxyJump '{jump}' leads through more than {MOST_HOPS} hosts; does one name itself?"
        )
    hops: list[Hop] = []
    for number, entry in enumerate(jump.split(",")):
        match = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(\[[^\]]+\]|[^:@]+)(?::(\d+))?/?", entry.strip())
        if match is None:
            raise ConfigError(f"{address.text}: '{entry}' in ProxyJump is not [user@]host[:port]")
        found = resolve(match[2].strip("[]"), match[1], int(match[3]) if match[3] else None, address.config)
        own = _jumps(found, address, depth + 1) if number == 0 else []
        hop = _hop(f"{address.text}: its jump host '{entry.strip()}'", match[2].strip("[]"), found)
        hops += [*own, hop if number == 0 else dataclasses.replace(hop, proxy_command=None)]
    return hops


def _known_hosts(one: Mapping[str, str]) -> tuple[Path, ...]:
    """Files of host keys; ssh writes its own idea of home into them."""
    own = str(home() / ".ssh" / "known_hosts")
    named = one.get("userknownhostsfile", own).split() + one.get("globalknownhostsfile", "").split()
    theirs, ours = str(_database_home() / ".ssh" / "known_hosts"), own
    moved = [ours + path.removeprefix(theirs) if path.startswith(theirs) else path for path in named]
    return tuple(Path(path).expanduser() for path in moved if path.lower() != "none")


def _path(name: str, entry: str, tokens: Mapping[str, str]) -> Path:
    return Path(_expanded(name, os.path.expandvars(entry), tokens)).expanduser()


def _expanded(name: str, text: str, tokens: Mapping[str, str], to_shell: bool = False) -> str:
    """`text` with ssh_config's %-tokens replaced; to_shell: by nothing that a shell would read."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise ConfigError(
                f"{name}: '%{match[1]}' in '{text}' of the ssh config cannot be honoured by the paramiko transport; "
                "use --transport ssh"
            )
        if to_shell and match[1] in NAMES and not UNREAD_BY_SHELLS.fullmatch(tokens[match[1]]):
            raise ConfigError(
                f"{name}: '{tokens[match[1]]}' would be read by the shell that runs the ssh config's ProxyCommand "
                f"'{text}'; give a name of letters, digits and . _ % @ : + -"
            )
        return tokens[match[1]]

    return re.sub(r"%(.)", value, text)


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)
