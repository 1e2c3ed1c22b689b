"""Flash, rollback and status on real boards' folders; damage, garbage, clocks and two hosts at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from board_folder import Board, Way, tree
from boards import dense_bundle
from bundle_variants import variant
from conftest import EDGEOPT, SshBoard, run_cli
from edgeopt_agent import health
from edgeopt_agent.wire import RemoteError

from edgeopt import bundle as bundles


def test_flashing_what_is_current_changes_nothing(board: Board, versions: list[bundles.Bundle]) -> None:
    first = json.loads(board.run("flash", versions[0].path, "--json").stdout)
    assert (first["already"], first["release"], first["activation"]["number"]) == (False, versions[0].release, 1)
    assert first["health"]["correct"] >= versions[0].manifest.health.least_correct
    before = tree(board.root)  # but for the job: whether it is current is asked when the board's turn has come
    again = board.flash(versions[0])
    assert f"is current on {board.named} already; nothing was changed" in again.stdout
    assert tree(board.root) == before


def test_rollback_returns_and_ends(board: Board, versions: list[bundles.Bundle]) -> None:
    one, two, three = versions[:3]
    for bundle in (one, two, three):
        board.flash(bundle)
    assert board.current() == (three.release, two.release)
    done = json.loads(board.run("rollback", "--json").stdout)
    assert (done["activation"]["release"], done["from"]) == (two.release, three.release)
    assert board.current() == (two.release, one.release)
    said = board.run("rollback").stdout
    assert f"{one.manifest.name} ({one.release[:12]}) is current again on {board.named}" in said
    assert two.release[:12] in said
    assert board.current() == (one.release, None)
    refused = board.run("rollback", code=4)
    assert "no earlier release" in refused.stderr
    as_json = json.loads(board.run("rollback", "--json", code=4).stdout)
    assert as_json["exit_code"] == 4
    assert board.current() == (one.release, None)
    board.flash(three)
    assert board.current() == (three.release, one.release)
    history = [json.loads(line)["why"] for line in (board.root / "log.jsonl").read_text().splitlines()]
    assert history == ["flash", "flash", "flash", "rollback", "rollback", "flash"]


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, bundles.Bundle]:
    """A release of each verdict that a manifest can have."""
    dense_bundle(tmp_path / "dense.edgeopt", 4, 3)
    verdicts = {"passed": "pass", "undecided": "undecided", "vendors": "not judged"}
    return {
        name: variant(tmp_path / "dense.edgeopt", tmp_path / f"{name}.edgeopt", name=name, verdict=verdict)
        for name, verdict in verdicts.items()
    }


def test_whether_its_accuracy_was_shown_is_said_of_every_release(
    tmp_path: Path, judged: dict[str, bundles.Bundle]
) -> None:
    board = Board(tmp_path / "board")
    said = {"passed": "accuracy passed", "undecided": "marked: undecided", "vendors": "marked: not judged"}
    for name, words in said.items():
        flashed = board.flash(judged[name]).stdout
        assert {own for own in said.values() if own in flashed} == {words}
    again = json.loads(board.run("flash", judged["vendors"].path, "--json").stdout)
    assert (again["already"], again["verdict"]) == (True, "not judged")

    current, previous = board.run("status").stdout.splitlines()[1:3]
    assert re.search(r"^current +vendors .*, accuracy not judged, whole$", current)
    assert re.search(r"^previous +undecided .*, accuracy undecided, whole$", previous)
    found = board.status()
    assert [found[key]["verdict"] for key in ("current", "previous")] == ["not judged", "undecided"]

    back, previous = board.run("rollback").stdout.splitlines()
    assert "marked: undecided" in back
    assert re.search(r"^previous +passed .*, accuracy passed, not checked$", previous)
    last = json.loads(board.agent("rollback").stdout)["result"]["result"]  # without a host, too
    assert (last["current"]["name"], last["current"]["verdict"], last["previous"]) == ("passed", "pass", None)


def test_a_bundle_made_for_another_board_is_flashed_with_a_remark(
    tmp_path: Path, judged: dict[str, bundles.Bundle]
) -> None:
    board, bundle = Board(tmp_path / "board"), judged["passed"]
    remark = "; made for generic-x86-64, and the profile here is raspberry-pi-4: validate it here"
    for profile, said in ((None, ""), ("generic-x86-64", ""), ("raspberry-pi-4", remark)):
        chosen = ("--profile", profile, "--stand-in") if profile else ()
        first, *_ = board.run("flash", bundle.path, *chosen).stdout.splitlines()
        assert first.endswith(f"; accuracy passed{said}")
        told = json.loads(board.run("flash", bundle.path, *chosen, "--json").stdout)
        assert (told["made_for"], told["profile"]) == ("generic-x86-64", profile)


def test_an_empty_board_has_no_release(board: Board) -> None:
    said = board.run("status").stdout
    name = board.by.server.address if board.by.server else "this machine"
    assert said.split("\n", 1)[0] == f"board     {name}, {board.root}"
    assert said.split()[-4:] == ["current", "none", "previous", "none"]
    assert "no earlier release" in board.run("rollback", code=4).stderr


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def blob_of(board: Board, bundle: bundles.Bundle, name: str) -> Path:
    return board.root / "store" / bundle.manifest.files[name].sha256


@pytest.mark.parametrize(
    ("hit", "named"),
    [
        (lambda board, bundle: damage(blob_of(board, bundle, "model.tflite")), "model.tflite"),
        (lambda board, bundle: blob_of(board, bundle, "health.npz").unlink(), "health.npz"),
        (lambda board, bundle: damage(board.root / "releases" / bundle.release / "manifest.json"), "manifest"),
        (lambda board, bundle: shutil.rmtree(board.root / "releases" / bundle.release), "manifest"),
        (lambda board, _: (board.root / "current" / "record.json").write_bytes(b"{"), "record"),
        (lambda board, _: (board.root / "current" / "record.json").unlink(), "record"),
    ],
    ids=["blob", "lost blob", "manifest", "lost release", "record", "lost record"],
)
def test_status_names_the_damage_and_the_next_flash_mends_it(
    board: Board, versions: list[bundles.Bundle], hit: Callable[[Board, bundles.Bundle], None], named: str
) -> None:
    one, two = versions[:2]
    board.flash(one)
    board.flash(two)
    hit(board, two)
    said = board.run("status", code=5).stdout
    assert "DAMAGED" in said
    assert named in said
    found = board.status(code=5)
    assert found["current"]["whole"] is False
    assert named in found["current"]["problem"]
    board.flash(two)
    found = board.status()
    assert (found["current"]["release"], found["current"]["whole"]) == (two.release, True)
    if named != "record":  # the record was the only place that told what came before
        assert found["previous"]["release"] == one.release


def test_a_damaged_predecessor_is_said_and_not_returned_to(board: Board, versions: list[bundles.Bundle]) -> None:
    board.flash(versions[0])
    board.flash(versions[1])
    damage(blob_of(board, versions[0], "model.tflite"))
    assert "previous  smartwatch-activity" in board.run("status", code=5).stdout
    refused = board.run("rollback", code=4)
    assert "model.tflite" in refused.stderr
    assert board.status(code=5)["current"]["release"] == versions[1].release
    board.flash(versions[2])
    assert board.current() == (versions[2].release, versions[1].release)


def test_the_board_answers_without_a_host(way: Way, tmp_path: Path, versions: list[bundles.Bundle]) -> None:
    board = Board(way.folder(tmp_path) / "it's a board", way)
    board.flash(versions[0])
    refused = board.agent("rollback")
    assert refused.returncode == 4
    assert "no earlier release" in refused.stdout + refused.stderr
    board.flash(versions[1])
    assert json.loads(board.agent("status").stdout)["current"]["release"] == versions[1].release
    assert board.agent("rollback").returncode == 0
    assert json.loads(board.agent("status").stdout)["current"]["release"] == versions[0].release
    assert board.current() == (versions[0].release, None)


def test_over_ssh(ssh_board: SshBoard, versions: list[bundles.Bundle]) -> None:
    for bundle in versions[:2]:
        done = run_cli("flash", bundle.path, "--json", *ssh_board.options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["activation"]["release"] == bundle.release
    assert run_cli("rollback", *ssh_board.options).returncode == 0
    found = json.loads(run_cli("status", "--json", *ssh_board.options).stdout)
    assert (found["current"]["release"], found["current"]["whole"]) == (versions[0].release, True)
    assert run_cli("rollback", *ssh_board.options).returncode == 4


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.xml"])
def test_a_model_file_is_no_bundle_and_what_makes_one_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x07")
    done = run_cli("flash", tmp_path / name)
    assert done.returncode == 2
    assert f"{name} is a model's file" in done.stderr
    assert f"`edgeopt bundle {tmp_path / name} --profile NAME --out model.edgeopt`" in done.stderr
    missing = run_cli("flash", tmp_path / "none.edgeopt")
    assert missing.returncode == 2
    assert "`edgeopt bundle` makes one of a model file" in missing.stderr


def test_what_nothing_uses_is_deleted_beyond_the_quota(board: Board, versions: list[bundles.Bundle]) -> None:
    for bundle in versions[:4]:
        board.flash(bundle)
    kept = {bundle.release for bundle in versions[1:4]}
    assert {path.name for path in (board.root / "releases").iterdir()} == kept
    assert sorted(path.name for path in (board.root / "activations").iterdir()) == ["2", "3", "4"]
    blobs = {path.name for path in (board.root / "store").iterdir()}
    assert blobs == {entry.sha256 for bundle in versions[:4] for entry in bundle.manifest.files.values()}  # still young
    for path in (board.root / "store").iterdir():
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    large = board.root / "store" / ("f" * 64)
    with large.open("wb") as file:
        file.truncate(3 << 30)  # takes no room, but counts
    os.utime(large, (time.time() - 7000, time.time() - 7000))
    left = board.root / "bin" / ".new-left"
    (board.root / ".probe-left").mkdir()
    left.write_bytes(b"x")
    board.flash(versions[4])
    used = {entry.sha256 for bundle in versions[2:] for entry in bundle.manifest.files.values()}
    assert {path.name for path in (board.root / "store").iterdir()} == used
    assert not left.exists()
    assert not (board.root / ".probe-left").exists()
    board.run("rollback")
    board.run("rollback")
    assert board.current() == (versions[2].release, None)


@pytest.mark.parametrize("jump_s", [-3e8, 3e8], ids=["back", "forward"])
def test_a_clock_that_jumps_costs_no_release(board: Board, versions: list[bundles.Bundle], jump_s: float) -> None:
    """As if all of this had been written before the board's clock was set."""
    board.flash(versions[0])
    board.flash(versions[1])
    then = time.time() - jump_s
    for path in board.root.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)
    board.flash(versions[2])
    assert board.current() == (versions[2].release, versions[1].release)
    board.run("rollback")
    board.run("rollback")
    assert board.current() == (versions[0].release, None)


UPLOAD = """
import sys
from edgeopt_agent import store
root, sha256, path = sys.argv[1:]
data = open(path, "rb").read()
held = {"have": 0, "whole": False}
while not held["whole"]:
    chunk = data[held["have"] : held["have"] + 4096]
    held = store.put(root, sha256, len(data), held["have"], chunk)
"""


def test_uploads_of_the_same_blob_at_the_same_time_end_whole(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "store").mkdir()
    command = [sys.executable, "-c", UPLOAD, str(tmp_path), sha256, str(tmp_path / "data")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert [path.name for path in (tmp_path / "store").iterdir()] == [sha256]
    assert (tmp_path / "store" / sha256).read_bytes() == data


def test_two_flashes_at_the_same_time(board: Board, versions: list[bundles.Bundle]) -> None:
    """Two hosts with two bundles, and each of them twice: every upload ends whole, the releases follow one another."""
    chosen = [versions[0], versions[1], versions[0], versions[1]]
    started = [
        subprocess.Popen(
            [str(EDGEOPT), "flash", str(bundle.path), *board.where],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for bundle in chosen
    ]
    for process in started:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    current, previous = board.current()
    assert current in {bundle.release for bundle in versions[:2]}
    assert previous in {bundle.release for bundle in versions[:2]}
    assert list((board.root / "store").glob("*.part")) == []


def test_a_busy_board_is_no_reason_not_to_go_back(bundle_file: Path, tmp_path: Path) -> None:
    """What refuses a flash is only told on the way back; wrong answers refuse both."""
    bundle = bundles.read(bundle_file)
    manifest = bundle.manifest.model_dump(mode="json")
    paths = {}

    def folder(number: int) -> str:
        (tmp_path / str(number)).mkdir()
        return str(tmp_path / str(number))

    for name, entry in bundle.manifest.files.items():
        (tmp_path / name).write_bytes(bundle.blob(entry))
        paths[name] = str(tmp_path / name)
    manifest["health"]["greatest_median_latency_s"] = 1e-9
    with pytest.raises(RemoteError, match="median latency"):
        health.check(str(tmp_path), manifest, paths, folder(1))
    told = health.check(str(tmp_path), manifest, paths, folder(2), refuse_slow=False)
    assert "at most 0.000000 s is allowed" in str(told["slow"])
    manifest["health"]["least_correct"] = manifest["health"]["of"] + 1
    with pytest.raises(RemoteError, match="correct of"):
        health.check(str(tmp_path), manifest, paths, folder(3), refuse_slow=False)
