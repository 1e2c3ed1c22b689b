"""Boards as they are in the field: OpenSSH and dropbear, root and ordinary users, small shells, noise, old servers,
links that go silent; over paramiko and over the system's ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import (
    board_python,
    cable_addresses,
    children,
    dense_bundle,
    dense_tflite,
    events,
    in_background,
    is_alive,
    job_folders,
    kill,
    long_bench,
    processes,
    progress_of,
    pyenv_python,
    ssh_address,
    ssh_sessions,
    until,
)
from conftest import Run, run_quick
from loopback_board import LoopbackBoard
from servers import ORDINARY, ROOT, Account, NamespacedBoard, namespaced_board

from edgeopt.device import Address, open_transport, openssh, ssh, ssh_hop
from edgeopt.device.session import Placement, Session
from edgeopt.errors import DeviceUnreachable

SERVERS = ("openssh", "dropbear")
BANNER = '\nWELCOME to the board\n{"id": 1, "ok": true}\n'
NOISE = "echo motd; echo '{\"id\": 1}'; echo noise >&2; printf 'no newline'\n"


@pytest.fixture(params=["paramiko", "ssh"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def placed(server: LoopbackBoard) -> Placement:
    """A place that the server's user may write."""
    return Placement(f"{server.home}/edgeopt", sys.executable)


def said_by(address: Address, command: str) -> str:
    opened = open_transport(address)
    try:
        pipe = opened.open(command)
        data = b""
        while part := pipe.read(4096, 20.0):
            data += part
        pipe.close()
        return data.decode()
    finally:
        opened.close()


# Users, shells, noise


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    "account",
    [ROOT, ORDINARY, Account("board", 61234, "/bin/bash"), Account("board", 61234, "busybox ash")],
    ids=["root", "dash", "bash", "ash"],
)
def test_the_agent_starts_behind_banners_noise_and_small_shells(server: str, account: Account, transport: str) -> None:
    with namespaced_board(server=server, account=account, banner=BANNER) as board:
        (board.home / ".bashrc").write_text(NOISE)
        (board.home / ".ssh").mkdir(exist_ok=True)
        (board.home / ".ssh" / "rc").write_text(NOISE)
        address = ssh_address(board, transport)
        assert said_by(address, "id -un").endswith(f"{account.name}\n")
        with Session(open_transport(address), placed(board)) as session:
            data = os.urandom(700_000)
            held = board.home / "edgeopt" / "store" / session.send(data)
            assert held.read_bytes() == data
            assert held.stat().st_uid == account.uid
            assert session.facts()["cores"]


def test_the_noise_of_these_tests_is_heard(transport: str) -> None:
    account = Account("board", 61234, "/bin/bash")
    with namespaced_board(server="openssh", account=account) as board:
        (board.home / ".bashrc").write_text(NOISE)
        assert said_by(ssh_address(board, transport), "true").startswith("motd\n")


# A bench, a flash, a lost link


@pytest.fixture(params=SERVERS, scope="module")
def user_board(request: pytest.FixtureRequest) -> Iterator[NamespacedBoard]:
    """Either server, for an ordinary user."""
    with namespaced_board(server=request.param, account=ORDINARY) as board:
        yield board


def done_well(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_flash_and_bench_as_an_ordinary_user(
    cli: Run, user_board: NamespacedBoard, transport: str, tmp_path: Path
) -> None:
    bundle, model = tmp_path / "dense.edgeopt", tmp_path / "dense.tflite"
    dense_bundle(bundle, 4, 3)
    model.write_bytes(dense_tflite())
    root = user_board.home / f"edgeopt-{transport}"
    options = [
        *user_board.options,
        "--transport",
        transport,
        "--root",
        root,
        "--board-python",
        sys.executable,
        "--json",
    ]
    flashed = done_well(cli("flash", bundle, *options))
    status = done_well(cli("status", *options))
    assert status["current"]["release"] == flashed["release"]
    assert status["current"]["whole"] is True
    assert done_well(run_quick("bench", model, "--random", *options))["results"][0]["latency"]["n"] >= 64
    assert {path.stat().st_uid for path in root.rglob("*")} == {ORDINARY.uid}


def test_a_job_goes_on_while_the_link_is_cut(user_board: NamespacedBoard, transport: str) -> None:
    root = user_board.home / f"cut-{transport}"
    with Session(open_transport(ssh_address(user_board, transport)), Placement(str(root), sys.executable)) as session:
        thread, outcome = in_background(session, long_bench(session, seconds=5.0))
        job = until(lambda: progress_of(root), "the middle of the job")
        process = json.loads((job / "process.json").read_text())["pid"]
        for rounds in (2, 6):
            until(lambda n=rounds: len(events(job)) >= n, f"round {rounds}")
            serving = until(lambda: ssh_sessions(user_board.pid), "a session to cut")
            for pid in serving:
                if is_alive(pid) and pid != process:
                    kill(pid)
            assert is_alive(process)
        thread.join(60)
        name, result = outcome[0]
        assert [folder.name for folder in job_folders(root)] == [name]
        pairs = np.frombuffer(session.fetch(name, result["artifacts"][0]["samples"])).reshape(-1, 2)
        assert len(pairs) == sum(block["n"] for block in result["blocks"])


# Old servers

OLD = "KexAlgorithms diffie-hellman-group14-sha1\n"


@pytest.fixture(scope="module")
def old_server() -> Iterator[NamespacedBoard]:
    """A server from before 2016, as far as its key exchange goes."""
    with namespaced_board(settings=OLD) as board:
        yield board


def test_an_old_key_exchange_is_told_with_its_mend(old_server: NamespacedBoard, transport: str) -> None:
    with pytest.raises(DeviceUnreachable, match=r"its SSH server is old.*KexAlgorithms") as caught:
        said_by(ssh_address(old_server, transport), "true")
    assert ("--transport ssh" in str(caught.value)) == (transport == "paramiko")


def test_the_mend_for_an_old_key_exchange_works(
    old_server: NamespacedBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  KexAlgorithms +diffie-hellman-group14-sha1\n")
    monkeypatch.setenv("EDGEOPT_SSH_CONFIG", str(config))
    with Session(open_transport(ssh_address(old_server, "ssh")), placed(old_server)) as session:
        assert session.facts()["cores"]


# A link that goes silent


def network(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class DistantBoard(LoopbackBoard):
    """A board in a network namespace, at the other end of a cable that can be pulled."""

    ours, host = cable_addresses(0)

    def __init__(self, folder: Path) -> None:
        self._name = f"edgeopt{os.getpid()}"
        self._end, self._far_end = f"eo{os.getpid()}", f"eo{os.getpid()}far"
        network("netns", "add", self._name)
        try:
            network("link", "add", self._end, "type", "veth", "peer", "name", self._far_end, "netns", self._name)
            network("addr", "add", f"{self.ours}/30", "dev", self._end)
            network("-n", self._name, "addr", "add", f"{self.host}/30", "dev", self._far_end)
            network("link", "set", self._end, "up")
            self.plug("up")
            super().__init__(folder)
        except BaseException:
            network("netns", "del", self._name)
            raise

    def plug(self, state: str) -> None:
        network("-n", self._name, "link", "set", self._far_end, state)

    def command(self) -> list[str]:
        return ["ip", "netns", "exec", self._name, *super().command()]

    def close(self) -> None:
        for pid in [*ssh_sessions(self.pid), *children(self.pid)]:
            if is_alive(pid):
                kill(pid)
        super().close()
        network("netns", "del", self._name)


@pytest.fixture(scope="module")
def distant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DistantBoard]:
    try:
        board = DistantBoard(tmp_path_factory.mktemp("distant") / "sshd")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace with a veth pair can be made here: {error}")
    yield board
    board.close()


def test_a_link_that_goes_silent_is_noticed_and_found_again(
    distant: DistantBoard, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (ssh, "KEEPALIVE_S", 1),
        (ssh_hop, "LOST_AFTER_S", 3.0),
        (openssh, "KEEPALIVE_S", 1),
        (openssh, "KEEPALIVES_LOST", 3),
    ):
        monkeypatch.setattr(module, name, value)
    said: list[dict[str, Any]] = []
    lost = threading.Event()

    def heard(event: dict[str, Any]) -> None:
        said.append(event)
        if "link lost" in str(event.get("what")):
            lost.set()

    root = tmp_path / "root"
    opened = open_transport(ssh_address(distant, transport))
    with Session(opened, Placement(str(root), sys.executable), on_event=heard, reply_s=300.0) as session:
        thread, outcome = in_background(session, long_bench(session, seconds=6.0))
        job = until(lambda: progress_of(root), "the middle of the job")
        distant.plug("down")
        try:
            assert lost.wait(60), "the silence was not noticed before the reply's own time-out"
        finally:
            distant.plug("up")
        thread.join(90)
        name, result = outcome[0]
        assert [folder.name for folder in job_folders(root)] == [job.name] == [name]
        assert len(result["blocks"]) == 20


# The master of the system's ssh


def test_the_master_connection_ends_with_the_transport(loopback: LoopbackBoard) -> None:
    def masters() -> list[int]:
        return [
            pid for pid, _, command in processes() if "edgeopt-ssh-" in command and str(loopback.identity) in command
        ]

    opened = open_transport(ssh_address(loopback, "ssh"))
    pipe = opened.open("echo $SSH_CONNECTION")
    first = pipe.read(4096, 20.0)
    again = opened.open("echo $SSH_CONNECTION")
    assert again.read(4096, 20.0) == first, "the second command has a connection of its own"
    serving = ssh_sessions(loopback.pid)
    assert serving
    pipe.close()
    again.close()
    opened.close()
    until(lambda: not masters() and not any(map(is_alive, serving)), "the end of the master")


# Pythons of boards


@pytest.mark.parametrize(
    ("version", "make"),
    [
        *((version, pyenv_python) for version in ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")),
        *((version, board_python) for version in ("3.8", "3.9")),  # the tests of the runtimes have the others
    ],
)
def test_every_python_of_a_board_serves(
    loopback: LoopbackBoard, tmp_path: Path, version: str, make: Callable[[str], str]
) -> None:
    with Session(open_transport(ssh_address(loopback)), Placement(str(tmp_path / "root"), make(version))) as session:
        facts = session.facts()
        assert facts["python"].startswith(f"{version}.")
        assert bool(facts["runtimes"]["tflite"]) == (make is board_python)
        sha256 = session.send(b"something")
        assert (tmp_path / "root" / "store" / sha256).read_bytes() == b"something"
