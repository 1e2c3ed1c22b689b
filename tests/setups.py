"""What tests of `edgeopt device setup` share: the command on a board called "board", and folders of real wheels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from boards import CACHE
from conftest import run_cli

# The way to every index leads through a proxy that is not there.
NO_NETWORK = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_PROXY": "127.0.0.1:9", "NO_PROXY": ""}


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def set_up(*options: object, code: int = 0, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = run_cli("device", "setup", "board", *options, "--json", env=env)
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def prepared(version: str, target: str) -> Path:
    """A folder of wheels for a target, made by the command under test, once per machine."""
    folder = CACHE / f"wheels-{version}-{hashlib.sha256(target.encode()).hexdigest()[:12]}"
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        done = run_cli("device", "setup", "board", "--download-only", scratch)
        if "cannot be reached" in done.stderr:
            pytest.skip("no package index")
        ok(done)
        with contextlib.suppress(OSError):  # another test process was faster
            scratch.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
