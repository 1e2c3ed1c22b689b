"""The two tours, block by block as a reader would type them; only the reader's own board is a stand-in."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from boards import dense_tflite
from conftest import EDGEOPT, QUICK, REPOSITORY
from loopback_board import LoopbackBoard

EXAMPLES = REPOSITORY / "examples"
PROFILE = """
schema = 1
name = "Loopback"
description = "Stands for the reader's board."
runtimes = ["tflite"]
[cpu]
architecture = "x86_64"
[board]
root = "{root}"
python = "{python}"
"""


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of a tour's blocks, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (EXAMPLES / name).read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} <= {"sh", "toml"}
    return found


def walk(name: str, folder: Path, env: dict[str, str], stands_for: dict[str, str] | None = None) -> str:
    """Runs a tour in `folder`; what its commands printed. Every line must end with exit code 0."""
    said = []
    quick = folder / "quick" / "edgeopt"
    quick.parent.mkdir()
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(QUICK)} "$@"\n')
    quick.chmod(0o755)
    environment = {**os.environ, **env, "PATH": f"{quick.parent}:{EDGEOPT.parent}:{os.environ['PATH']}"}
    for language, text in blocks(name):
        for words, own in (stands_for or {}).items():
            text = text.replace(words, own)
        if language == "toml":
            edit(text, folder)
            continue
        for line in text.splitlines():
            done = subprocess.run(
                ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            if "index cannot be reached" in done.stderr:
                pytest.skip("no package index")
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            said.append(done.stdout)
    return "".join(said)


def edit(text: str, folder: Path) -> None:
    """What the block's first line asks for: keys changed in place, or tables added at the end."""
    told, _, rest = text.partition("\n")
    asked = re.fullmatch(r"# (change in|add at the end of) (\S+)", told)
    assert asked, told
    path = folder / asked[2]
    content = path.read_text()
    if asked[1] == "add at the end of":
        path.write_text(f"{content}\n{rest}")
        return
    for line in rest.splitlines():
        content, count = re.subn(rf"^#?{line.split(' = ')[0]} = .*$", line, content, flags=re.MULTILINE)
        assert count == 1, line
    path.write_text(content)


def test_the_ml_engineers_tour(tmp_path: Path, shared_tmp: Path) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "home").mkdir()
    said = walk(
        "TOUR-ml-engineer.md", tmp_path, {"HOME": str(tmp_path / "home"), "EDGEOPT_CACHE": str(shared_tmp / "cache")}
    )
    run = json.loads((tmp_path / "run.json").read_text())
    assert [trial["name"] for trial in run["trials"]] == ["fp32", "int8"]
    assert run["final"]["value"] > 0.75, "the preprocess steps were taken in"
    assert run["final"]["groups"] == 3
    assert (tmp_path / "runs" / "watch" / "report.html").is_file()
    assert (tmp_path / "runs" / "watch" / "watch.edgeopt").is_file()
    assert json.loads((tmp_path / "run.schema.json").read_text())["properties"]["schema"]["const"] == run["schema"]
    assert "No verdict compares these two runs" in said


def test_the_field_engineers_tour(
    tmp_path: Path, loopback: LoopbackBoard, bundle_file: Path, other_bundle_file: Path
) -> None:
    shutil.copy(bundle_file, tmp_path / "watch-1.edgeopt")
    shutil.copy(other_bundle_file, tmp_path / "watch-2.edgeopt")
    (tmp_path / "vendor.tflite").write_bytes(dense_tflite())
    profile, config = tmp_path / "board.toml", tmp_path / "ssh_config"
    profile.write_text(PROFILE.format(root=tmp_path / "root", python=sys.executable))
    user, _, _ = loopback.address.removeprefix("ssh://").partition("@")
    config.write_text(
        f"Host raspberrypi\n  HostName {loopback.host}\n  Port {loopback.port}\n  User {user}\n"
        f"  IdentityFile {loopback.identity}\n"
    )
    env = {"EDGEOPT_SSH_CONFIG": str(config), "EDGEOPT_DEVICES": str(tmp_path / "config" / "devices.toml")}
    said = walk("TOUR-field-engineer.md", tmp_path, env, {"raspberry-pi-4": str(profile)})
    status = json.loads((tmp_path / "kitchen.json").read_text())
    assert status["board"]["name"] == "kitchen"
    assert status["current"]["why"] == "rollback"
    assert status["current"]["whole"]
    assert "UNDECIDED" in said or "PASS" in said
    assert (tmp_path / "root" / "python" / "current" / "bin" / "python3").exists()


@pytest.mark.parametrize("name", ["TOUR-ml-engineer.md", "TOUR-field-engineer.md"])
def test_a_tour_names_files_that_are_there(name: str) -> None:
    for file in re.findall(r"examples/[\w./-]+", (EXAMPLES / name).read_text()):
        assert (REPOSITORY / file).exists(), file
