"""SSH is strict, says what is wrong and how to mend it, and never waits forever."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import paramiko
import pytest
from boards import (
    open_files,
    pyenv_python,
    ssh_address,
    ssh_sessions,
    until,
)
from conftest import Run
from loopback_board import LoopbackBoard

from edgeopt.device import Address
from edgeopt.device.openssh import OpenSshTransport
from edgeopt.device.session import Placement, Session
from edgeopt.device.ssh import SshTransport
from edgeopt.errors import DeviceUnreachable, IntegrityError

TRANSPORTS = {"paramiko": SshTransport, "ssh": OpenSshTransport}


@pytest.fixture(params=sorted(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# What SSH refuses, through the installed command


def status(cli: Run, server: LoopbackBoard, **options: object) -> subprocess.CompletedProcess[str]:
    """`edgeopt status` with this board's options, some replaced; None leaves one out."""
    given = {"device": server.address, "identity": server.identity, "known-hosts": server.known_hosts}
    given |= {"root": server.folder / "root", "board-python": sys.executable}
    given |= {name.replace("_", "-"): value for name, value in options.items() if name != "home"}
    flags = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    return cli("status", *flags, env={"HOME": str(options["home"])} if "home" in options else None)


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert done.returncode == code, done.stderr
    for words in said:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def fingerprint(public_key: Path) -> str:
    listed = subprocess.run(["ssh-keygen", "-lf", public_key], check=True, capture_output=True, text=True).stdout
    return listed.split()[1]


def new_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True)
    return path


def test_the_board_answers_when_all_is_right(cli: Run, loopback: LoopbackBoard, transport: str) -> None:
    done = status(cli, loopback, transport=transport)
    assert done.returncode == 0, done.stderr
    assert "current   none" in done.stdout


def test_an_unknown_host_key_is_refused_with_its_fingerprint(
    cli: Run, loopback: LoopbackBoard, transport: str, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    known.touch()
    done = status(cli, loopback, transport=transport, known_hosts=known)
    shown = fingerprint(loopback.folder / "host_key.pub")
    mend = f"ssh-keyscan -t ed25519 -p {loopback.port} 127.0.0.1 >> {known}"
    by_name = f"`edgeopt device add NAME {loopback.address}`"
    refused(done, 5, "its host key is unknown", shown, mend, "dropbearkey -y -f", by_name, "nothing was sent")
    subprocess.run(mend, shell=True, check=True, capture_output=True)
    assert status(cli, loopback, transport=transport, known_hosts=known).returncode == 0


def test_without_any_known_hosts_the_key_is_unknown_too(
    cli: Run, loopback: LoopbackBoard, transport: str, tmp_path: Path
) -> None:
    done = status(cli, loopback, transport=transport, known_hosts=None, home=tmp_path)
    refused(done, 5, "its host key is unknown", f"{tmp_path}/.ssh/known_hosts has no key for")


def test_a_changed_host_key_is_refused_with_both_fingerprints(
    cli: Run, loopback: LoopbackBoard, transport: str, tmp_path: Path
) -> None:
    other = new_key(tmp_path / "other").with_suffix(".pub")
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{loopback.port} {other.read_text()}")
    done = status(cli, loopback, transport=transport, known_hosts=known)
    mend = f"ssh-keygen -f {known} -R '[127.0.0.1]:{loopback.port}'"
    refused(done, 5, "THE HOST KEY CHANGED", fingerprint(other), fingerprint(loopback.folder / "host_key.pub"), mend)
    subprocess.run(mend, shell=True, check=True, capture_output=True)
    refused(status(cli, loopback, transport=transport, known_hosts=known), 5, "its host key is unknown")


def test_a_key_that_the_board_does_not_know_is_refused(
    cli: Run, loopback: LoopbackBoard, transport: str, tmp_path: Path
) -> None:
    done = status(cli, loopback, transport=transport, identity=new_key(tmp_path / "stranger"))
    refused(done, 3, f"{loopback.address} refused user", "--identity", "ssh agent")


def test_identities_that_cannot_be_used_are_named(
    cli: Run, loopback: LoopbackBoard, transport: str, tmp_path: Path
) -> None:
    nothing, garbage = tmp_path / "nothing", tmp_path / "garbage"
    garbage.write_text("this is not a key\n")
    locked = new_key(tmp_path / "locked", "secret")
    refused(status(cli, loopback, transport=transport, identity=nothing), 2, f"--identity {nothing}: no such file")
    refused(
        status(cli, loopback, transport=transport, identity=garbage), 2, f"--identity {garbage} is not a private key"
    )
    refused(
        status(cli, loopback, transport=transport, identity=locked),
        2,
        f"--identity {locked}",
        "passphrase",
        f"ssh-add {locked}",
    )
    refused(
        status(cli, loopback, transport=transport, identity=tmp_path), 2, f"--identity {tmp_path} is not a private key"
    )


def test_known_hosts_that_cannot_be_used_are_named(
    cli: Run, loopback: LoopbackBoard, transport: str, tmp_path: Path
) -> None:
    nothing, garbage = tmp_path / "nothing", tmp_path / "garbage"
    garbage.write_bytes(b"host ssh-ed25519 ???\n\xff\xfe\n")
    refused(
        status(cli, loopback, transport=transport, known_hosts=nothing), 2, f"--known-hosts {nothing}: no such file"
    )
    refused(status(cli, loopback, transport=transport, known_hosts=tmp_path), 2, f"--known-hosts {tmp_path}")
    if transport == "paramiko":  # ssh passes over lines that it cannot read; the host is unknown then
        refused(status(cli, loopback, transport=transport, known_hosts=garbage), 2, f"--known-hosts {garbage}")
    else:
        refused(status(cli, loopback, transport=transport, known_hosts=garbage), 5, f"{garbage} has no key for")


def test_nobody_listening_is_unreachable(cli: Run, loopback: LoopbackBoard, transport: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"ssh://127.0.0.1:{taken.getsockname()[1]}"
        done = status(cli, loopback, transport=transport, device=address)
    refused(done, 3, f"{address} cannot be reached", "is the board on")


def test_a_name_that_nobody_knows_is_unreachable(cli: Run, loopback: LoopbackBoard, transport: str) -> None:
    refused(
        status(cli, loopback, transport=transport, device="ssh://no-such-board.invalid"),
        3,
        "ssh://no-such-board.invalid cannot be reached",
    )


@pytest.mark.parametrize("version", ["3.6", "3.7"])
def test_a_python_that_is_too_old_is_told_apart_over_ssh(cli: Run, loopback: LoopbackBoard, version: str) -> None:
    python = pyenv_python(version)
    done = status(cli, loopback, board_python=python)
    refused(done, 4, f"needs Python 3.8 or later; {python} is Python {version}", "--board-python")
    assert "SyntaxError" not in done.stderr


def test_a_refused_connection_is_closed(loopback: LoopbackBoard, transport: str, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").touch()
    address = dataclasses.replace(ssh_address(loopback), known_hosts=tmp_path / "known_hosts")
    threads, files = threading.active_count(), open_files()
    for _ in range(3):
        with pytest.raises(IntegrityError):
            TRANSPORTS[transport](address).open("true")
    until(lambda: threading.active_count() <= threads and open_files() <= files, "the end of the connections")


# Nothing waits forever


def test_a_server_that_accepts_and_stays_silent_is_unreachable(loopback: LoopbackBoard, transport: str) -> None:
    threads = threading.active_count()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        address = dataclasses.replace(ssh_address(loopback), text=f"ssh://127.0.0.1:{port}", port=port)
        with pytest.raises(DeviceUnreachable, match=f"ssh://127.0.0.1:{port} cannot be reached"):
            TRANSPORTS[transport](address, timeout_s=1.0).open("true")
    until(lambda: threading.active_count() <= threads, "the end of the connection's threads")


class Deaf(paramiko.ServerInterface):
    """Lets everybody in, and never answers a request to run something."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002
        return int(paramiko.AUTH_SUCCESSFUL)

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:  # noqa: ARG002
        return not self.over.wait(30)


def test_a_server_that_never_starts_the_command_is_unreachable(loopback: LoopbackBoard) -> None:
    deaf = Deaf()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        known = loopback.folder / "known_deaf"
        known.write_text(f"[127.0.0.1]:{port} {(loopback.folder / 'host_key.pub').read_text()}")

        def serve() -> None:
            server = paramiko.Transport(listener.accept()[0])
            server.add_server_key(paramiko.PKey.from_path(loopback.folder / "host_key"))
            server.start_server(server=deaf)
            deaf.over.wait(60)
            server.close()

        thread = threading.Thread(target=serve)
        thread.start()
        address = Address(f"ssh://127.0.0.1:{port}", "127.0.0.1", None, port, loopback.identity, known)
        try:
            with pytest.raises(DeviceUnreachable, match="no command can be started"):
                SshTransport(address, timeout_s=2.0).open("true")
        finally:
            deaf.over.set()
            thread.join(30)


def test_a_board_that_froze_is_given_up_and_found_again(tmp_path: Path, transport: str) -> None:
    server = LoopbackBoard(tmp_path / "sshd")
    place = Placement(str(tmp_path / "root"), sys.executable)
    try:
        link = TRANSPORTS[transport](ssh_address(server), timeout_s=2.0)
        with Session(link, place, patience_s=1.0, reply_s=2.0) as session:
            frozen = [server.pid, *ssh_sessions(server.pid)]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(DeviceUnreachable, match=r"gave up after 1 s; run the same command again"):
                session.facts()
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            assert session.facts()["cores"]
    finally:
        server.close()
