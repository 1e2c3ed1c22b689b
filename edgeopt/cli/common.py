"""What several commands share: the device options, the session they open, JSON on stdout."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..device.session import Session
    from ..profile import DeviceProfile
    from .display import Display

VERDICT_CODES = {"pass": 0, "fail": 10, "undecided": 11}
LOCAL_ROOT = Path("~/.local/state/edgeopt")

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
undecided_option = click.option(
    "--allow-undecided", is_flag=True, help="Exit code 0 for an undecided verdict, instead of 11."
)
mode_option = click.option(
    "--mode",
    type=click.Choice(["rapid", "quick", "normal"]),
    default="rapid",
    show_default=True,
    help="At least, each: rapid 64 queries and 6 s (p50 and p90 only), quick 256 and 10 s, normal 1,024 and 60 s.",
)


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device, --profile, --root, --board-python, --identity, --known-hosts as one `where` argument."""

    @click.option("--device", default="local", show_default=True, help='"local" or "ssh://[user@]host[:port]".')
    @click.option("--profile", help="Profile of the board: a name from `edgeopt profiles list`, or a .toml.")
    @click.option("--root", help="edgeopt's folder there; default: the profile's, else a given bundle's.")
    @click.option("--board-python", help="The board's Python; default: the profile's, else a given bundle's.")
    @click.option("--identity", type=click.Path(path_type=Path), help="Private key file for ssh.")
    @click.option("--known-hosts", type=click.Path(path_type=Path), help="Default: ~/.ssh/known_hosts.")
    @functools.wraps(command)
    def wrapped(
        device: str,
        profile: str | None,
        root: str | None,
        board_python: str | None,
        identity: Path | None,
        known_hosts: Path | None,
        **others: Any,
    ) -> Any:
        where = Where(device, profile, root, board_python, identity, known_hosts)
        return command(where=where, **others)

    return wrapped


class Where:
    """The board that the options name."""

    def __init__(
        self,
        device: str,
        profile: str | DeviceProfile | None,
        root: str | None,
        python: str | None,
        identity: Path | None,
        known_hosts: Path | None,
    ) -> None:
        self.device = device
        self._address = device, identity, known_hosts
        self._profile, self._root, self._python = profile, root, python

    def open(self, display: Display, root: str | None = None, python: str | None = None) -> tuple[Session, str]:
        """(session, the board's Python). `root` and `python` serve where neither option nor profile says otherwise.

        Raises ConfigError, and everything that connecting raises.
        """
        from .. import profile as profiles
        from ..device import open_transport, parse_address
        from ..device.session import Placement, Session

        board = profiles.load(self._profile).board if isinstance(self._profile, str) else None
        board = self._profile.board if isinstance(self._profile, profiles.DeviceProfile) else board
        address = parse_address(*self._address)
        if address.host is None:  # this machine: a profile speaks of another one's folders and interpreter
            own_root = Path(self._root or LOCAL_ROOT).expanduser().resolve()
            place = Placement(str(own_root), self._python or sys.executable)
            return Session(open_transport(address), place, on_event=display.event), place.python
        chosen_root = self._root or (board.root if board else root)
        if chosen_root is None:
            raise ConfigError(
                f"--device {address.text}: name the board's profile with --profile, or its folder with --root"
            )
        if not chosen_root.startswith("/"):
            raise ConfigError(f"--root {chosen_root}: an absolute path on the board is needed")
        chosen_python = self._python or (board.python if board else python) or "python3"
        place = Placement(chosen_root, chosen_python)
        return Session(open_transport(address), place, on_event=display.event), chosen_python


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def verdict_code(verdict: str, allow_undecided: bool) -> int:
    """0 pass, 10 fail, 11 undecided."""
    return 0 if verdict == "undecided" and allow_undecided else VERDICT_CODES[verdict]
