"""Every transport behaves alike, and so do sessions over it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boards import (
    bench_request,
    fake_model,
    is_alive,
    kill,
    open_files,
    samples,
    ssh_address,
    until,
)
from loopback_board import LoopbackBoard

from edgeopt.device import Pipe, Transport, open_transport, parse_address
from edgeopt.device.session import Placement, Session
from edgeopt.errors import AgentFailure, DeviceUnreachable


@dataclasses.dataclass(frozen=True)
class Board:
    """`open` makes a new transport to it."""

    open: Callable[[], Transport]
    server: LoopbackBoard | None


@pytest.fixture(params=["local", "loopback-paramiko", "loopback-ssh", "dropbear-paramiko", "dropbear-ssh"])
def board(request: pytest.FixtureRequest) -> Board:
    name, _, transport = request.param.partition("-")
    if name == "local":
        return Board(lambda: open_transport(parse_address("local")), None)
    server = request.getfixturevalue(name)
    return Board(lambda: open_transport(ssh_address(server, transport)), server)


@pytest.fixture
def transport(board: Board) -> Iterator[Transport]:
    opened = board.open()
    yield opened
    opened.close()


def everything(pipe: Pipe) -> bytes:
    data = b""
    while part := pipe.read(1 << 16, 20.0):
        data += part
    return data


# The contract of a transport


def test_output_errors_and_exit_code_come_apart(transport: Transport) -> None:
    pipe = transport.open("echo out; echo err >&2; exit 7")
    assert everything(pipe) == b"out\n"
    assert pipe.end(10.0) == (7, "err")
    pipe.close()
    pipe.close()


def test_bytes_go_both_ways_unchanged(transport: Transport) -> None:
    sent = bytes(range(256)) * 4000
    pipe = transport.open("cat")
    writer = threading.Thread(target=lambda: (pipe.write(sent, 20.0), pipe.finish_input()))
    writer.start()
    assert everything(pipe) == sent
    writer.join(20)
    assert pipe.end(10.0)[0] == 0
    pipe.close()


def test_the_command_is_posix_whatever_is_in_it(transport: Transport) -> None:
    text = "a 'b' \"c\" $HOME `id` \\ ! * ~ ; & | # \t é"
    pipe = transport.open(f"printf %s {shlex.quote(text)}")
    assert everything(pipe) == text.encode()
    pipe.close()


def test_silence_ends_in_device_unreachable(transport: Transport) -> None:
    pipe = transport.open("sleep 60")
    with pytest.raises(DeviceUnreachable, match=r"silent for 0\.2 s"):
        pipe.read(1, 0.2)
    pipe.close()


def test_a_command_that_takes_no_data_ends_in_device_unreachable(transport: Transport) -> None:
    pipe = transport.open("sleep 60")
    with pytest.raises(DeviceUnreachable, match=r"took no data for 0\.3 s"):
        pipe.write(b"x" * (32 << 20), 0.3)
    pipe.close()


def test_writing_to_a_command_that_ended_is_device_unreachable(transport: Transport) -> None:
    pipe = transport.open("exit 3")
    assert everything(pipe) == b""

    def write_until_it_shows() -> None:
        for _ in range(100):
            pipe.write(b"x" * 100_000, 5.0)
            time.sleep(0.01)

    with pytest.raises(DeviceUnreachable):
        write_until_it_shows()
    assert pipe.end(10.0)[0] == 3
    pipe.close()


def test_a_flood_on_stderr_does_not_stop_the_command(transport: Transport) -> None:
    pipe = transport.open("head -c 8000000 /dev/zero | tr '\\0' e >&2; echo done; echo last words >&2")
    assert everything(pipe) == b"done\n"
    code, stderr = pipe.end(10.0)
    assert code == 0
    assert stderr.endswith("last words")
    pipe.close()


def test_two_commands_run_side_by_side(transport: Transport) -> None:
    first, second = transport.open("cat"), transport.open("cat")
    for pipe, text in ((second, b"two"), (first, b"one")):
        pipe.write(text, 5.0)
        assert pipe.read(10, 5.0) == text
    first.close()
    second.write(b"more", 5.0)
    assert second.read(10, 5.0) == b"more"
    second.close()


def test_a_closed_transport_opens_again(transport: Transport) -> None:
    for _ in range(2):
        pipe = transport.open("echo here")
        assert everything(pipe) == b"here\n"
        pipe.close()
        transport.close()


def test_commands_leave_no_open_files_threads_or_children(transport: Transport) -> None:
    def once() -> None:
        pipe = transport.open("cat")
        pipe.write(b"x", 5.0)
        pipe.read(1, 5.0)
        pipe.close()

    before = threading.active_count()
    once()
    connected = before + 1  # paramiko's own thread lives as long as the connection
    until(lambda: threading.active_count() <= connected, "the end of the first command's thread")
    files = open_files()
    for _ in range(20):
        once()
    until(lambda: threading.active_count() <= connected, "the end of the threads")
    assert open_files() <= files


# Sessions over each transport


@pytest.mark.parametrize("name", ["plain", "with space", 'it\'s $HOME; "quoted" & `id`', "ünïcode"])
def test_a_root_may_have_any_name(board: Board, tmp_path: Path, name: str) -> None:
    root = tmp_path / name / "edgeopt"
    with Session(board.open(), Placement(str(root), sys.executable)) as session:
        assert session.hello["root"] == str(root)
        job, result = session.run(bench_request([session.send(fake_model())], [session.send(samples())]))
        assert session.fetch(job, result["artifacts"][0]["samples"])
    assert {entry.name for entry in root.iterdir()} >= {"agent", "store", "jobs", "releases", "activations"}
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_session_that_ends_takes_its_agent_with_it(board: Board, tmp_path: Path) -> None:
    with Session(board.open(), Placement(str(tmp_path), sys.executable)) as session:
        agent = session.hello["pid"]
        assert is_alive(agent)
    until(lambda: not is_alive(agent), "the agent's end")


def test_a_session_whose_agent_was_killed_goes_on_with_another(board: Board, tmp_path: Path) -> None:
    said: list[dict[str, object]] = []
    with Session(board.open(), Placement(str(tmp_path), sys.executable), on_event=said.append) as session:
        first = session.hello["pid"]
        for _ in range(3):
            kill(session.hello["pid"])
            assert session.status()["current"] is None
        assert session.hello["pid"] != first
    assert len([event for event in said if "link lost" in str(event["what"])]) == 3


def test_an_agent_that_hangs_is_replaced(board: Board, tmp_path: Path) -> None:
    place = Placement(str(tmp_path), sys.executable)
    with Session(board.open(), place, reply_s=3.0) as session:
        hung = session.hello["pid"]
        os.kill(hung, signal.SIGSTOP)
        assert session.facts()["cores"]
        assert session.hello["pid"] != hung
    if is_alive(hung):
        kill(hung)


@pytest.mark.parametrize(
    ("python", "words"),
    [("/no/such/python", r"'/no/such/python'.*not found"), ("/etc/passwd", "'/etc/passwd'.*[Pp]ermission denied")],
)
def test_a_python_that_cannot_be_run_is_named(board: Board, tmp_path: Path, python: str, words: str) -> None:
    with pytest.raises(AgentFailure, match=words) as caught:
        Session(board.open(), Placement(str(tmp_path), python))
    assert caught.value.exit_code == 4
    assert "set python in the profile's [board], or --board-python" in str(caught.value)


def test_failed_connections_leave_no_open_files_or_threads(board: Board, tmp_path: Path) -> None:
    def fail() -> None:
        with pytest.raises(AgentFailure):
            Session(board.open(), Placement(str(tmp_path), "/no/such/python"))

    threads = threading.active_count()
    fail()
    until(lambda: threading.active_count() <= threads, "the end of the first one's threads")
    files = open_files()
    for _ in range(5):
        fail()
    until(lambda: threading.active_count() <= threads, "the end of the threads")
    assert open_files() <= files


def test_a_noisy_login_shell_changes_nothing(loopback: LoopbackBoard, tmp_path: Path) -> None:
    profile = loopback.home / ".bashrc"
    profile.write_text("echo Welcome to the board; echo '{\"id\": 1}'; echo noise >&2; printf 'no newline'\n")
    try:
        transport = open_transport(ssh_address(loopback))
        pipe = transport.open("true")
        if b"Welcome" not in everything(pipe):
            pytest.skip("this user's login shell does not read .bashrc under sshd")
        pipe.close()
        with Session(transport, Placement(str(tmp_path), sys.executable)) as session:
            sha256 = session.send(os.urandom(700_000))
            assert (tmp_path / "store" / sha256).exists()
    finally:
        profile.unlink()
