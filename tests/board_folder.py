"""A board whose folder lies on this machine, driven through the installed command as a user drives it.

The board is this machine itself, or stands behind an SSH server on loopback: see Way and pytest's --board.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boards import board_python, ssh_address
from conftest import run_cli
from loopback_board import LoopbackBoard
from servers import ORDINARY, ROOT, namespaced_board

from edgeopt import bundle as bundles
from edgeopt.device import open_transport, parse_address
from edgeopt.device.session import Placement, Session

Answer = subprocess.CompletedProcess[str]

ACCOUNTS = {"root": ROOT, "user": ORDINARY}


@dataclasses.dataclass(frozen=True)
class Way:
    """How boards are reached. `server` None: this machine, without ssh."""

    server: LoopbackBoard | None = None
    transport: str = "paramiko"
    python: str = sys.executable
    uid: int = 0
    name: str = "local"

    def session(self, root: Path, **how: Any) -> Session:
        address = ssh_address(self.server, self.transport) if self.server else parse_address("local")
        return Session(open_transport(address), Placement(str(root), self.python), **how)

    def folder(self, beside: Path) -> Path:
        """A folder for a board's root: in the account's home, since it may not enter a test's own."""
        return Path(self.server.home, uuid.uuid4().hex[:8]) if self.server else beside

    def give(self, *paths: Path) -> None:
        """To the board's account: whoever runs the tests made them."""
        for path in paths if self.server else ():
            os.chown(path, self.uid, self.uid, follow_symlinks=False)


@contextlib.contextmanager
def way(text: str) -> Iterator[Way]:
    """`text` is pytest's --board: local, or SERVER,TRANSPORT,ACCOUNT,PYTHON, as in dropbear,ssh,user,3.8."""
    if text == "local":
        yield Way()
        return
    server, transport, account, version = text.split(",")
    with namespaced_board(server=server, account=ACCOUNTS[account]) as running:
        yield Way(running, transport, board_python(version), ACCOUNTS[account].uid, text)


class Board:
    def __init__(self, root: Path, by: Way | None = None) -> None:
        self.root, self.by = root, by or Way()
        server = self.by.server
        there = [*server.options, "--transport", self.by.transport, "--board-python", self.by.python] if server else []
        self.where = [*there, "--root", str(root)]

    @property
    def named(self) -> str:
        """What the screens call it."""
        return self.by.server.address if self.by.server else "this machine (no --device was given)"

    def run(self, *arguments: object, code: int = 0) -> Answer:
        done = run_cli(*arguments, *self.where)
        assert done.returncode == code, done.stderr
        return done

    def flash(self, bundle: bundles.Bundle, code: int = 0) -> Answer:
        return self.run("flash", bundle.path, code=code)

    def status(self, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json", code=code).stdout)
        return found

    def current(self) -> tuple[str | None, str | None]:
        """(current release, the one a rollback returns to), both whole."""
        found = self.status()
        return tuple(found[key] and found[key]["release"] for key in ("current", "previous"))  # type: ignore[return-value]

    def agent(self, *arguments: str) -> Answer:
        """The board's own entry, called there by its user."""
        command = [str(self.root / "bin" / "edgeopt-agent"), *arguments]
        if self.by.server is not None:
            address, options = ssh_address(self.by.server), ["-F", "none", "-o", "LogLevel=ERROR"]
            options += ["-o", f"UserKnownHostsFile={address.known_hosts}", "-i", str(address.identity)]
            command = ["ssh", *options, "-p", str(address.port), f"{address.user}@{address.host}", shlex.join(command)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def hook(self, name: str, script: str) -> None:
        path = self.root / "hooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
        self.by.give(self.root, path.parent, path)


def tree(root: Path, without: tuple[str, ...] = ("jobs", "lock", "store.lock", "agent")) -> dict[str, str]:
    """Every path under `root` with what it holds."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.split("/")[0] not in without:
            text = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_bytes()
            found[name] = text if isinstance(text, str) else hashlib.sha256(text).hexdigest()
    return found
