"""What `edgeopt device add` does: a board is looked at before it is known; nothing is kept of one that does not fit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import disk
from ..errors import ConfigError, IntegrityError, MissingDependency
from .display import Display, echo

if TYPE_CHECKING:
    from ..device import Address
    from ..device.hostkey import HostKey
    from ..device.registry import Entry


def known_as(
    name: str, entry: Entry, target: Address, accept_new: bool, fingerprint: str | None, overwrite: bool
) -> tuple[Entry, HostKey | None]:
    """Look at the board and make it known: (entry with what the board said, the host key that was trusted).

    Raises ConfigError, IntegrityError and all that connecting raises; what was known before stays then.
    """
    from ..device import hostkey, registry

    key = None if entry.known_hosts else trusted_key(target, accept_new, fingerprint)
    own = registry.own_known_hosts(name)
    with _beside(own) as pending:
        if key is not None:
            hostkey.keep(key, pending)
        entry = _seen(name, entry, registry.known_hosts(name, entry) if key is None else pending)
        registry.put(name, entry, new=not overwrite)
        if key is not None:
            pending.replace(own)
        else:
            disk.remove(own)
    return entry, key


def same_boards(name: str, entry: Entry, known: Mapping[str, Entry]) -> dict[str, str]:
    """Other names of that board, with what tells it; the machine id counts only where a serial number is missing."""
    found = {}
    for other, its in known.items():
        key, words = ("serial", "serial number") if entry.serial and its.serial else ("machine_id", "machine id")
        if other != name and getattr(entry, key) and getattr(entry, key) == getattr(its, key):
            found[other] = words
    return found


def say_same(same: Mapping[str, str]) -> None:
    for words in dict.fromkeys(same.values()):
        names = ", ".join(other for other, told in same.items() if told == words)
        copy = ", or a copy of its system" if words == "machine id" else ""
        echo(f"it has the {words} of {names}: the same board, known by two names{copy}")


def missing_profile(name: str, entry: Entry) -> str | None:
    """What to do where the entry says neither profile nor folder, so that most commands would refuse."""
    from ..device import registry
    from ..provenance import generic_profile

    if entry.profile or entry.root:
        return None
    machine = entry.wheels.split()[2] if entry.wheels else None
    fitting = generic_profile(machine)
    chosen = fitting or "NAME"
    others = "`edgeopt profiles list` tells the others" if fitting else "`edgeopt profiles list` tells the names"
    return (
        "no --profile was given, so commands do not know edgeopt's folder there: run "
        f"`{registry.adding(name)} --profile {chosen}` ({others}; `edgeopt device probe {name}` writes "
        "one of this board)"
    )


def trusted_key(target: Address, accept_new: bool, fingerprint: str | None) -> HostKey:
    """The board's key, after somebody took it for the right one. Raises ConfigError, IntegrityError."""
    from ..device import hostkey, ssh_words

    key = hostkey.shown_by(target)
    shown = f"{target.text} shows the {key.kind} host key {key.fingerprint}"
    if fingerprint is not None:
        if fingerprint.rstrip("=") != key.fingerprint:
            raise IntegrityError(f"{shown}, not {fingerprint}; nothing was sent")
        return key
    if accept_new:
        echo(shown, err=True)
        return key
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{shown}; there is no terminal to ask on: compare it with the board's own ({ssh_words.OWN_KEYS}) "
            f"and give --fingerprint {key.fingerprint}, or --accept-new"
        )
    echo(f"{shown}.", err=True)
    echo(f"The board's own are told by {ssh_words.OWN_KEYS}", err=True)
    if not click.confirm("Is that the board you mean?", err=True):
        raise IntegrityError(f"{target.text} was not added: nobody vouched for its host key; nothing was sent")
    return key


def _seen(name: str, entry: Entry, keys: Path) -> Entry:
    """The entry with what the board says of itself. `keys`: the file of host keys."""
    from .. import probe, provenance
    from .. import profile as profiles
    from .. import setup as environments
    from ..device import open_transport, parse_address

    board = profiles.load(entry.profile) if entry.profile else None
    python = entry.python or (board.board.python if board else "python3")
    identity = Path(entry.identity) if entry.identity else None
    address = parse_address(entry.address, identity, keys, entry.transport or "paramiko")
    with Display(f"adding {name}") as display:
        facts = probe.look(open_transport(address), python, display.event)
    try:
        stands_in = provenance.checked(board, facts, entry.address, bool(entry.stand_in))
    except ConfigError as error:
        raise ConfigError(f"{error}; nothing was kept") from error
    try:
        wheels: str | None = str(environments.Target.of(facts["environment"], entry.address))
    except MissingDependency:
        wheels = None
    told = {key: facts[key] or None for key in ("model", "serial", "machine_id")}
    return entry.model_copy(update={**told, "wheels": wheels, "stand_in": True if stands_in else None})


@contextlib.contextmanager
def _beside(own: Path) -> Iterator[Path]:
    """A place for a host key until the board is known by it: an earlier one stays if anything fails."""
    pending = own.with_name(f".{own.name}.new")
    try:
        yield pending
    finally:
        disk.remove(pending)
