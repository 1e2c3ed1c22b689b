"""What several commands share: the device options, the session they open, progress on stderr, JSON on stdout."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..device.session import Session
    from ..profile import DeviceProfile

VERDICT_CODES = {"pass": 0, "fail": 10, "undecided": 11}
PLAIN_INTERVAL_S = 2.0
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


class Display:
    """Progress on stderr: a bar with the time left on a terminal, a line every two seconds elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._began = self._printed = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def event(self, event: dict[str, Any]) -> None:
        """Show one event of a session, a job or a stage."""
        if event["event"] == "progress":
            self._progress(event["what"], event["done"], event["of"])
        else:
            self._end_bar()
            self._console.print(f"{event['what']}", markup=False)

    def _progress(self, what: str, done: int, total: int) -> None:
        family = what.split(" (")[0]
        if family != self._what:
            self._end_bar()
            self._what, self._began, self._printed = family, time.monotonic(), time.monotonic()
        if self._console.is_terminal:
            self._terminal_progress(what, done, total)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            left = (time.monotonic() - self._began) / done * (total - done) if done else None
            self._console.print(
                f"{what}: {done}/{total}" + (f", about {left:.0f} s left" if left else ""), markup=False
            )

    def _terminal_progress(self, what: str, done: int, total: int) -> None:
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(escape(what), total=total)
            self._bar.start()
        self._bar.update(self._task, description=escape(what), completed=done, total=total)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._what = ""


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def verdict_code(verdict: str, allow_undecided: bool) -> int:
    """0 pass, 10 fail, 11 undecided."""
    return 0 if verdict == "undecided" and allow_undecided else VERDICT_CODES[verdict]
