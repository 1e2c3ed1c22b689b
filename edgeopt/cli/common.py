"""What several commands share: the device options, the session they open, JSON on stdout."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ConfigError
from . import complete
from .document import print_json as print_json

if TYPE_CHECKING:
    from ..device import Address
    from ..device.registry import Entry
    from ..device.session import Placement, Session
    from ..profile import DeviceProfile
    from .display import Display

Command = TypeVar("Command", bound=Callable[..., Any])
VERDICT_CODES = {"pass": 0, "fail": 10, "undecided": 11}
LOCAL_ROOT = Path("~/.local/state/edgeopt")

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
undecided_option = click.option(
    "--allow-undecided", is_flag=True, help="Exit code 0 for an undecided verdict, instead of 11."
)
repeat_option = click.option(
    "--no-repeat", is_flag=True, help="Do not measure again, after a pause, what drifted or throttled."
)


def _shapes(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(int(size) for size in text.split(",")) for text in texts)
    except ValueError:
        raise click.BadParameter(f"{texts[-1]!r} is not sizes with commas between, as 1,3,224,224") from None


def shape_option(told: str) -> Callable[[Command], Command]:
    """--shape as a `shapes` argument; told: its help."""
    return click.option("--shape", "shapes", callback=_shapes, multiple=True, help=told)


labels_option = click.option("--labels", help="Name of the array of labels in --inputs, which is no input.")


def metric_option(then: str) -> Callable[[Command], Command]:
    """--metric; then: what is known with labels and metric."""
    told = f"How labels are compared; then {then}."
    return click.option("--metric", type=click.Choice(["top1", "top5", "negative_mae"]), help=told)


def require_labelled(inputs: Path | None, labels: str | None, metric: str | None) -> None:
    """Raises ConfigError for labels without samples, and for a metric without labels."""
    if labels is not None and inputs is None:
        raise ConfigError(f"--labels {labels}: it names an array of --inputs, which is not given")
    if metric is not None and labels is None:
        raise ConfigError(f"--metric {metric}: it compares with labels; name their array with --labels")


def mode_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--mode, --minutes and --no-repeat."""
    for option in (
        repeat_option,
        click.option(
            "--minutes", type=click.FloatRange(0.1, 480), default=30.0, show_default=True, help="Of --mode sustained."
        ),
        click.option(
            "--mode",
            type=click.Choice(["rapid", "quick", "normal", "sustained"]),
            default="rapid",
            show_default=True,
            help="At least, each: rapid 64 queries and 6 s (p50 and p90 only), quick 256 and 10 s, normal 1,024 and "
            "60 s. sustained: how latency, temperature and clock go over --minutes; the end decides.",
        ),
    ):
        command = option(command)
    return command


transport_option = click.option(
    "--transport",
    type=click.Choice(["auto", "paramiko", "ssh"]),
    help="Who speaks ssh: paramiko (built in), ssh (this machine's: old servers, hardware keys), or auto, as "
    "ssh_config needs; default: the known board's, else paramiko.",
)

stand_in_option = click.option(
    "--stand-in", is_flag=True, help="The board is not the profile's, and may stand in for it: every figure is marked."
)

DEVICE_HELP = '"local", "ssh://[user@]host[:port]", or a name from `edgeopt device list`.'

_ABOUT_A_BOARD = (
    click.option(
        "--profile",
        help="Profile of the board: a name from `edgeopt profiles list`, or a .toml.",
        shell_complete=complete.profiles,
    ),
    click.option("--root", help="edgeopt's folder there; default: the known board's, else its profile's."),
    click.option(
        "--board-python", help="The board's Python; default: as for --root (for local: folder and Python of this user)."
    ),
    click.option("--identity", type=click.Path(path_type=Path), help="Private key file for ssh."),
    click.option(
        "--known-hosts",
        type=click.Path(path_type=Path),
        help="File of host keys; default: what `device add` kept, else what ssh uses.",
    ),
    transport_option,
    stand_in_option,
)


def about_a_board(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what a board is like, without --device; see `where_of`."""
    for option in reversed(_ABOUT_A_BOARD):
        command = option(command)
    return command


def where_of(device: str, options: dict[str, Any]) -> Where:
    """The board that --device and the options of `about_a_board` name; takes them out of `options`."""
    names = ("profile", "root", "board_python", "identity", "known_hosts", "transport", "stand_in")
    return Where(device, *(options.pop(name) for name in names))


def power_mode_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--governor and --frequency-cap as one `power_mode` argument."""

    @click.option("--governor", help="CPU frequency governor meanwhile (root there); the old one returns, always.")
    @click.option(
        "--frequency-cap", type=click.FloatRange(min=1e6), help="Highest CPU clock meanwhile, in Hz, as --governor."
    )
    @functools.wraps(command)
    def wrapped(governor: str | None, frequency_cap: float | None, **options: Any) -> Any:
        return command(power_mode={"governor": governor, "frequency_max_hz": frequency_cap}, **options)

    return wrapped


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device and the options of `about_a_board` as one `where` argument."""

    @click.option("--device", default="local", show_default=True, help=DEVICE_HELP, shell_complete=complete.devices)
    @about_a_board
    @functools.wraps(command)
    def wrapped(device: str, **options: Any) -> Any:
        where = where_of(device, options)
        return command(where=where, **options)

    return wrapped


def boards_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """As device_options, for several boards: --device again and again, or --all-devices; as one `boards` argument."""

    @click.option(
        "--device",
        "devices",
        multiple=True,
        help=f"{DEVICE_HELP} Repeat it for several.  [default: local]",
        shell_complete=complete.devices,
    )
    @click.option("--all-devices", is_flag=True, help="Every board of `edgeopt device list`.")
    @about_a_board
    @functools.wraps(command)
    def wrapped(devices: tuple[str, ...], all_devices: bool, **options: Any) -> Any:
        chosen = tuple(where_of(device, dict(options)) for device in _chosen(devices, all_devices))
        where_of("local", options)
        boards = Boards(chosen, all_devices or len(chosen) > 1, not (devices or all_devices))
        return command(boards=boards, **options)

    return wrapped


def _chosen(devices: tuple[str, ...], all_devices: bool) -> tuple[str, ...]:
    if not all_devices:
        if twice := [device for device in devices if devices.count(device) > 1]:
            raise ConfigError(f"--device {twice[0]} is given more than once; give each board once")
        return devices or ("local",)
    from ..device import registry

    if devices:
        raise ConfigError("--device and --all-devices contradict each other; give one")
    if not (known := registry.entries()):
        raise ConfigError(f"--all-devices: no board is known yet ({registry.file()}); see `edgeopt device add`")
    return tuple(known)


@dataclasses.dataclass(frozen=True)
class Boards:
    """several: a table and a list are wanted, even of one board. by_default: nobody named the one there is."""

    chosen: tuple[Where, ...]
    several: bool
    by_default: bool = False

    def named(self, document: dict[str, Any]) -> str:
        """What a screen calls the board of a record with "device" and "board"."""
        if document["device"] == "local":
            return "this machine (no --device was given)" if self.by_default else "this machine"
        name = document["board"]["name"]
        return f"{name} ({document['device']})" if name else str(document["device"])


class Where:
    """The board that the options name: an address, or one that `edgeopt device add` made known; options win."""

    def __init__(
        self,
        device: str,
        profile: str | DeviceProfile | None,
        root: str | None,
        python: str | None,
        identity: Path | None,
        known_hosts: Path | None,
        transport: str | None = None,
        stand_in: bool = False,
    ) -> None:
        self.device = device
        self._options = {"root": root, "board-python": python, "identity": identity, "known-hosts": known_hosts}
        self._options |= {"transport": transport}
        self.name, self.entry = _known(device)
        if self.entry is not None and self.name is not None:
            from ..device import registry

            profile = profile or self.entry.profile
            root, python = root or self.entry.root, python or self.entry.python
            own = self.entry.identity
            identity = identity or (Path(own).expanduser() if own else None)
            known_hosts = known_hosts or registry.known_hosts(self.name, self.entry)
            transport = transport or self.entry.transport
            stand_in = stand_in or bool(self.entry.stand_in)
        self.text = self.entry.address if self.entry else device
        self._address = self.text, identity, known_hosts, transport or "paramiko"
        self._profile, self._root, self._python = profile, root, python
        self.may_stand_in = stand_in
        self._stand_in: dict[str, Any] | None = None  # as provenance.checked, of the board that was opened

    def place(self, made_for: str | None = None, root: str | None = None) -> Placement:
        """edgeopt's folder and the Python there. made_for: the profile that a given bundle names; where no other one is
        known, it serves if it comes with edgeopt: a bundle itself chooses neither. root: where nobody tells it.

        Raises ConfigError.
        """
        from .. import profile as profiles
        from ..device.session import Placement

        known = self.known_profile() or (profiles.named(made_for) if made_for else None)
        board = known.board if known else None
        if self.address().host is None:  # this machine: a profile speaks of another one's folders and interpreter
            own_root = Path(self._root or LOCAL_ROOT).expanduser().resolve()
            return Placement(str(own_root), self._python or sys.executable)
        chosen_root = self._root or (board.root if board else root)
        if chosen_root is None:
            other = f" ('{made_for}', which the bundle names, is none that comes with edgeopt)" if made_for else ""
            raise ConfigError(
                f"--device {self.device}: name the board's profile with --profile, or its folder with --root{other}"
            )
        if not chosen_root.startswith("/"):
            raise ConfigError(f"--root {chosen_root}: an absolute path on the board is needed")
        return Placement(chosen_root, self._python or (board.python if board else "python3"))

    def spelled(self, root: str | None = None) -> str:
        """How a command line names this board. root: its folder there, where it is known."""
        given = {**self._options, "root": self._options["root"] or (None if self.name else root)}
        options = [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
        return shlex.join([self.device, *options])

    def address(self) -> Address:
        """Raises ConfigError."""
        from ..device import parse_address

        return parse_address(*self._address)

    @property
    def profile(self) -> str | DeviceProfile | None:
        """The option's, else the known board's."""
        return self._profile

    def known_profile(self) -> DeviceProfile | None:
        """The profile itself. Raises ConfigError."""
        from .. import profile as profiles

        return profiles.load(self._profile) if isinstance(self._profile, str) else self._profile

    def profile_id(self) -> str | None:
        """As a bundle made for it names it; None where no profile is known."""
        if self._profile is None or isinstance(self._profile, str):
            return Path(self._profile).stem if self._profile else None
        return self._profile.id

    def base_python(self) -> str | None:
        """The Python that `device setup` built upon, of a board that was added."""
        return self.entry.base_python if self.entry else None

    def runtimes(self) -> list[str]:
        """Those of the board's profile; none where no profile is known."""
        found = self.known_profile()
        return list(found.runtimes) if found else []

    def cost(self) -> dict[str, Any]:
        """[cost] of the board's profile; nothing where no profile is known."""
        found = self.known_profile()
        return found.cost.model_dump() if found else {}

    def open(
        self, display: Display, made_for: str | None = None, upon: str | None = None, any_board: bool = False
    ) -> tuple[Session, str]:
        """(session, the board's Python). made_for: as for `place`; `upon` is used instead of any other Python.

        any_board: for what measures nothing and must work in need; else a board that is not the profile's is refused.

        Raises ConfigError, everything that connecting raises, and IntegrityError when another board answers than was
        added under this name.
        """
        from .. import provenance
        from ..device import open_transport
        from ..device.session import Placement, Session

        place = self.place(made_for)
        place = Placement(place.root, upon or place.python)
        session = Session(open_transport(self.address()), place, on_event=display.event)
        session.spelled = self.spelled(place.root)
        try:
            self.require_same(session.hello["board"])
            if not any_board:
                board = {**session.hello["board"], **session.hello["hardware"]}
                self._stand_in = provenance.checked(self.known_profile(), board, session.address, self.may_stand_in)
        except BaseException:
            session.__exit__(None, None, None)
            raise
        return session, place.python

    def require_same(self, board: dict[str, Any]) -> None:
        """Raises IntegrityError when the board that answers (its agent's identity()) is another than was added."""
        if self.entry is not None and self.name is not None:
            from ..device import registry

            registry.require_same(self.name, self.entry, board)

    def keep_python(self, root: str, base: str, wheels: str) -> None:
        """From now on this board, if it was added, is used with the environment that `device setup` made."""
        if self.entry is None or self.name is None:
            return
        from ..device import registry

        kept = {"root": self._root, "python": f"{root}/python/current/bin/python3", "base_python": base}
        changed = self.entry.model_copy(update={**kept, "wheels": wheels})
        if changed != self.entry:
            registry.put(self.name, changed)

    def budgets(self) -> dict[str, float]:
        """The demands of the board's profile, where one is known. Raises ConfigError."""
        found = self.known_profile()
        stated = found.budget.model_dump() if found else {}
        return {name: value for name, value in stated.items() if value is not None}

    def board(self, session: Session) -> dict[str, Any]:
        """Which board a record is about: its name here, what it says of itself (the agent's identity() and
        hardware()), and "stand_in" as of provenance.checked."""
        hello = session.hello
        return {"name": self.name, **hello["board"], **hello["hardware"], "stand_in": self._stand_in}


def _known(device: str) -> tuple[str | None, Entry | None]:
    """(name, entry) of a board that was added; an address is none. Raises ConfigError."""
    if device == "local" or "://" in device:
        return None, None
    from ..device import registry

    return device, registry.get(device)


def known_profile(device: str | None) -> str | None:
    """The profile that a board was added with; None for an address, and where none was named. Raises ConfigError."""
    _, entry = _known(device) if device else (None, None)
    return entry.profile if entry else None


def verdict_code(verdict: str, allow_undecided: bool) -> int:
    """0 pass, 10 fail, 11 undecided."""
    return 0 if verdict == "undecided" and allow_undecided else VERDICT_CODES[verdict]
