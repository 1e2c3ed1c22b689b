"""Known boards by name, in one TOML file, with the host key that each showed when it was added."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from .. import disk
from ..config import Allowed, Choices, Section, load_toml, nearest
from ..errors import ConfigError, IntegrityError
from ..profile import TRANSPORTS

VARIABLE = "EDGEOPT_DEVICES"
HEAD = "# Boards that edgeopt knows; written by `edgeopt device`.\n"

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
    Allowed("a name of letters, digits and . _ -"),
]


class Entry(Section):
    """One board. What tells it from others (serial, machine_id) is what it said itself when it was added."""

    address: Text = Field(description="ssh://[user@]host[:port]")
    profile: Text | None = Field(default=None, description="A profile's name, or the path of a .toml.")
    root: Text | None = Field(default=None, description="edgeopt's folder there, where the profile's is not meant.")
    python: Text | None = Field(default=None, description="Its Python that has the runtimes.")
    base_python: Text | None = Field(default=None, description="The Python that `device setup` builds upon.")
    identity: Text | None = Field(default=None, description="Private key file.")
    transport: Annotated[str, Choices(TRANSPORTS)] | None = Field(default=None, description="Who speaks ssh to it.")
    known_hosts: Text | None = Field(default=None, description="File of host keys, instead of edgeopt's own.")
    model: Text | None = Field(default=None, description="What the board calls itself.")
    serial: Text | None = Field(default=None, description="Its serial number.")
    machine_id: Text | None = Field(default=None, description="Its /etc/machine-id.")
    stand_in: bool | None = Field(default=None, description="It stands in for the profile's board: all is marked.")
    wheels: Text | None = Field(default=None, description="What wheels must fit: Python, machine and libc.")


class Registry(Section):
    device: dict[Name, Entry] = Field(default_factory=dict, description="Boards by name.")


def file() -> Path:
    """$EDGEOPT_DEVICES, else devices.toml in edgeopt's folder of the user's configuration."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "edgeopt" / "devices.toml"


def entries() -> dict[str, Entry]:
    """Every known board, by name. Raises ConfigError when the file is damaged."""
    path = file()
    return dict(load_toml(path, Registry).device) if path.exists() else {}


def get(name: str) -> Entry:
    """Raises ConfigError that names the boards there are."""
    known = entries()
    if name not in known:
        there = f"known are: {', '.join(known)}" if known else "none is known yet"
        mend = nearest(name, known) or "`edgeopt device add NAME ssh://user@host` makes one known"
        raise ConfigError(
            f"device '{name}' is not an address: allowed are 'local' and 'ssh://[user@]host[:port]', or the name of a "
            f"known board ({there}, in {file()}); {mend}"
        )
    return known[name]


def put(name: str, entry: Entry, new: bool = False) -> None:
    """Write one board, whole. Raises ConfigError for a name that may not be, or, with `new`, is taken."""
    check_name(name)
    with _changed() as known:
        if new and name in known:
            raise ConfigError(taken(name, known[name]))
        known[name] = entry


def check_name(name: str) -> None:
    """Raises ConfigError unless a board can be called so."""
    try:
        Registry(device={name: Entry(address="ssh://x")})
        if name == "local":
            raise ValueError(name)
    except ValueError:
        allowed = 'letters, digits and . _ -, beginning with a letter or digit, and not "local"'
        raise ConfigError(f"device name '{name}': allowed are {allowed}") from None


def taken(name: str, entry: Entry) -> str:
    """What is said to who adds a name a second time."""
    serial = f", serial {entry.serial}" if entry.serial else ""
    return (
        f"device '{name}' is known already ({entry.address}{serial}); choose another name, replace what is known with "
        f"--overwrite, or remove it with `edgeopt device remove {name}`"
    )


def adding(name: str) -> str:
    """The command that makes a known board known again, with what it was added with."""
    entry = get(name)
    options = {
        **{"profile": entry.profile, "root": entry.root, "board-python": entry.base_python},
        **{"identity": entry.identity, "known-hosts": entry.known_hosts, "transport": entry.transport},
    }
    given = [part for key, value in options.items() if value for part in (f"--{key}", shlex.quote(value))]
    given += ["--stand-in"] if entry.stand_in else []
    return " ".join(["edgeopt device add", name, entry.address, *given, "--overwrite"])


def named_by(path: Path) -> str | None:
    """The known board whose host keys edgeopt keeps in that file; None for a file that is somebody else's."""
    if path.parent != own_known_hosts("x").parent:
        return None
    return path.name if path.name in entries() else None


def remove(name: str) -> Entry:
    """Forget a board and its host key; the board itself is left as it is. Raises ConfigError."""
    found = get(name)
    with _changed() as known:
        known.pop(name, None)
    disk.remove(own_known_hosts(name))
    return found


def own_known_hosts(name: str) -> Path:
    """One file a board: several may answer at one address, one after the other, each with its own key."""
    return file().parent / "known_hosts" / name


def known_hosts(name: str, entry: Entry) -> Path:
    return Path(entry.known_hosts).expanduser() if entry.known_hosts else own_known_hosts(name)


def require_same(name: str, entry: Entry, board: Mapping[str, Any]) -> None:
    """Raises IntegrityError when `board` (the agent's identity()) is another one than was added under that name.

    A figure that either side lacks tells nothing; the machine id counts only where there is no serial number.
    """
    for key, words in (("serial", "serial number"), ("machine_id", "machine id")):
        known, found = getattr(entry, key), board.get(key)
        if known and found:
            if known == found:
                return
            model = f" ({board['model']})" if board.get("model") else ""
            other = [other for other, its in entries().items() if getattr(its, key) == found]
            which = f"; that is '{other[0]}'" if other else ""
            raise IntegrityError(
                f"device '{name}' was added with {words} {known}, but {entry.address} is now {words} {found}{model}"
                f"{which}. If this board takes its place, `edgeopt device remove {name}` and add it again; nothing "
                "was changed on it"
            )


@contextlib.contextmanager
def _changed() -> Iterator[dict[str, Entry]]:
    """The boards, to be changed; written when the block ends well. Two commands at once do not lose one another's."""
    path = file()
    with disk.locked(path.with_name(f".{path.name}.lock"), named_by=VARIABLE):
        known = entries()
        yield known
        text = HEAD + "".join(_table(name, known[name]) for name in sorted(known))
        disk.write(path, text, mode=0o600, durable=True, named_by=VARIABLE)


def _table(name: str, entry: Entry) -> str:
    lines = (f"{key} = {toml_text(value)}\n" for key, value in entry.model_dump(exclude_none=True).items())
    return f"\n[device.{toml_text(name)}]\n" + "".join(lines)


def toml_text(value: str | bool) -> str:
    """A TOML boolean, or a basic string: JSON's, whose escapes TOML has too, but for DEL, which JSON leaves bare."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
