"""The server's session process is killed in the middle: the job goes on, an upload continues at its byte."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import (
    dense_bundle,
    dense_tflite,
    events,
    in_background,
    is_alive,
    job_folders,
    kill,
    local_session,
    long_bench,
    progress_of,
    ssh_sessions,
    until,
    workers_of,
)
from conftest import EDGEOPT, SshBoard
from edgeopt_agent import wire
from loopback_board import LoopbackBoard

from edgeopt import bundle as bundles
from edgeopt import flash
from edgeopt.device import open_transport, parse_address
from edgeopt.device.session import Placement, Session
from edgeopt.errors import DeviceUnreachable

BIG = {"inputs": 1024, "outputs": 10_000}  # 41 MB of weights
ENOUGH_BYTES = 8 << 20


def cut(board: SshBoard) -> int:
    """Kill the processes that serve connections of the board's sshd; how many they were."""
    serving = ssh_sessions(board.server.pid)
    for pid in serving:
        kill(pid)
    return len(serving)


def start_cli(*arguments: object) -> subprocess.Popen[str]:
    command = [str(EDGEOPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """(the JSON document, stderr) of a command that must succeed."""
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return json.loads(stdout), stderr


def process_of(job: Path) -> int:
    pid: int = json.loads((job / "process.json").read_text())["pid"]
    return pid


@pytest.fixture(params=["paramiko", "ssh"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(ssh_board: SshBoard, transport: str) -> Iterator[Session]:
    server = ssh_board.server
    link = open_transport(parse_address(server.address, server.identity, server.known_hosts, transport))
    with Session(link, Placement(str(ssh_board.root), sys.executable)) as opened:
        yield opened


def test_a_bench_goes_on_while_the_link_is_cut_twice(ssh_board: SshBoard, session: Session) -> None:
    thread, outcome = in_background(session, long_bench(session, seconds=10.0))
    job = until(lambda: progress_of(ssh_board.root), "the middle of the job")
    process = process_of(job)
    for rounds in (2, 6):
        until(lambda n=rounds: len(events(job)) >= n, f"round {rounds}")
        until(lambda: cut(ssh_board), "a session to cut")  # the host may still be on its way back from the first cut
        assert is_alive(process)
    thread.join(60)
    name, result = outcome[0]
    assert [folder.name for folder in job_folders(ssh_board.root)] == [name]
    assert process_of(job) == process
    assert [(block["round"], block["artifact"]) for block in result["blocks"]] == [
        (number, 0) for number in range(10) for _ in range(2)
    ]
    pairs = np.frombuffer(session.fetch(name, result["artifacts"][0]["samples"])).reshape(-1, 2)
    assert len(pairs) == sum(block["n"] for block in result["blocks"])


def test_bench_command_ends_well_when_the_link_is_cut(ssh_board: SshBoard, tmp_path: Path) -> None:
    model = tmp_path / "dense.tflite"
    model.write_bytes(dense_tflite())
    command = start_cli("bench", model, "--random", "--json", *ssh_board.options)
    job = until(lambda: progress_of(ssh_board.root), "the middle of the job")
    process = process_of(job)
    assert cut(ssh_board) >= 1
    assert is_alive(process)
    document, stderr = finish(command)
    assert "link lost" in stderr
    assert job_folders(ssh_board.root) == [job]
    assert process_of(job) == process
    assert [event["done"] for event in events(job)] == list(range(1, 13))
    result = json.loads((job / "result.json").read_text())["result"]
    assert len(result["blocks"]) == 24
    measured = (job / "samples-0.f64").stat().st_size // 16
    assert document["results"][0]["latency"]["n"] == measured == sum(block["n"] for block in result["blocks"])
    assert measured >= 64


def recording_python(folder: Path) -> Path:
    """A Python for the board that keeps what each agent session was sent."""
    script = folder / "python"
    brings = f'case "$*" in *exec*) exec {sys.executable} "$@";; esac\n'  # the agent, which is no session yet
    script.write_text(f'#!/bin/sh\n{brings}tee "{folder}/session-$(date +%s%N)" | {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


def puts(recorded: Path) -> list[dict[str, Any]]:
    """The whole blob.put requests that one agent session received."""
    stream = io.BytesIO(recorded.read_bytes())
    found = []
    while True:
        try:
            message, _ = wire.receive(stream.readline, stream.read)
        except EOFError:
            return found
        found += [message] if message["op"] == "blob.put" else []


def cut_in_mid_upload(board: SshBoard, data: bytes) -> tuple[Path, int, int]:
    """(partial blob, its inode, bytes held) when the session that was sending `data` is dead."""
    partial = board.root / "store" / f"{hashlib.sha256(data).hexdigest()}.part"
    until(partial.exists, "the upload")
    serving, inode = ssh_sessions(board.server.pid), partial.stat().st_ino
    until(lambda: partial.stat().st_size > ENOUGH_BYTES, "the upload's middle")
    for pid in serving:  # looked up before: a search through /proc now could come too late
        kill(pid)
    held = partial.stat().st_size
    assert serving
    assert ENOUGH_BYTES < held < len(data)
    return partial, inode, held


def check_continued(recorded: Path, data: bytes, partial: Path, inode: int, held: int) -> None:
    first, second = (
        [put for put in puts(session) if put["size_bytes"] == len(data)]
        for session in sorted(recorded.glob("session-*"))
    )
    assert first[0]["offset"] == 0
    # One chunk may be asked again, because its answer was lost, and one may have come after `held` was read.
    assert abs(second[0]["offset"] - held) <= wire.CHUNK_BYTES, "the upload did not continue at its byte"
    ends = [put["offset"] + put["bytes"] for put in second]
    assert [put["offset"] for put in second[2:]] == ends[1:-1]  # of the first it may have had more than we knew
    assert ends[-1] == len(data)
    whole = partial.with_suffix("")
    assert whole.stat().st_ino == inode
    assert whole.read_bytes() == data
    assert not partial.exists()


def test_bench_command_continues_a_cut_upload_at_its_byte(ssh_board: SshBoard, tmp_path: Path, transport: str) -> None:
    model = tmp_path / "big.tflite"
    model.write_bytes(dense_tflite(**BIG))
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    options = [*ssh_board.options, "--board-python", recording_python(recorded), "--transport", transport]
    command = start_cli("bench", model, "--random", "--no-repeat", "--json", *options)
    where = cut_in_mid_upload(ssh_board, model.read_bytes())
    document, stderr = finish(command)
    assert "link lost" in stderr
    check_continued(recorded, model.read_bytes(), *where)
    assert document["results"][0]["latency"]["n"] >= 64
    assert len(job_folders(ssh_board.root)) == 1


def test_flash_command_continues_a_cut_upload_at_its_byte(ssh_board: SshBoard, tmp_path: Path) -> None:
    bundle = tmp_path / "big.edgeopt"
    dense_bundle(bundle, **BIG)
    data = dense_tflite(**BIG)
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    options = [*ssh_board.options, "--board-python", recording_python(recorded)]
    command = start_cli("flash", bundle, "--json", *options)
    where = cut_in_mid_upload(ssh_board, data)
    document, _ = finish(command)
    check_continued(recorded, data, *where)
    assert not document["already"]
    status, _ = finish(start_cli("status", "--json", *ssh_board.options))
    assert status["current"]["release"] == document["release"]
    assert status["current"]["whole"] is True


def test_a_link_that_stays_lost_is_told_once_and_then_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = LoopbackBoard(tmp_path / "sshd")
    said: list[str] = []
    place = Placement(str(tmp_path / "root"), sys.executable)
    link = open_transport(parse_address(server.address, server.identity, server.known_hosts))
    with Session(link, place, patience_s=4.0, on_event=lambda event: said.append(event["what"])) as session:
        serving = ssh_sessions(server.pid)
        server.close()
        for pid in filter(is_alive, serving):
            kill(pid)
        for again_s in (1000.0, 0.0):
            monkeypatch.setattr("edgeopt.device.session.SAY_AGAIN_S", again_s)
            said.clear()
            with pytest.raises(DeviceUnreachable, match="gave up after 4 s"):
                session.facts()
            assert "; trying again for 4 s; Ctrl-C gives up" in said[0]
            assert all(re.search(r"; trying again, [0-4] s left$", told) for told in said[1:])
            reasons = [told.partition("; trying again")[0] for told in said]
            assert (len(set(reasons)) == len(reasons)) == (again_s > 0), said


@pytest.mark.parametrize("kind", ["bench", "flash"])
def test_what_ended_before_it_could_be_cancelled_is_told(tmp_path: Path, kind: str) -> None:
    said: list[str] = []
    root = tmp_path / "root"

    def interrupt(event: dict[str, Any]) -> None:
        """Ctrl-C when the job has ended, and the host does not know it yet."""
        said.append(event["what"])
        if len(said) == 1 and job_folders(root):
            until(lambda: list(root.glob("jobs/*/result.json")), "the job's end")
            raise KeyboardInterrupt

    dense_bundle(tmp_path / "dense.edgeopt", 4, 3)
    with local_session(root, on_event=interrupt) as session:
        request = long_bench(session, seconds=0.2)
        opened = bundles.read(tmp_path / "dense.edgeopt")
        for name, entry in opened.manifest.files.items():
            session.send(opened.blob(entry), name)
        said.clear()
        with pytest.raises(KeyboardInterrupt):
            session.run(request) if kind == "bench" else flash.flash(session, opened, sys.executable)
        (ended,) = [told for told in said if "it had ended before it could be cancelled" in told]
        assert ended.startswith(f"{session.address}: ")
        assert ("`edgeopt status` tells what is current" in ended) == (kind == "flash")


@pytest.mark.parametrize("where", ["local", "paramiko", "ssh"])
def test_ctrl_c_in_a_bench_cancels_its_job_and_workers(
    request: pytest.FixtureRequest, tmp_path: Path, where: str
) -> None:
    model = tmp_path / "dense.tflite"
    model.write_bytes(dense_tflite())
    root = tmp_path / "local-root"
    options: list[object] = ["--root", root]
    if where != "local":
        board = request.getfixturevalue("ssh_board")
        options, root = [*board.options, "--transport", where], board.root
    command = start_cli("bench", model, "--random", "--mode", "quick", *options)
    job = until(lambda: progress_of(root), "the middle of the job")
    workers = workers_of(job)
    os.kill(command.pid, signal.SIGINT)
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "Traceback" not in stderr
    assert json.loads((job / "result.json").read_text())["error"]["kind"] == "cancelled"
    until(lambda: not any(map(is_alive, workers)), "the end of the workers", 5)


def test_ctrl_c_in_an_upload_leaves_what_arrived_for_the_next_try(
    ssh_board: SshBoard, tmp_path: Path, transport: str
) -> None:
    model = tmp_path / "big.tflite"
    model.write_bytes(dense_tflite(**BIG))
    command = start_cli("bench", model, "--random", "--transport", transport, *ssh_board.options)
    store = ssh_board.root / "store"
    partial = until(
        lambda: next((p for p in store.glob("*.part") if p.stat().st_size > ENOUGH_BYTES), None), "the upload's middle"
    )
    os.kill(command.pid, signal.SIGINT)
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "Traceback" not in stderr
    inode = partial.stat().st_ino
    assert job_folders(ssh_board.root) == []
    finish(start_cli("bench", model, "--random", "--json", *ssh_board.options))
    assert partial.with_suffix("").stat().st_ino == inode
