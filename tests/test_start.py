"""What a start of the agent costs: on slow boards every module that is imported before hello is waited for."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from boards import local_session, pyenv_python
from edgeopt_agent import wire

from edgeopt.device.local import LocalPipe, LocalTransport
from edgeopt.device.session import Placement, Session

OWN = {"edgeopt_agent", *(f"edgeopt_agent.{name}" for name in ("main", "wire", "root", "facts"))}
HEAVY = {
    *("site", "runpy", "pkgutil", "importlib.util", "importlib.metadata", "typing", "contextlib", "__future__"),
    *("hashlib", "_hashlib", "ssl", "socket", "subprocess", "shutil", "tempfile", "argparse", "traceback", "inspect"),
}
VERSIONS = ("3.8", "3.11", "3.13")


class Recorded(LocalTransport):
    """Keeps what the host has the board's shell run."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def open(self, command: str) -> LocalPipe:
        self.commands.append(command)
        return super().open(command)


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    return pyenv_python(request.param)


def imported(root: Path, python: str, *operations: str) -> set[str]:
    """The modules that the agent imports, started as the host starts it, until it has answered."""
    transport = Recorded()
    with Session(transport, Placement(str(root), python)):
        pass
    asked = b"".join(wire.encode({"id": number, "op": op}) for number, op in enumerate(operations))
    told = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(transport.commands[-1], shell=True, input=asked, env=told, capture_output=True, check=True)
    assert done.stdout.count(b'"ok":true') == len(operations), done.stdout
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr.decode(), re.MULTILINE))


def test_hello_imports_little(tmp_path: Path, python: str) -> None:
    found = imported(tmp_path, python, "hello")
    assert {name for name in found if name.startswith("edgeopt_agent")} == OWN
    assert found & HEAVY == set()
    assert "json" in found  # the list is real


def test_packages_are_there_once_they_are_asked_for(tmp_path: Path, python: str) -> None:
    assert "site" in imported(tmp_path, python, "facts")


def test_nothing_is_imported_from_the_folder_of_the_login(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("json", "edgeopt_agent", "re", "site"):
        (home / f"{name}.py").write_text("raise SystemExit('taken from the folder of the login')\n")
    monkeypatch.chdir(home)
    with local_session(tmp_path / "root", python) as session:
        assert session.facts()["cores"]
