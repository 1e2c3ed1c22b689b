"""What a shell offers: click's own protocol, through the installed program and a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EDGEOPT, run_cli

from edgeopt import profile
from edgeopt.cli import COMMANDS
from edgeopt.device import registry


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.toml"
    monkeypatch.setenv(registry.VARIABLE, str(path))
    registry.put("kitchen", registry.Entry(address="ssh://pi@kitchen"))
    registry.put("kiosk", registry.Entry(address="ssh://pi@kiosk"))
    return path


def offered(line: str) -> list[str]:
    """What is offered for the last word of a command line."""
    words = line.split(" ")
    env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_EDGEOPT_COMPLETE": "bash_complete"}
    done = run_cli(env=env)
    assert done.stderr == ""
    return [entry.partition(",")[2] for entry in done.stdout.split()]


def test_commands_options_profiles_and_boards_are_offered(devices: Path) -> None:
    assert offered("edgeopt ") == list(COMMANDS)
    assert "--show-plan" in offered("edgeopt optimize --sh")
    pies = [name for name in profile.names() if name.startswith("raspberry")]
    assert len(pies) > 1
    for line in ("optimize --profile ra", "bench --profile ra", "profiles show ra", "init --profile ra"):
        assert offered(f"edgeopt {line}") == pies
    for line in ("status --device ki", "flash x --device ki", "optimize --device ki", "device show ki"):
        assert offered(f"edgeopt {line}") == ["kiosk", "kitchen"]
    assert offered("edgeopt bench --device lo") == ["local"]
    assert offered("edgeopt device remove lo") == []
    devices.write_text("damaged =")
    assert offered("edgeopt status --device ki") == []


def test_nothing_heavy_is_loaded_for_it() -> None:
    script = (
        "import os, sys; sys.argv = ['edgeopt']\n"
        "from edgeopt.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = sorted({'numpy', 'paramiko', 'torch', 'rich'} & set(sys.modules))\n"
        "assert not loaded, loaded"
    )
    for line in ("edgeopt ", "edgeopt optimize --profile ", "edgeopt status --device k", "edgeopt device show k"):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_EDGEOPT_COMPLETE": "bash_complete"}
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **words}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell: str) -> None:
    done = run_cli("completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_EDGEOPT_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=done.stdout, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_a_real_bash_completes() -> None:
    script = (
        'eval "$(edgeopt completion bash)"\n'
        'COMP_WORDS=(edgeopt status --device ki); COMP_CWORD=3; _edgeopt_completion edgeopt; echo "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{EDGEOPT.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["kiosk", "kitchen"], done.stderr
