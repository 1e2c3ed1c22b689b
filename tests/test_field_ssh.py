"""SSH as it is met in the field: hardened servers, appliances, slow links, odd addresses, many keys."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import cable_addresses, local_session, ssh_address, until
from conftest import run_cli
from loopback_board import LoopbackBoard
from servers import Account, namespaced_board

from edgeopt.device import open_transport, openssh, parse_address, ssh_config
from edgeopt.device.session import Placement, Session
from edgeopt.errors import AgentFailure, ConfigError, DeviceUnreachable

TRANSPORTS = ("paramiko", "ssh")


class Server(LoopbackBoard):
    """sshd with further lines, which come first, in its configuration."""

    settings = ""

    def command(self) -> list[str]:
        command = super().command()
        config = self.folder / "sshd_config"
        config.write_text(self.settings + config.read_text())
        return command


@contextlib.contextmanager
def serving(folder: Path, settings: str, kind: type[Server] = Server) -> Iterator[Server]:
    server = type("Configured", (kind,), {"settings": settings})(folder)
    try:
        yield server
    finally:
        server.close()


def opened(server: LoopbackBoard, transport: str, root: Path, **how: Any) -> Session:
    link = open_transport(ssh_address(server, transport))
    return Session(link, Placement(str(root), sys.executable), **how)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_session_at_a_time_is_enough(tmp_path: Path, transport: str) -> None:
    """First contact, which brings the agent, and a second session while the first one still hangs there."""
    with serving(tmp_path / "sshd", "MaxSessions 1\n") as server:
        for number in range(2):
            with opened(server, transport, tmp_path / f"root-{number}") as session:
                assert session.status()["current"] is None
                hung = session.hello["pid"]
                os.kill(hung, signal.SIGSTOP)  # its session does not end by itself
                try:
                    session._drop()
                    assert session.status()["current"] is None
                finally:
                    os.kill(hung, signal.SIGKILL)


def test_a_server_without_sessions_is_told(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "sshd", "MaxSessions 0\n") as server,
        pytest.raises(DeviceUnreachable, match="no command can"),
    ):
        opened(server, "paramiko", tmp_path / "root")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("shell", "said"),
    [("/usr/sbin/nologin", "not available"), ("appliance", "Unknown command"), ("/bin/false", "no message")],
)
def test_a_shell_that_runs_no_commands_is_the_cause_that_is_named(shell: str, said: str, transport: str) -> None:
    if shell == "appliance":
        folder = Path(tempfile.mkdtemp(prefix="appliance-"))  # where every account may enter
        path = folder / "shell"
        path.write_text('#!/bin/sh\necho "Unknown command: $2"\nexit 1\n')
        for one in (folder, path):
            one.chmod(0o755)
        shell = str(path)
    with (
        namespaced_board(account=Account("board", 61234, shell)) as server,
        pytest.raises(AgentFailure, match="runs no commands") as caught,
    ):
        opened(server, transport, Path(server.home) / "root")
    assert caught.value.kind == "no-shell"
    for words in (said, "chsh -s /bin/sh", "ForceCommand"):
        assert words in str(caught.value)
    assert "Python 3.8" not in str(caught.value)
    if "appliance" in shell:
        shutil.rmtree(Path(shell).parent)


def test_a_forced_command_that_stays_silent_is_told(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "sshd", "ForceCommand sleep 60\n") as server,
        pytest.raises(DeviceUnreachable, match=r"no shell has begun there.*ForceCommand"),
    ):
        opened(server, "paramiko", tmp_path / "root", reply_s=1.5)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent with seven keys that no board knows, and a home without others."""
    where = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", where], stdout=subprocess.DEVNULL)
    until(where.exists, "the agent")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number in range(7):
        key = tmp_path / f"key-{number}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True)
    yield tmp_path / "home"
    process.terminate()
    process.wait(10)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_too_many_keys_are_the_cause_that_is_named(
    keys: Path, loopback: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    assert keys.is_dir()
    address = parse_address(loopback.address, None, loopback.known_hosts, transport)
    with pytest.raises(DeviceUnreachable) as caught:
        Session(open_transport(address), Placement(str(tmp_path / "root"), sys.executable))
    for words in ("hung up after 6 keys", "MaxAuthTries", "--identity", "IdentitiesOnly"):
        assert words in str(caught.value)
    with opened(loopback, transport, tmp_path / "root") as session:  # the mend
        assert session.status()["current"] is None


# Where only ssh can


def only_ssh(tmp_path: Path, how: str) -> tuple[str, str]:
    """(lines of sshd_config, lines of the user's config) of a board that paramiko cannot reach."""
    if how == "sha1":
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", tmp_path / "rsa"], check=True)
        return f"HostKeyAlgorithms ssh-rsa\nHostKey {tmp_path / 'rsa'}\n", "HostKeyAlgorithms +ssh-rsa"
    if how == "newer":
        return "KexAlgorithms sntrup761x25519-sha512@openssh.com\n", ""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "authority"], check=True)
    return f"HostCertificate {tmp_path / 'sshd' / 'host_key-cert.pub'}\n", ""


class Certified(Server):
    """A server whose host key an authority has signed."""

    def command(self) -> list[str]:
        sign = ["ssh-keygen", "-q", "-s", self.folder.parent / "authority", "-I", "board", "-h"]
        subprocess.run([*sign, self.folder / "host_key.pub"], check=True, capture_output=True)
        return super().command()


@pytest.mark.parametrize("how", ["sha1", "newer", "certificate"])
def test_auto_finds_the_transport_that_can(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, lines = only_ssh(tmp_path, how)
    with serving(tmp_path / "sshd", settings, Certified if how == "certificate" else Server) as server:
        if how == "sha1":
            key = (tmp_path / "rsa.pub").read_text().split()
            server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {key[0]} {key[1]}\n")
        if how == "certificate":
            key = (tmp_path / "authority.pub").read_text().split()
            server.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{server.port} {key[0]} {key[1]}\n")
            (server.folder / "host_key-cert.pub").exists()
        (tmp_path / "config").write_text(f"Host 127.0.0.1\n  {lines}\n")
        monkeypatch.setenv(ssh_config.CONFIG_VARIABLE, str(tmp_path / "config"))
        with pytest.raises((DeviceUnreachable, ConfigError), match="--transport ssh"):
            opened(server, "paramiko", tmp_path / "root")
        with opened(server, "auto", tmp_path / "root") as session:
            assert session.status()["current"] is None


def test_auto_takes_ssh_for_a_security_key(tmp_path: Path, loopback: LoopbackBoard) -> None:
    """A key that lies in a token; paramiko knows none of the kind."""
    blob = "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIA=="
    (tmp_path / "id.pub").write_text(f"sk-ssh-ed25519@openssh.com {blob} token\n")
    (tmp_path / "id").write_text("")
    address = parse_address(loopback.address, tmp_path / "id", loopback.known_hosts, "auto")
    assert openssh.is_needed(address)
    assert not openssh.is_needed(ssh_address(loopback, "auto"))


# Addresses


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("ssh://root@[fe80::1%eth0]:2200", "root", "fe80::1%eth0", 2200),
        ("ssh://[fe80::1%25wlan0.1]", None, "fe80::1%wlan0.1", None),
        ("ssh://pi@corp.example@10.0.0.1:22", "pi@corp.example", "10.0.0.1", 22),
        ("ssh://CORP\\pi@cam-1.local", "CORP\\pi", "cam-1.local", None),
    ],
)
def test_addresses_of_the_field(text: str, user: str | None, host: str, port: int | None) -> None:
    found = parse_address(text)
    assert (found.user, found.host, found.port) == (user, host, port)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "address", ["ssh://$(touch${IFS}PWN)@h", "ssh://h$(touch${IFS}PWN)", "ssh://h;touch${IFS}PWN;", "ssh://a@`b`"]
)
def test_no_part_of_an_address_reaches_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, address: str
) -> None:
    """The ssh config's ProxyCommand is a shell's, and %h and %r are put into it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").write_text("Host *\n  ProxyCommand echo %h %r >/dev/null\n")
    for ssh in (True, False):
        path = os.environ["PATH"] if ssh else str(bare(tmp_path / "bin", "touch", "echo"))
        monkeypatch.setenv("PATH", path)
        monkeypatch.setenv(ssh_config.CONFIG_VARIABLE, str(tmp_path / "config"))
        with pytest.raises(ConfigError, match=r"shell|not an address"):
            open_transport(parse_address(address, transport=transport)).open("true")
        assert not (tmp_path / "PWN").exists()


def test_a_name_of_the_config_does_not_reach_a_shell_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config"
    config.write_text("Host cam\n  User $(touch${IFS}PWN)\n  ProxyCommand echo %r >/dev/null\n")
    monkeypatch.setenv(ssh_config.CONFIG_VARIABLE, str(config))
    with pytest.raises(ConfigError, match="ProxyCommand"):
        open_transport(parse_address("ssh://cam")).open("true")
    assert not (tmp_path / "PWN").exists()


def bare(folder: Path, *programs: str) -> Path:
    """A PATH with those programs only."""
    folder.mkdir(exist_ok=True)
    for name in programs:
        if not (folder / name).exists():
            (folder / name).symlink_to(str(shutil.which(name)))
    return folder


@pytest.mark.parametrize("lacks", [("cut",), ("sha256sum",), ("cut", "sha256sum", "cat", "mkdir", "mv", "rm", "sync")])
def test_a_board_needs_its_python_and_no_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: tuple[str, ...]
) -> None:
    programs = {"cut", "sha256sum", "cat", "mkdir", "mv", "rm", "sync"} - set(lacks)
    monkeypatch.setenv("PATH", str(bare(tmp_path / "bin", *sorted(programs))))
    for _ in range(2):
        with local_session(tmp_path / "root") as session:
            assert session.status()["current"] is None
    (archive,) = (tmp_path / "root" / "agent").iterdir()
    archive.write_bytes(archive.read_bytes()[:-1])
    with local_session(tmp_path / "root"):  # damaged, and brought again
        pass
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == archive.stem


# Links

HERE, THERE = cable_addresses(100)


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """(name of a network namespace, name of our end of the cable to it)."""
    name = f"eo{uuid.uuid4().hex[:6]}"
    made = (
        subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False) if shutil.which("ip") else None
    )
    if made is None or made.returncode != 0:
        pytest.skip("only root can make a network of its own here")
    try:
        ip = ["ip", "-n", name]
        subprocess.run(
            ["ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name], check=True
        )
        subprocess.run(["ip", "addr", "add", f"{HERE}/24", "dev", f"{name}a"], check=True)
        subprocess.run([*ip, "addr", "add", f"{THERE}/24", "dev", f"{name}b"], check=True)
        for command in (
            ["ip", "link", "set", f"{name}a", "up"],
            [*ip, "link", "set", f"{name}b", "up"],
            [*ip, "link", "set", "lo", "up"],
        ):
            subprocess.run(command, check=True)
        yield name, f"{name}a"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)


@contextlib.contextmanager
def across(name: str, folder: Path, host: str) -> Iterator[LoopbackBoard]:
    """A server at the other end of the cable."""

    class Far(LoopbackBoard):
        def command(self) -> list[str]:
            command = super().command()
            config = self.folder / "sshd_config"
            config.write_text(
                config.read_text().replace(f"ListenAddress {self.host}", "ListenAddress ::\nListenAddress 0.0.0.0")
            )
            return ["ip", "netns", "exec", name, *command]

        def _await_server(self) -> None:
            until(lambda: self.log.exists() and self.log.read_text().count("Server listening") == 2, "the server")
            key = (self.folder / "host_key.pub").read_text()
            self.known_hosts.write_text(f"[{host}]:{self.port} {key}")
            bracketed = f"[{host}]" if ":" in host else host
            self.address = self.address.replace("127.0.0.1", bracketed)

    server = Far(folder)
    try:
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_slow_link_carries_what_takes_longer_than_a_reply(
    cable: tuple[str, str], tmp_path: Path, transport: str
) -> None:
    """64 kB/s, and a board may be silent for 2 s: neither the agent (0.1 MB) nor a blob (0.4 MB) fits into that."""
    name, ours = cable
    with across(name, tmp_path / "sshd", THERE) as server:
        limit = [
            "tc",
            "qdisc",
            "add",
            "dev",
            ours,
            "root",
            "tbf",
            "rate",
            "512kbit",
            "burst",
            "32kbit",
            "latency",
            "2000ms",
        ]
        if not shutil.which("tc") or subprocess.run(limit, check=False, capture_output=True).returncode != 0:
            pytest.skip("this kernel cannot slow a link down")
        data, said = os.urandom(400_000), []
        with opened(
            server, transport, tmp_path / "root", reply_s=2.0, on_event=lambda event: said.append(event["what"])
        ) as session:
            began = time.monotonic()
            session.send(data, "a blob")
            assert time.monotonic() - began > 4
        assert not [what for what in said if "link lost" in what]
        assert "sending the agent" in said


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_board_on_one_cable_has_a_link_local_address(cable: tuple[str, str], tmp_path: Path, transport: str) -> None:
    name, ours = cable

    def address() -> str:
        told = subprocess.run(
            ["ip", "-n", name, "-6", "-o", "addr", "show", "dev", f"{name}b", "scope", "link"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return "" if "tentative" in told or not told else told.split()[3].split("/")[0]

    host = f"{until(address, 'a link-local address')}%{ours}"
    with across(name, tmp_path / "sshd", host) as server:
        options = [*server.options, "--root", tmp_path / "root", "--board-python", sys.executable]
        until(lambda: run_cli("status", *options, "--transport", transport).returncode == 0, "an answer", 20)
