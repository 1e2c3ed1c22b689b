"""One command, several boards: a line and a verdict each, the worst exit code; one that fails stops no other."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import dense_bundle, dense_tflite
from conftest import run_cli
from loopback_board import LoopbackBoard

from edgeopt.cli.many import WORST_FIRST, worst
from edgeopt.device import registry


@pytest.fixture
def known(loopback: LoopbackBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Two boards by name, with a folder each, and between them one that nobody answers for."""
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "devices.toml"))
    roots = {name: tmp_path / name for name in ("first", "third")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"ssh://127.0.0.1:{taken.getsockname()[1]}"
        shared = {"identity": str(loopback.identity), "known_hosts": str(loopback.known_hosts)}
        for name, address in (("first", loopback.address), ("second", nobody), ("third", loopback.address)):
            its = {**shared, "root": str(tmp_path / name), "python": sys.executable}
            registry.put(name, registry.Entry(address=address, **its))
        yield roots


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    dense_bundle(tmp_path / "dense.edgeopt", 4, 3)
    return tmp_path / "dense.edgeopt"


def every(command: str, *arguments: object, code: int) -> dict[str, dict[str, Any]]:
    """The record of each board, by its name."""
    done = run_cli(command, *arguments, "--all-devices", "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == code
    return {
        entry["device"] if entry["board"]["name"] is None else entry["board"]["name"]: entry
        for entry in document["devices"]
    }


def test_flash_status_rollback_and_bench_of_several(known: dict[str, Path], dense: Path, tmp_path: Path) -> None:
    flashed = every("flash", dense, code=3)
    assert list(flashed) == ["first", "second", "third"]
    assert [entry["exit_code"] for entry in flashed.values()] == [0, 3, 0]
    assert flashed["second"]["error"]["kind"] == "DeviceUnreachable"
    assert "cannot be reached" in flashed["second"]["error"]["message"]
    assert flashed["first"]["release"] == flashed["third"]["release"]
    for root in known.values():
        assert (root / "current" / "release" / "model.tflite").exists()

    found = every("status", code=3)
    assert found["third"]["current"]["release"] == flashed["first"]["release"]
    machine_id = Path("/etc/machine-id").read_text().strip()
    for name in ("first", "third"):
        assert found[name]["board"] == {"name": name, "model": None, "serial": None, "machine_id": machine_id}

    back = every("rollback", code=4)
    assert [back[name]["exit_code"] for name in ("first", "second", "third")] == [4, 3, 4], "there is nothing before"
    assert "error" in back["first"]

    model = tmp_path / "dense.tflite"
    model.write_bytes(dense_tflite())
    measured = every("bench", model, "--random", code=3)
    assert measured["first"]["results"][0]["latency"]["p50_s"]["value"] > 0
    assert measured["third"]["board"]["name"] == "third"
    assert measured["third"]["board"]["machine_id"] == machine_id


@pytest.mark.usefixtures("known")
def test_the_table_has_a_line_and_a_verdict_for_each(dense: Path) -> None:
    done = run_cli("flash", dense, "--device", "third", "--device", "second", "--device", "first")
    assert done.returncode == 3, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    rows = {words[0]: words for words in lines if words[0] in ("first", "second", "third")}
    assert list(rows) == ["third", "second", "first"], "in the order given"
    assert "pass" in rows["first"]
    assert "unreachable" in rows["second"]
    assert "edgeopt: ssh://127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_damage_on_one_board_outweighs_one_that_is_away(known: dict[str, Path], dense: Path) -> None:
    every("flash", dense, code=3)
    model = (known["third"] / "current" / "release" / "model.tflite").resolve()
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    found = every("status", code=5)
    assert [entry["outcome"] for entry in found.values()] == ["pass", "unreachable", "damaged"]


def test_one_known_board_still_gives_a_list(known: dict[str, Path]) -> None:
    for name in ("second", "third"):
        registry.remove(name)
    assert list(every("status", code=0)) == ["first"]
    alone = json.loads(run_cli("status", "--device", "first", "--json").stdout)
    assert "devices" not in alone
    assert alone["board"]["name"] == "first"
    shutil.rmtree(known["first"])


def test_several_boards_are_named_in_one_way(known: dict[str, Path]) -> None:
    for options, said in (
        (["--device", "first", "--device", "first"], "more than once"),
        (["--device", "first", "--all-devices"], "contradict"),
        (["--device", "first", "--device", "fourth"], "known are: first, second, third"),
    ):
        done = run_cli("status", *options)
        assert done.returncode == 2
        assert said in done.stderr
    assert not any(root.exists() for root in known.values()), "nothing was asked of any board"


def test_all_devices_of_none(tmp_path: Path) -> None:
    done = run_cli("status", "--all-devices", env={registry.VARIABLE: str(tmp_path / "devices.toml")})
    assert done.returncode == 2
    assert "no board is known yet" in done.stderr


def test_every_exit_code_has_its_place() -> None:
    assert sorted(WORST_FIRST) == sorted({0, 2, 3, 4, 5, 6, 10, 11, 70})
    for one, other in itertools.combinations(WORST_FIRST, 2):
        assert worst([other, one, other]) == one
