"""The base install, from a built wheel: small, and enough for everything but optimize."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, made_once

LIMIT_BYTES = 150_000_000
NOT_OURS = ("pip", "setuptools", "_distutils_hack", "pkg_resources")


@pytest.fixture(scope="session")
def base(shared_tmp: Path) -> Path:
    """A virtual environment with edgeopt and no extra, built from a copy of the sources."""

    def build(folder: Path) -> None:
        sources = folder / "sources"
        sources.mkdir()
        for name in ("edgeopt", "agent", "device_profiles"):
            shutil.copytree(REPOSITORY / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, sources)
        venv.create(folder / "venv", with_pip=True)
        pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "-q", "--no-compile"]
        subprocess.run([*pip, str(sources)], check=True)

    return made_once(shared_tmp / "base-install", build) / "venv"


def size_of(site_packages: Path) -> int:
    return sum(
        path.stat().st_size
        for entry in site_packages.iterdir()
        if not entry.name.startswith(NOT_OURS)
        for path in ([entry] if entry.is_file() else entry.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    )


def run(base: Path, *arguments: object, code: int = 0) -> str:
    """The base install's own `edgeopt`; stdout."""
    # The environment was moved after it was made, so its console script's first line names the old place.
    command = [str(base / "bin" / "python"), "-m", "edgeopt", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_it_is_small(base: Path, record_property: Callable[[str, object], None]) -> None:
    (site_packages,) = (base / "lib").glob("python*/site-packages")
    found = size_of(site_packages)
    record_property("said", f"base install: {found / 1e6:.1f} MB")
    assert found <= LIMIT_BYTES
    assert not {"torch", "scipy", "ai_edge_litert", "openvino"} & set(os.listdir(site_packages))


PACKAGES = {"edgeopt": "edgeopt", "agent/edgeopt_agent": "edgeopt_agent", "device_profiles": "edgeopt_profiles"}


@pytest.mark.parametrize("source", PACKAGES)
def test_no_file_is_left_out_of_the_wheel(base: Path, source: str) -> None:
    def files(folder: Path) -> set[str]:
        found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        return {str(path) for path in found if "__pycache__" not in path.parts}

    (site_packages,) = (base / "lib").glob("python*/site-packages")
    assert files(site_packages / PACKAGES[source]) == files(REPOSITORY / source)


def test_it_is_enough_for_a_field_engineer(base: Path, bundle_file: Path, small_run: Path, tmp_path: Path) -> None:
    """The board's Python has the runtime; the laptop's has none."""
    where = ["--root", tmp_path / "board", "--board-python", sys.executable, "--json"]
    assert json.loads(run(base, "flash", bundle_file, *where))["already"] is False
    assert json.loads(run(base, "validate", bundle_file, "--allow-undecided", *where))["final"]["n"] == 300
    assert json.loads(run(base, "status", *where))["current"]["whole"] is True
    benched = json.loads(run(base, "bench", bundle_file, *where))
    assert benched["results"][0]["latency"]["p50_s"]["value"] > 0
    assert {"raspberry-pi-4", "imx93-evk"} <= {
        p["id"] for p in json.loads(run(base, "profiles", "list", "--json"))["profiles"]
    }
    copy = shutil.copytree(small_run, tmp_path / "run")
    (copy / "report.html").unlink()
    run(base, "report", copy)
    assert (copy / "report.html").exists()


def test_optimize_names_the_extra(base: Path, watch_folder: Path, tmp_path: Path) -> None:
    command = [
        str(base / "bin" / "python"),
        "-m",
        "edgeopt",
        "optimize",
        str(watch_folder),
        "--root",
        str(tmp_path / "b"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "pip install 'edgeopt[torch]'" in done.stderr
