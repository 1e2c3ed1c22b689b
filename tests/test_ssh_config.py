"""What ~/.ssh/config says is done by both transports, on every host on the way; what cannot be done is said."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import is_alive, until
from conftest import Run
from loopback_board import LoopbackBoard

from edgeopt.device import Address, hostkey, open_transport, openssh, parse_address, ssh_config, ssh_hop
from edgeopt.errors import ConfigError, DeviceUnreachable, EdgeoptError, IntegrityError


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackBoard]:
    """A second server, with keys of its own."""
    server = LoopbackBoard(tmp_path_factory.mktemp("jump") / "sshd")
    yield server
    server.close()


@pytest.fixture(params=["paramiko", "ssh"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def entry(alias: str, server: LoopbackBoard, *lines: str) -> str:
    """A Host block that leads to a server."""
    files = f"  IdentityFile {server.identity}\n  UserKnownHostsFile {server.known_hosts}\n"
    extra = "".join(f"  {line}\n" for line in lines)
    return f"Host {alias}\n{extra}  HostName 127.0.0.1\n  Port {server.port}\n{files}"


def said_by(address: Address, command: str = "echo $SSH_CONNECTION") -> str:
    """What a command prints on the board."""
    opened = open_transport(address)
    try:
        pipe = opened.open(command)
        data = b""
        while part := pipe.read(4096, 20.0):
            data += part
        pipe.close()
        return data.decode().strip()
    finally:
        opened.close()


def at(alias: str, transport: str, config: Path, **given: object) -> Address:
    return Address(f"ssh://{alias}", alias, transport=transport, config=str(config), **given)  # type: ignore[arg-type]


def refusal(address: Address) -> EdgeoptError:
    with pytest.raises(EdgeoptError) as caught:
        said_by(address)
    return caught.value


# What the config names


def test_an_alias_in_an_included_file_is_enough(
    cli: Run, loopback: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    (tmp_path / "more").write_text(entry("watch", loopback))
    config = tmp_path / "config"
    config.write_text(f"Include {tmp_path}/mo*\nHost *\n  User nobody-at-all\n")
    config.write_text(config.read_text().replace("nobody-at-all", loopback.address.split("//")[1].split("@")[0]))
    options = ["--root", tmp_path / "root", "--board-python", sys.executable, "--transport", transport]
    done = cli("status", "--device", "ssh://watch", *options, env={"EDGEOPT_SSH_CONFIG": str(config)})
    assert done.returncode == 0, done.stderr
    assert "ssh://watch" in done.stdout or "current   none" in done.stdout


def test_a_config_under_another_home_is_found(
    cli: Run, loopback: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh" / "config").write_text(entry("watch", loopback))
    options = ["--root", tmp_path / "root", "--board-python", sys.executable, "--transport", transport]
    done = cli("status", "--device", "ssh://watch", *options, env={"EDGEOPT_SSH_CONFIG": "", "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_the_command_line_wins(loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str) -> None:
    config = tmp_path / "config"
    lines = [f"HostName 127.0.0.1\n  Port {jump.port}\n  User nobody-at-all"]
    lines += [f"IdentityFile {jump.identity}", f"UserKnownHostsFile {jump.known_hosts}"]
    config.write_text("Host watch\n" + "".join(f"  {line}\n" for line in lines))
    given = {"identity": loopback.identity, "known_hosts": loopback.known_hosts}
    user = loopback.address.split("//")[1].split("@")[0]
    address = at("watch", transport, config, user=user, port=loopback.port, **given)
    assert said_by(address).endswith(f" {loopback.port}")


def test_a_host_key_alias_names_the_line_of_known_hosts(
    loopback: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    known, config = tmp_path / "known", tmp_path / "config"
    key = (loopback.folder / "host_key.pub").read_text()
    config.write_text(entry("watch", loopback, f"UserKnownHostsFile {known}", "HostKeyAlias serial-0042"))
    known.write_text("")
    error = refusal(at("watch", transport, config))
    assert isinstance(error, IntegrityError)
    assert "no key for serial-0042" in str(error)
    mend = re.search(r"`(ssh-keyscan [^`]*)`", str(error))
    assert mend is not None
    subprocess.run(mend[1], shell=True, check=True, capture_output=True)
    assert said_by(at("watch", transport, config))
    known.write_text(f"serial-* {key}")
    assert said_by(at("watch", transport, config))


def test_a_revoked_host_key_is_refused(loopback: LoopbackBoard, tmp_path: Path, transport: str) -> None:
    known, config = tmp_path / "known", tmp_path / "config"
    config.write_text(entry("watch", loopback, f"UserKnownHostsFile {known}"))
    line = loopback.known_hosts.read_text()
    known.write_text(f"{line}@revoked * {' '.join(line.split()[1:3])}\n")
    error = refusal(at("watch", transport, config))
    assert isinstance(error, IntegrityError)
    assert "marked as revoked" in str(error)


def test_hashed_names_and_several_files_of_known_hosts_are_read(
    loopback: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    hashed, empty, config = tmp_path / "hashed", tmp_path / "empty", tmp_path / "config"
    shutil.copy(loopback.known_hosts, hashed)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", hashed], check=True, capture_output=True)
    empty.write_text("@cert-authority *.lab ssh-ed25519 AAAA\n")
    config.write_text(entry("watch", loopback, f"UserKnownHostsFile {empty} {tmp_path}/absent {hashed}"))
    assert "127.0.0.1" not in hashed.read_text()
    assert said_by(at("watch", transport, config))


def test_an_address_family_is_kept_to(loopback: LoopbackBoard, tmp_path: Path, transport: str) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback, "AddressFamily inet"))
    assert said_by(at("watch", transport, config))
    config.write_text(entry("watch", loopback, "AddressFamily inet6"))
    assert isinstance(refusal(at("watch", transport, config)), DeviceUnreachable)


# Ways


def test_a_jump_host_is_passed_through(
    loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback, "ProxyJump bastion") + entry("bastion", jump))
    before = jump.log.stat().st_size
    assert said_by(at("watch", transport, config)).endswith(f" {loopback.port}")
    assert "Accepted publickey" in jump.log.read_text()[before:]


def test_two_jump_hosts_in_a_row(loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str) -> None:
    config = tmp_path / "config"
    both = entry("first", jump) + entry("second", loopback)
    config.write_text(entry("watch", loopback, "ProxyJump first,second") + both)
    assert said_by(at("watch", transport, config)).endswith(f" {loopback.port}")
    config.write_text(
        entry("watch", loopback, "ProxyJump second")
        + entry("second", loopback, "ProxyJump first")
        + entry("first", jump)
    )
    assert said_by(at("watch", transport, config)).endswith(f" {loopback.port}")


def test_the_jump_hosts_own_key_is_strict_whatever_the_config_allows(
    loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    config, known = tmp_path / "config", tmp_path / "known"
    known.write_text("")
    lax = ["StrictHostKeyChecking no", f"UserKnownHostsFile {known}"]
    config.write_text(entry("watch", loopback, "ProxyJump bastion") + entry("bastion", jump, *lax))
    before = jump.log.stat().st_size
    error = refusal(at("watch", transport, config))
    assert isinstance(error, IntegrityError)
    assert "its jump host 'bastion': its host key is unknown" in str(error)
    assert f"[127.0.0.1]:{jump.port}" in str(error)
    assert known.read_text() == ""
    assert "Accepted" not in jump.log.read_text()[before:]


def test_an_unknown_board_behind_a_jump_host_has_a_mend_that_passes_there(
    loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    config, known = tmp_path / "config", tmp_path / "known"
    known.write_text("")
    unknown = entry("watch", loopback, "ProxyJump bastion", f"UserKnownHostsFile {known}")
    config.write_text(unknown + entry("bastion", jump))
    error = refusal(at("watch", transport, config))
    assert isinstance(error, IntegrityError)
    mend = re.search(r"`(ssh -o [^`]*)`", str(error))
    assert mend is not None
    yes = mend[1].replace("ssh ", f"ssh -F {config} -o StrictHostKeyChecking=accept-new -o BatchMode=yes ", 1) + " true"
    subprocess.run(yes, shell=True, check=True, capture_output=True)
    assert said_by(at("watch", transport, config)).endswith(f" {loopback.port}")


def test_a_jump_host_that_is_off_is_named(
    loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    config = tmp_path / "config"
    off = entry("bastion", jump).replace(f"Port {jump.port}", "Port 1").replace("127.0.0.1\n", "127.0.0.2\n", 1)
    config.write_text(entry("watch", loopback, "ProxyJump bastion") + off)
    error = refusal(at("watch", transport, config))
    assert isinstance(error, DeviceUnreachable)
    assert "its jump host 'bastion' cannot be reached: Connection refused" in str(error)


def test_the_key_of_a_board_behind_a_jump_host_is_asked_for_there(
    cli: Run, loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    """No key of the user's is offered before somebody trusts the board; on the jump host one is."""
    config, devices = tmp_path / "config", tmp_path / "devices.toml"
    config.write_text(entry("watch", loopback, "ProxyJump bastion") + entry("bastion", jump))
    environment = {"EDGEOPT_SSH_CONFIG": str(config), "EDGEOPT_DEVICES": str(devices)}
    options = ["--transport", transport, "--board-python", sys.executable, "--root", tmp_path / "root"]
    logs = [server.log.stat().st_size for server in (jump, loopback)]
    refused = cli("device", "add", "watch", "ssh://watch", *options, env=environment)
    assert refused.returncode == 2, refused.stderr
    key = subprocess.run(["ssh-keygen", "-lf", loopback.folder / "host_key.pub"], capture_output=True, text=True)
    shown = key.stdout.split()[1]
    assert shown in refused.stderr
    said, board = (server.log.read_text()[size:] for server, size in zip((jump, loopback), logs, strict=True))
    assert "Accepted publickey" in said
    assert "publickey" not in board
    added = cli("device", "add", "watch", "ssh://watch", "--fingerprint", shown, *options, env=environment)
    assert added.returncode == 0, added.stderr
    done = cli("status", "--device", "watch", env=environment)
    assert done.returncode == 0, done.stderr


def test_the_key_is_not_asked_for_past_a_jump_host_that_nobody_trusts(
    loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    config, known = tmp_path / "config", tmp_path / "known"
    known.write_text("")
    strange = entry("bastion", jump, f"UserKnownHostsFile {known}")
    config.write_text(entry("watch", loopback, "ProxyJump bastion") + strange)
    before = loopback.log.stat().st_size
    with pytest.raises(IntegrityError, match="its jump host 'bastion': its host key is unknown"):
        hostkey.shown_by(at("watch", transport, config))
    assert loopback.log.stat().st_size == before


def test_the_key_of_a_board_that_is_off_cannot_be_shown(
    loopback: LoopbackBoard, tmp_path: Path, transport: str
) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback).replace(f"Port {loopback.port}", "Port 1"))
    with pytest.raises(DeviceUnreachable, match="ssh://watch cannot be reached: Connection refused"):
        hostkey.shown_by(at("watch", transport, config))


def test_jumps_that_lead_in_a_circle_are_a_config_error(loopback: LoopbackBoard, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback, "ProxyJump a") + "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(ConfigError, match="more than 8 hosts; does one name itself"):
        ssh_config.chain(at("watch", "paramiko", config))


def test_a_proxy_command_is_run_and_ended(loopback: LoopbackBoard, tmp_path: Path, transport: str) -> None:
    config, noted = tmp_path / "config", tmp_path / "pid"
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, select, socket, sys\n"
        f"open({str(noted)!r}, 'w').write(str(os.getpid()))\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "while True:\n"
        "    for ready in select.select([0, s], [], [])[0]:\n"
        "        data = os.read(0, 65536) if ready == 0 else s.recv(65536)\n"
        "        if not data: sys.exit()\n"
        "        s.sendall(data) if ready == 0 else os.write(1, data)\n"
    )
    config.write_text(entry("watch", loopback, f"ProxyCommand '{sys.executable}' '{relay}' %h %p"))
    assert said_by(at("watch", transport, config)).endswith(f" {loopback.port}")
    until(lambda: not is_alive(int(noted.read_text())), "the end of the ProxyCommand")


def test_a_proxy_command_that_fails_says_why(loopback: LoopbackBoard, tmp_path: Path, transport: str) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback, "ProxyCommand sh -c 'echo no such gateway >&2; exit 1'"))
    error = refusal(at("watch", transport, config))
    assert isinstance(error, DeviceUnreachable)
    assert "no such gateway" in str(error)


# Keys


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A running ssh-agent, that SSH_AUTH_SOCK names."""
    where = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", where], stdout=subprocess.DEVNULL)
    until(where.exists, "the agent")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
    yield
    process.terminate()
    process.wait(10)


def authorized(server: LoopbackBoard, key: Path) -> contextlib.AbstractContextManager[None]:
    """`key` alone may log in, meanwhile."""

    @contextlib.contextmanager
    def swapped() -> Iterator[None]:
        file = server.folder / "authorized_keys"
        before = file.read_text()
        file.write_text(key.with_suffix(".pub").read_text())
        try:
            yield
        finally:
            file.write_text(before)

    return swapped()


@pytest.mark.usefixtures("agent")
def test_keys_of_the_agent_log_in_locked_ones_too(loopback: LoopbackBoard, tmp_path: Path, transport: str) -> None:
    config, locked = tmp_path / "config", tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", locked], check=True)
    subprocess.run(["ssh-add", "-q", locked], check=True, capture_output=True)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", locked], check=True, capture_output=True)
    with authorized(loopback, locked):
        config.write_text(entry("watch", loopback))
        assert said_by(at("watch", transport, config))
        config.write_text(entry("watch", loopback, "IdentitiesOnly yes"))
        error = refusal(at("watch", transport, config))
        assert isinstance(error, DeviceUnreachable), "a key that is not listed was offered"
        config.write_text(entry("watch", loopback, "IdentitiesOnly yes", f"IdentityFile {locked}"))
        assert said_by(at("watch", transport, config))
        config.write_text(entry("watch", loopback, "IdentityAgent none"))
        assert isinstance(refusal(at("watch", transport, config)), DeviceUnreachable)
        config.write_text(entry("watch", loopback))
        assert said_by(at("watch", transport, config, identity=locked))


def test_a_locked_key_without_an_agent_is_told(
    loopback: LoopbackBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    config, locked = tmp_path / "config", tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    config.write_text(entry("watch", loopback).replace(str(loopback.identity), str(locked)))
    error = refusal(at("watch", "paramiko", config))
    assert isinstance(error, DeviceUnreachable)
    assert f"{locked} is protected by a passphrase" in str(error)


# What cannot be done


@pytest.mark.parametrize(
    "line", ["PKCS11Provider /usr/lib/token.so", "RevokedHostKeys /etc/revoked", "BindAddress ::1"]
)
def test_what_only_ssh_can_do_is_not_left_out_silently(loopback: LoopbackBoard, tmp_path: Path, line: str) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback, line))
    with pytest.raises(ConfigError, match=rf"{line.split()[0].lower()} cannot be honoured.*--transport ssh"):
        said_by(at("watch", "paramiko", config))


ADMITTED = {
    "Ciphers": ("aes256-ctr", "chacha20-poly1305@openssh.com"),
    "MACs": ("hmac-sha2-512", "umac-128@openssh.com"),
    "KexAlgorithms": ("diffie-hellman-group16-sha512", "sntrup761x25519-sha512@openssh.com"),
    "HostKeyAlgorithms": ("ssh-ed25519", "sk-ssh-ed25519@openssh.com"),
    "PubkeyAcceptedAlgorithms": ("ssh-ed25519", "sk-ssh-ed25519@openssh.com"),
}


@pytest.mark.parametrize("key", ADMITTED)
def test_only_algorithms_that_the_config_admits_are_offered(loopback: LoopbackBoard, tmp_path: Path, key: str) -> None:
    """What paramiko has of them, it takes; of what it has none, it says so, and `auto` takes ssh."""
    config, (known, unknown) = tmp_path / "config", ADMITTED[key]
    config.write_text(entry("watch", loopback, f"{key} {known},{unknown}"))
    with socket.create_connection(("127.0.0.1", loopback.port)) as stream:
        made = ssh_hop.offering(ssh_config.chain(at("watch", "paramiko", config))[-1], ssh_hop.HostKeys((), ()), stream)
        option = ssh_hop.PARAMIKO_OPTIONS[key.lower()]
        offered = made.preferred_pubkeys if "Pubkey" in key else getattr(made.get_security_options(), option)
        made.close()
    assert list(offered) == [known]
    assert said_by(at("watch", "paramiko", config))
    assert not openssh.is_needed(at("watch", "auto", config))
    config.write_text(entry("watch", loopback, f"{key} {unknown}"))
    with pytest.raises(ConfigError, match=rf"of the ssh config's {key.lower()} \({unknown}\) paramiko has none"):
        said_by(at("watch", "paramiko", config))
    assert openssh.is_needed(at("watch", "auto", config))


def test_auto_takes_ssh_where_the_config_needs_it(loopback: LoopbackBoard, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback))
    assert not openssh.is_needed(at("watch", "auto", config))
    config.write_text(entry("watch", loopback, "PKCS11Provider /usr/lib/no-such-token.so"))
    assert type(open_transport(at("watch", "auto", config))).__name__ == "OpenSshTransport"
    assert said_by(at("watch", "auto", config))


def test_a_config_that_ssh_cannot_read_is_a_config_error(tmp_path: Path, transport: str) -> None:
    config = tmp_path / "config"
    config.write_text("Host watch\n  Prot 22\n")
    error = refusal(at("watch", transport, config))
    assert isinstance(error, ConfigError)
    assert f"{config}: line 2: Bad configuration option: prot" in str(error)
    absent = refusal(at("watch", transport, tmp_path / "absent"))
    assert isinstance(absent, ConfigError)
    assert "no such file" in str(absent)


# Without the ssh command


@pytest.fixture
def no_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.usefixtures("no_ssh")
def test_without_ssh_paramiko_reads_the_config(loopback: LoopbackBoard, jump: LoopbackBoard, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(entry("watch", loopback, "ProxyJump bastion") + entry("bastion", jump))
    assert said_by(at("watch", "paramiko", config)).endswith(f" {loopback.port}")


@pytest.mark.usefixtures("no_ssh")
def test_without_ssh_what_paramiko_cannot_read_is_said(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Include more\nHost watch\n")
    with pytest.raises(ConfigError, match="'Include more' cannot be honoured without the `ssh` command"):
        said_by(at("watch", "paramiko", config))
    config.write_text("Host watch\n")
    with pytest.raises(ConfigError, match="there is no `ssh` command here"):
        said_by(at("watch", "ssh", config))


def test_addresses_say_what_they_leave_to_the_config() -> None:
    assert parse_address("ssh://watch").port is None
    assert parse_address("ssh://root@watch:2200", transport="ssh") == Address(
        "ssh://root@watch:2200", "watch", "root", 2200, transport="ssh"
    )
    assert os.environ["EDGEOPT_SSH_CONFIG"] == "none"
