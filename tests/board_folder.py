"""A board's folder on this machine, driven through the installed command as a user drives it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from conftest import run_cli

from edgeopt import bundle as bundles

Answer = subprocess.CompletedProcess[str]


class Board:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = ["--root", str(root)]

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
        entry = str(self.root / "bin" / "edgeopt-agent")
        return subprocess.run([entry, *arguments], capture_output=True, text=True, check=False, timeout=60)

    def hook(self, name: str, script: str) -> None:
        path = self.root / "hooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)


def tree(root: Path, without: tuple[str, ...] = ("jobs", "lock", "store.lock", "agent")) -> dict[str, str]:
    """Every path under `root` with what it holds."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.split("/")[0] not in without:
            text = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_bytes()
            found[name] = text if isinstance(text, str) else hashlib.sha256(text).hexdigest()
    return found
