"""edgeopt device: known boards by name, a Python environment for them, and profiles read from them."""

from __future__ import annotations

import datetime
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from . import adding, complete, jobs
from .common import Where, about_a_board, json_option, print_json, where_of
from .display import Display, echo, screen

if TYPE_CHECKING:
    from ..device.registry import Entry

LINUX_BOARD = "ssh://[user@]host[:port]"
TITLES = {"wheels": "packages for"}  # of `device show`, where a key of the file says too little


@click.group()
def device() -> None:
    """Boards by name: `--device NAME` then works everywhere.

    \b
    Example:
      edgeopt device add kitchen ssh://pi@raspberrypi --profile raspberry-pi-4
      edgeopt device setup kitchen
      edgeopt status --device kitchen
    """


@device.command("add")
@click.argument("name")
@click.argument("address")
@click.option("--accept-new", is_flag=True, help="Trust the host key that the board shows, without asking.")
@click.option("--fingerprint", help="Trust the host key that has this fingerprint, SHA256:…, and no other.")
@click.option("--overwrite", is_flag=True, help="Replace what is known of NAME, its host key included.")
@about_a_board
@json_option
def add(
    name: str,
    address: str,
    accept_new: bool,
    fingerprint: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Make the board at ADDRESS (ssh://[user@]host[:port]) known as NAME.

    Shows the fingerprint of its host key and asks. The key is kept in a file of edgeopt's own; ~/.ssh is left alone.
    With --known-hosts that file decides, and nothing is asked. Nothing stays on the board.

    \b
    Example:
      edgeopt device add kitchen ssh://pi@raspberrypi --profile raspberry-pi-4
      edgeopt device add kitchen ssh://pi@raspberrypi --profile raspberry-pi-4 --accept-new
      edgeopt device add kitchen ssh://pi@raspberrypi --profile raspberry-pi-4 --overwrite
    """
    from .. import profile as profiles
    from ..device import parse_address, registry

    registry.check_name(name)
    if name in (known := registry.entries()) and not overwrite:
        raise ConfigError(registry.taken(name, known[name]))
    if options["known_hosts"] and (accept_new or fingerprint):
        raise ConfigError("--known-hosts decides by itself; leave out --accept-new and --fingerprint, or leave it out")
    if options["profile"]:
        profiles.load(options["profile"])
    target = parse_address(address)
    if target.host is None:
        raise ConfigError(f"device add {name} {address}: allowed are boards behind ssh, {LINUX_BOARD}")
    entry = registry.Entry(
        address=address,
        profile=_absolute(options["profile"]) if str(options["profile"]).endswith(".toml") else options["profile"],
        root=options["root"],
        python=options["board_python"],
        base_python=options["board_python"],
        identity=_absolute(options["identity"]),
        known_hosts=_absolute(options["known_hosts"]),
        transport=options["transport"],
        stand_in=options["stand_in"] or None,
    )
    entry, key = adding.known_as(name, entry, target, accept_new, fingerprint, overwrite)
    same = adding.same_boards(name, entry, known)
    missing = adding.missing_profile(name, entry)
    if as_json:
        shown = {"fingerprint": key.fingerprint if key else None, "same_as": list(same)}
        print_json({**_record(name, entry), **shown, "missing": ["--profile"] if missing else []})
        return 0
    echo(f"{name} is {_described(entry)}")
    adding.say_same(same)
    if missing:
        echo(missing)
    return 0


@device.command("list")
@json_option
def list_(as_json: bool) -> int:
    """List the boards that `device add` made known. None of them is contacted.

    \b
    Example:
      edgeopt device list
    """
    from ..device import registry

    known = registry.entries()
    if as_json:
        print_json({"file": str(registry.file()), "devices": [_record(name, entry) for name, entry in known.items()]})
    elif not known:
        echo(f"no board is known yet ({registry.file()}); see `edgeopt device add --help`")
    else:
        from ..report.rows import Rows

        table = Rows()
        for title in ("name", "address", "profile", "serial", "model"):
            table.add_column(title)
        for name, entry in known.items():
            table.add_row(name, entry.address, entry.profile or "none", entry.serial or "not told", entry.model or "")
        screen().print(table)
    return 0


@device.command("show")
@click.argument("name", shell_complete=complete.known_devices)
@json_option
def show(name: str, as_json: bool) -> int:
    """Show what is stored about the board NAME: address, profile, folders, serial number. It is not contacted.

    \b
    Example:
      edgeopt device show kitchen
    """
    from ..device import registry

    record = _record(name, registry.get(name))
    if as_json:
        print_json(record)
        return 0
    for key, value in record.items():
        echo(f"{TITLES.get(key, key):<12} {value if value is not None else 'not stated'}")
    return 0


@device.command("remove")
@click.argument("name", shell_complete=complete.known_devices)
@json_option
def remove(name: str, as_json: bool) -> int:
    """Forget the board NAME and its host key. Nothing is done to the board.

    \b
    Example:
      edgeopt device remove kitchen
    """
    from ..device import registry

    entry = registry.remove(name)
    print_json(_record(name, entry)) if as_json else echo(f"{name} ({entry.address}) is forgotten")
    return 0


@device.command("stop")
@click.argument("name", shell_complete=complete.devices)
@click.option("--job", help="End this one, which may wait for its turn; default: the one that works.")
@click.option("--yes", is_flag=True, help="End it without asking.")
@about_a_board
@json_option
def stop(name: str, job: str | None, yes: bool, as_json: bool, **options: Any) -> int:
    """End the job that works on the board NAME (or at an address), whoever began it; `edgeopt status` shows it too.

    Says what it is and asks. What is current on the board stays, or becomes, one whole release.

    \b
    Example:
      edgeopt device stop kitchen
      edgeopt device stop kitchen --yes
    """
    where = where_of(name, options)
    with Display(where.device) as display:
        session, _ = where.open(display)
        with session:
            there = session.jobs()
            found = jobs.chosen(there, job, where.device)
            if found is not None and not yes:
                jobs.require_consent(found, where.device)
            done = jobs.stop(session, found) if found is not None else None
            document = {"device": session.address, "board": where.board(session), "ended": found, "jobs": there}
    if as_json:
        print_json({**document, **(done or {"state": None, "current": None})})
    elif found is None or done is None:
        echo(f"nothing works or waits on {where.device}")
    else:
        echo(f"ended on {where.device}: {jobs.described(found)}")
        if done["state"] == "done":
            echo("it had come to its end by itself")
    return 0


@device.command("setup")
@click.argument("name", shell_complete=complete.known_devices)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(["tflite", "openvino", "onnxruntime"]),
    help="Repeat it for several; default: the first runtime of the board's profile, else tflite.",
)
@click.option("--wheels", type=click.Path(path_type=Path), help="Take wheels from this folder; no network is used.")
@click.option("--download-only", type=click.Path(path_type=Path), help="Only fill this folder with the wheels.")
@click.option("--upgrade", is_flag=True, help="Look for newer wheels, though what the board has is whole.")
@about_a_board
@json_option
def setup(
    name: str,
    runtimes: tuple[str, ...],
    wheels: Path | None,
    download_only: Path | None,
    upgrade: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Give the board NAME (or at an address) a Python environment with its runtimes, brought from this machine.

    The board needs Python 3.8 or later, but no internet, pip or compiler. Runtimes that an earlier setup brought stay.

    \b
    Example:
      edgeopt device setup kitchen
      edgeopt device setup kitchen --runtime tflite --download-only wheels
      edgeopt device setup kitchen --wheels wheels
    """
    if download_only is not None and upgrade:
        raise ConfigError(
            "--upgrade is about a board; --download-only asks for the newest wheels anyway: leave one out"
        )
    base = options["board_python"]
    where = where_of(name, options)
    wanted = list(runtimes) or where.runtimes()[:1] or ["tflite"]
    if download_only is not None:
        done = _download(where, wanted, wheels, download_only)
        print_json(done) if as_json else echo(f"{len(done['wheels'])} wheels are in {download_only}")
        return 0
    if where.address().host is None:
        _refuse_this_machine(wanted)
    done = _set_up(where, wanted, wheels, upgrade, base)
    if as_json:
        print_json(done)
        return 0
    said = ", ".join(f"{found['package']} {found['version']}" for found in (done["versions"] or {}).values())
    if done["already"]:
        echo(f"{name} has {', '.join(done['runtimes'])} already; nothing was changed")
    else:
        echo(f"{name} has {said} now, used by {done['python']}")
        if where.name is None:
            echo(f"name that Python with --board-python {done['python']}, or add the board: `edgeopt device add`")
    return 0


@device.command("probe")
@click.argument("name", shell_complete=complete.known_devices)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: NAME.toml, or <its host>.toml.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
@about_a_board
@json_option
def probe(name: str, out: Path | None, overwrite: bool, as_json: bool, **options: Any) -> int:
    """Write a device profile of the board NAME (or at an address) from what it says of itself.

    Every figure names its source, "measured: … on …". Demands and power are yours to add. Nothing stays on the board.

    \b
    Example:
      edgeopt device probe kitchen --out kitchen.toml
    """
    from .. import probe as job

    where = where_of(name, options)
    address = where.address()
    out = out or Path(f"{where.name or address.host or 'this-machine'}.toml")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out} exists; name another, or add --overwrite")
    python = where.place(root=job.DEFAULT_ROOT).python
    facts = _look(where, python)
    root = where.place(root=job.DEFAULT_ROOT).root
    text = job.profile_text(facts, root, python, datetime.date.today())
    job.write(out, text, overwrite)
    board = {key: facts[key] for key in ("model", "serial", "machine_id")}
    if as_json:
        print_json({"file": str(out), "board": {"name": where.name, **board}, "facts": facts})
    else:
        serial = f", serial {facts['serial']}" if facts["serial"] else ""
        echo(f"wrote {out}: {facts['model'] or facts['cpu_model'] or facts['machine']}{serial}")
        echo(f"use it with --profile {out}, here or in `edgeopt device add`")
    return 0


def _refuse_this_machine(wanted: list[str]) -> None:
    """This machine is used with edgeopt's own Python, so nothing would ever use an environment made for it."""
    from ..measure import PACKAGES

    packages = " ".join(PACKAGES.get(runtime, runtime).split()[0] for runtime in wanted)
    raise ConfigError(
        "device setup local: this machine is used with edgeopt's own Python, so nothing would use an environment made "
        f"for it. Install the runtime into that Python: `{sys.executable} -m pip install {packages}`, or name another "
        "one that has it with --board-python in each command"
    )


def _look(where: Where, python: str) -> dict[str, Any]:
    from .. import probe
    from ..device import open_transport

    with Display(where.device) as display:
        facts = probe.look(open_transport(where.address()), python, display.event)
    where.require_same(facts)
    return facts


def _download(where: Where, wanted: list[str], wheels: Path | None, out: Path) -> dict[str, Any]:
    """For a board that was added, without asking it again."""
    from .. import probe
    from .. import setup as job

    if where.entry is not None and where.entry.wheels:
        target = job.Target.parse(where.entry.wheels)
    else:
        facts = _look(where, where.base_python() or where.place(root=probe.DEFAULT_ROOT).python)
        target = job.Target.of(facts["environment"], where.device)
    with Display(where.device) as display:
        paths = job.prepare(target, wanted, wheels, out, where.device, display.event)
    return {"target": str(target), "runtimes": wanted, "wheels": [str(path) for path in paths]}


def _set_up(where: Where, wanted: list[str], wheels: Path | None, upgrade: bool, base: str | None) -> dict[str, Any]:
    from .. import setup as job

    with (
        Display(f"setup of {where.device}") as display,
        tempfile.TemporaryDirectory(prefix="edgeopt-wheels-") as folder,
    ):
        session, _ = where.open(display, upon=base or where.base_python())
        with session:
            board = where.board(session)
            environment = session.request("environment", timeout_s=300.0)
            target = job.Target.of(environment, session.address)
            done = {"device": session.address, "board": board, "target": str(target), "already": True}
            if job.is_there(environment, wanted) and not upgrade:
                where.keep_python(session.hello["root"], environment["executable"], str(target))
                return {**done, "runtimes": environment["current"]["runtimes"], "id": None, "versions": None}
            wanted = sorted({*wanted, *job.kept(environment)})
            display.event({"event": "stage", "what": f"choosing wheels for {target}"})
            chosen = job.choose(target, wanted, Path(folder) / "wheels", wheels, session.address)
            size = sum(path.stat().st_size for path in chosen.files) / 1e6
            names = ", ".join(path.name for path in chosen.files)
            display.event({"event": "chosen", "what": f"{len(chosen.files)} wheels, {size:.1f} MB: {names}"})
            result = job.set_up(session, chosen, wanted)
            where.keep_python(session.hello["root"], environment["executable"], str(target))
    return {**done, "already": False, "runtimes": wanted, "system_packages": chosen.system_packages, **result}


def _record(name: str, entry: Entry) -> dict[str, Any]:
    return {"name": name, **entry.model_dump()}


def _described(entry: Entry) -> str:
    serial = f"serial {entry.serial}" if entry.serial else "no serial number told"
    return f"{entry.model or 'a board without a model name'}, {serial}, {entry.wheels or 'an unusual Python'}"


def _absolute(path: Path | str | None) -> str | None:
    return str(Path(path).expanduser().absolute()) if path else None
