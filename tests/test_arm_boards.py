"""Arm boards with no internet, no pip and no runtime, from bare to a release: emulated, with real wheels for them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from arm_board import ArmBoard, Unavailable
from bundle_variants import variant
from conftest import run_cli, run_quick
from setups import NO_NETWORK, ok, prepared, set_up

from edgeopt import bundle as bundles
from edgeopt import measure, validate
from edgeopt.device import open_transport, parse_address, registry
from edgeopt.device.session import Placement, Session


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty registry, for this process and the commands that it runs."""
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "config" / "devices.toml"))


@contextlib.contextmanager
def arm_board(architecture: str, folder: Path) -> Iterator[ArmBoard]:
    """Such a board, added as "board"; skips the test where it cannot be made."""
    try:
        board = ArmBoard(folder / "board", architecture)
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        where = ["--identity", board.identity, "--known-hosts", board.known_hosts]
        profile = "raspberry-pi-4" if architecture == "arm64" else "raspberry-pi-2"
        ok(run_cli("device", "add", "board", board.address, *where, "--profile", profile, "--stand-in"))
        yield board
    finally:
        board.close()


@pytest.fixture
def releases(bundle_file: Path, tmp_path: Path) -> list[bundles.Bundle]:
    """Two releases of the int8 smartwatch model without limits on time, which mean nothing in an emulator."""
    changes = {"health": {"greatest_median_latency_s": None}}
    return [
        variant(bundle_file, tmp_path / f"{number}.edgeopt", lineage={"number": number}, **changes) for number in (1, 2)
    ]


def answers(session: Session, opened: bundles.Bundle, folder: Path) -> np.ndarray:
    """(n, classes) float32 for the evaluation pack's samples."""
    folder.mkdir()
    artifact = opened.artifact(folder, "int8", 1)
    return measure.outputs(session, artifact, measure.shards(validate.read_pack(opened).samples))[0]


def require_same_decisions(board: ArmBoard, opened: bundles.Bundle, folder: Path) -> str:
    """Every top-1 as on this machine; what was compared, in words."""
    ssh = parse_address(board.address, board.identity, board.known_hosts)
    with Session(open_transport(ssh), Placement("/var/lib/edgeopt", str(registry.get("board").python))) as session:
        machine = session.request("environment")["machine"]
        theirs = answers(session, opened, folder / "theirs")
    with Session(open_transport(parse_address("local")), Placement(str(folder / "local"), sys.executable)) as session:
        ours = answers(session, opened, folder / "ours")
    differing = np.flatnonzero(ours.argmax(axis=1) != theirs.argmax(axis=1))
    margins = {int(row): float(np.diff(np.sort(ours[row])[-2:])[0]) for row in differing}
    assert not margins, f"top-1 on {machine} differs from this machine's at (sample: margin) {margins}"
    return (
        f"{machine}: all {len(ours)} int8 answers as here; outputs differ by {np.abs(ours - theirs).max():.2g} at most"
    )


def said(board: ArmBoard, command: str) -> str:
    transport = open_transport(parse_address(board.address, board.identity, board.known_hosts))
    pipe = transport.open(command)
    text = b""
    while data := pipe.read(4096, 60.0):
        text += data
    pipe.close()
    transport.close()
    return text.decode()


def flash_twice_and_return(releases: list[bundles.Bundle]) -> None:
    for opened in releases:
        flashed = json.loads(ok(run_cli("flash", opened.path, "--device", "board", "--json")).stdout)
        assert flashed["board"]["serial"] == "10000000abcdef01"
    ok(run_cli("rollback", "--device", "board"))
    found = json.loads(ok(run_cli("status", "--device", "board", "--json")).stdout)
    assert found["current"]["release"] == releases[0].release
    assert found["current"]["whole"]


def test_an_aarch64_board_from_bare_to_validated(
    releases: list[bundles.Bundle], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with arm_board("arm64", tmp_path) as board:
        bare = said(board, "grep -c : /proc/net/dev; command -v pip pip3; python3 -c 'import numpy' 2>&1 | tail -n 1")
        assert bare.split("\n") == ["1", "ModuleNotFoundError: No module named 'numpy'", ""], "no network but loopback"
        entry = registry.get("board")
        assert entry.serial == "10000000abcdef01"
        assert entry.wheels == "Python 3.11.2 aarch64 glibc 2.36"
        folder = prepared("aarch64", entry.wheels)
        assert all("aarch64" in path.name for path in folder.glob("*.whl"))
        done = set_up("--wheels", folder, env=NO_NETWORK)
        assert done["versions"]["tflite"]["package"] == "ai-edge-litert"
        flash_twice_and_return(releases)
        judged = run_quick(
            "validate", releases[0].path, "--device", "board", "--allow-undecided", "--json", timeout=900
        )
        assert judged.returncode in (0, 10), judged.stderr
        document = json.loads(judged.stdout)
        assert document["board"]["serial"] == entry.serial
        assert document["final"]["agreement"] > 0.9
        record_property("said", require_same_decisions(board, releases[0], tmp_path))


def test_a_32_bit_arm_board_uses_its_own_numpy(
    releases: list[bundles.Bundle], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with arm_board("armhf", tmp_path) as board:
        entry = registry.get("board")
        assert entry.wheels == "Python 3.11.2 armv7l glibc 2.36 numpy 1.24.2"
        done = set_up("--wheels", prepared("armv7l", entry.wheels), env=NO_NETWORK)
        assert done["system_packages"]
        assert done["versions"]["tflite"]["package"] == "tflite-runtime"
        flash_twice_and_return(releases)
        record_property("said", require_same_decisions(board, releases[0], tmp_path))
