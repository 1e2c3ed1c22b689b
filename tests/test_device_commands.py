"""edgeopt device add, list, show, remove and probe against a real OpenSSH server; boards by name in every command."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from boards import ssh_address, until
from conftest import EDGEOPT, Run, run_cli
from edgeopt_agent import facts
from hypothesis import given
from hypothesis import strategies as st
from loopback_board import LoopbackBoard

from edgeopt import probe, profile
from edgeopt.cli import adding
from edgeopt.device import registry
from edgeopt.device.ssh import SshPipe, SshTransport
from edgeopt.errors import ConfigError, IntegrityError

MACHINE = os.uname().machine
OWN_PROFILE, OTHER_PROFILE = {
    "aarch64": ("generic-arm64", "generic-x86-64"),
    "x86_64": ("generic-x86-64", "raspberry-pi-4"),
}[MACHINE]


@pytest.fixture
def server(loopback: LoopbackBoard) -> LoopbackBoard:
    """A board on which nothing is yet."""
    shutil.rmtree(loopback.folder / "root", ignore_errors=True)
    return loopback


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry, for this process and the commands that it runs; HOME has nothing in it either."""
    path = tmp_path / "config" / "devices.toml"
    monkeypatch.setenv(registry.VARIABLE, str(path))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return path


def add(server: LoopbackBoard, *options: object, name: str = "one") -> subprocess.CompletedProcess[str]:
    known = ["--identity", server.identity, "--root", server.folder / "root", "--board-python", sys.executable]
    return run_cli("device", "add", name, server.address, *known, *options)


def added(server: LoopbackBoard, name: str = "one") -> None:
    done = add(server, "--accept-new", name=name)
    assert done.returncode == 0, done.stderr


def fingerprint(server: LoopbackBoard) -> str:
    command = ["ssh-keygen", "-lf", str(server.folder / "host_key.pub")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


def answered(server: LoopbackBoard, word: str) -> tuple[int, str]:
    """(exit code, what was shown) of `device add` on a terminal, where somebody types `word`."""
    ours, theirs = pty.openpty()
    command = [str(EDGEOPT), "device", "add", "one", server.address, "--identity", str(server.identity)]
    command += ["--root", str(server.folder / "root"), "--board-python", sys.executable]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone with its last user
            while data := os.read(ours, 4096):
                shown += data
                if b"[y/N]" in shown and word:
                    os.write(ours, word.encode() + b"\n")
                    word = ""
        os.close(ours)
        return process.wait(60), shown.decode()


# add


def test_add_shows_the_fingerprint_and_asks(server: LoopbackBoard, devices: Path, tmp_path: Path) -> None:
    code, shown = answered(server, "n")
    assert code == 5, shown
    assert "was not added" in shown
    assert fingerprint(server) in shown
    assert not devices.exists()
    assert not (devices.parent / "known_hosts" / "one").exists()
    code, shown = answered(server, "y")
    assert code == 0, shown
    assert registry.get("one").address == server.address
    assert not (tmp_path / "home" / ".ssh").exists(), "the user's own ssh files are left alone"


def test_without_a_terminal_the_key_must_be_named(server: LoopbackBoard, devices: Path) -> None:
    done = add(server)
    assert done.returncode == 2
    assert fingerprint(server) in done.stderr
    assert "--accept-new" in done.stderr
    other = add(server, "--fingerprint", "SHA256:" + "A" * 43)
    assert other.returncode == 5
    assert fingerprint(server) in other.stderr
    assert "nothing was sent" in other.stderr
    assert not devices.exists()
    assert not (server.folder / "root").exists()
    done = add(server, "--fingerprint", fingerprint(server))
    assert done.returncode == 0, done.stderr
    assert not (server.folder / "root").exists(), "nothing stays on the board"


def test_a_board_that_lets_nobody_in_is_not_added(server: LoopbackBoard, devices: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    done = run_cli("device", "add", "one", server.address, "--identity", stranger, "--accept-new")
    assert done.returncode == 3
    assert "refused user" in done.stderr
    assert not devices.exists()
    assert not (devices.parent / "known_hosts" / "one").exists()


def test_a_name_is_given_once(server: LoopbackBoard, devices: Path) -> None:
    added(server)
    before = devices.read_bytes()
    done = add(server, "--accept-new")
    assert done.returncode == 2
    assert "known already" in done.stderr
    assert "edgeopt device remove one" in done.stderr
    assert devices.read_bytes() == before
    assert "--overwrite" in done.stderr


def test_overwrite_replaces_a_board_or_leaves_it_whole(server: LoopbackBoard, devices: Path, tmp_path: Path) -> None:
    added(server)
    key = devices.parent / "known_hosts" / "one"
    before = devices.read_bytes(), key.read_bytes()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger"], check=True)
    options = ["--identity", tmp_path / "stranger", "--accept-new", "--overwrite"]
    assert run_cli("device", "add", "one", server.address, *options).returncode == 3
    assert add(server, "--overwrite", "--fingerprint", "SHA256:" + "A" * 43).returncode == 5
    assert (devices.read_bytes(), key.read_bytes()) == before
    assert [path.name for path in key.parent.iterdir()] == ["one"]
    done = add(server, "--accept-new", "--overwrite", "--profile", OWN_PROFILE)
    assert done.returncode == 0, done.stderr
    assert registry.get("one").profile == OWN_PROFILE
    assert list(registry.entries()) == ["one"]
    assert "the same board" not in done.stdout


def test_a_profile_of_another_processor_is_refused(server: LoopbackBoard, devices: Path) -> None:
    done = add(server, "--accept-new", "--profile", OTHER_PROFILE)
    assert done.returncode == 2
    for words in (OTHER_PROFILE, MACHINE, f"--profile {OWN_PROFILE}", "nothing was kept"):
        assert words in done.stderr
    assert not devices.exists()
    assert not (devices.parent / "known_hosts" / "one").exists()


def test_a_stand_in_is_known_as_one(server: LoopbackBoard) -> None:
    done = add(server, "--accept-new", "--profile", OTHER_PROFILE, "--stand-in")
    assert done.returncode == 0, done.stderr
    assert registry.get("one").stand_in is True
    assert registry.adding("one").endswith("--stand-in --overwrite")
    listed = run_cli("power", "--list", "--device", "one", "--json")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["board"]["stand_in"]["profile"] == OTHER_PROFILE
    add(server, "--accept-new", "--overwrite", "--profile", OWN_PROFILE, "--stand-in")
    assert registry.get("one").stand_in is None, "it is the profile's board"


def test_add_without_a_profile_says_what_is_missing(server: LoopbackBoard) -> None:
    bare = ["--identity", server.identity, "--board-python", sys.executable, "--accept-new"]
    done = run_cli("device", "add", "one", server.address, *bare)
    assert done.returncode == 0, done.stderr
    (command,) = re.findall(r"run `(edgeopt device add one .* --overwrite --profile \S+)`", done.stdout)
    assert run_cli("status", "--device", "one").returncode == 2, "what was said is so"
    done = run_cli(*command.split()[1:], "--accept-new", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["missing"] == []
    assert registry.get("one").profile == OWN_PROFILE
    assert registry.get("one").identity == str(server.identity)


def test_the_same_board_under_two_names_is_told(server: LoopbackBoard) -> None:
    added(server)
    done = add(server, "--accept-new", name="two")
    assert "of one: the same board, known by two names" in done.stdout
    assert json.loads(add(server, "--accept-new", "--json", name="three").stdout)["same_as"] == ["one", "two"]


def test_the_machine_id_tells_a_board_only_without_serial_numbers() -> None:
    known = {
        "numbered": registry.Entry(address="ssh://a", serial="1", machine_id="m"),
        "bare": registry.Entry(address="ssh://b", machine_id="m"),
        "unlike": registry.Entry(address="ssh://c", serial="2", machine_id="m"),
        "silent": registry.Entry(address="ssh://d"),
    }
    same = adding.same_boards("new", registry.Entry(address="ssh://x", serial="1", machine_id="m"), known)
    assert same == {"numbered": "serial number", "bare": "machine id"}
    assert adding.same_boards("new", registry.Entry(address="ssh://x"), known) == {}


def test_this_machine_needs_no_setup() -> None:
    done = run_cli("device", "setup", "local")
    assert done.returncode == 2
    assert "pip install ai-edge-litert" in done.stderr
    assert "--board-python" in done.stderr


@pytest.mark.parametrize("name", ["local", "../up", "a b", "", "ssh://x", "-x."])
def test_names_that_no_board_can_have(name: str, devices: Path) -> None:
    done = run_cli("device", "add", "--accept-new", "--", name, "ssh://127.0.0.1")
    assert done.returncode == 2
    assert "device name" in done.stderr
    assert not devices.exists()


def test_add_takes_only_boards_behind_ssh() -> None:
    for address, said in (("local", "behind ssh"), ("pi@host", "not an address"), ("ssh://a:b@c", "password")):
        done = run_cli("device", "add", "one", address, "--accept-new")
        assert done.returncode == 2, address
        assert said in done.stderr
    done = run_cli("device", "add", "one", "ssh://127.0.0.1", "--accept-new", "--known-hosts", "known_hosts")
    assert done.returncode == 2
    assert "--known-hosts decides by itself" in done.stderr
    done = run_cli("device", "add", "one", "ssh://127.0.0.1", "--profile", "raspberry-pi-44")
    assert done.returncode == 2
    assert "raspberry-pi-4" in done.stderr


# list, show, remove


def test_list_show_and_remove(server: LoopbackBoard, devices: Path) -> None:
    assert "no board is known yet" in run_cli("device", "list").stdout
    assert json.loads(run_cli("device", "list", "--json").stdout)["devices"] == []
    added(server)
    added(server, "two")
    listed = json.loads(run_cli("device", "list", "--json").stdout)
    assert [entry["name"] for entry in listed["devices"]] == ["one", "two"]
    assert listed["file"] == str(devices)
    assert "two" in run_cli("device", "list").stdout
    shown = json.loads(run_cli("device", "show", "two", "--json").stdout)
    assert shown == listed["devices"][1]
    assert shown["machine_id"] == Path("/etc/machine-id").read_text().strip()
    assert "\npackages for Python " in run_cli("device", "show", "two").stdout
    assert shown["wheels"].startswith(f"Python {sys.version_info[0]}.{sys.version_info[1]}.")
    assert run_cli("device", "remove", "two").returncode == 0
    assert list(registry.entries()) == ["one"]
    assert not (devices.parent / "known_hosts" / "two").exists()
    done = run_cli("device", "show", "tow")
    assert done.returncode == 2
    assert "known are: one" in done.stderr


def test_a_damaged_registry_is_named_with_its_line(devices: Path) -> None:
    devices.parent.mkdir()
    devices.write_text('[device.one]\naddress = "ssh://x"\nserail = "7"\n')
    for command in (["device", "list"], ["status", "--device", "one"]):
        done = run_cli(*command)
        assert done.returncode == 2
        assert str(devices) in done.stderr
        assert "line 3" in done.stderr
        assert "did you mean serial?" in done.stderr


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
ENTRIES = st.builds(
    registry.Entry, address=TEXT, serial=st.none() | TEXT, root=st.none() | TEXT, model=st.none() | TEXT
)


@given(st.dictionaries(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z").filter(lambda n: n != "local"), ENTRIES))
def test_what_is_put_is_read_again(tmp_path_factory: pytest.TempPathFactory, boards: dict[str, registry.Entry]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.VARIABLE, str(tmp_path_factory.mktemp("registry") / "devices.toml"))
        for name, entry in boards.items():
            registry.put(name, entry, new=True)
        assert registry.entries() == boards


def test_boards_added_at_the_same_time_are_all_there(devices: Path) -> None:
    names = [f"board-{number}" for number in range(20)]
    put: Callable[[str], None] = lambda name: registry.put(name, registry.Entry(address=f"ssh://{name}"))  # noqa: E731
    threads = [threading.Thread(target=put, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(registry.entries()) == sorted(names)
    assert not list(devices.parent.glob(".devices.toml-*")), "no temporary file stays"


# --device NAME


def test_a_name_serves_instead_of_an_address(server: LoopbackBoard, cli: Run, tmp_path: Path) -> None:
    added(server)
    found = json.loads(cli("status", "--device", "one", "--json").stdout)
    assert found["device"] == server.address
    assert found["root"] == str(server.folder / "root")
    assert found["board"]["name"] == "one"
    assert f"board     one ({server.address}), " in cli("status", "--device", "one").stdout
    other = json.loads(cli("status", "--device", "one", "--root", tmp_path / "other", "--json").stdout)
    assert other["root"] == str(tmp_path / "other"), "the options given win"
    done = cli("status", "--device", "on")
    assert done.returncode == 2
    assert "did you mean one?" in done.stderr


def test_the_transport_given_to_add_is_kept(server: LoopbackBoard, cli: Run) -> None:
    done = add(server, "--accept-new", "--transport", "ssh")
    assert done.returncode == 0, done.stderr
    assert registry.get("one").transport == "ssh"
    assert cli("status", "--device", "one").returncode == 0
    assert cli("status", "--device", "one", "--transport", "paramiko").returncode == 0


def test_optimize_takes_the_profile_of_the_board_that_is_named(cli: Run, watch_folder: Path) -> None:
    def planned(*options: object) -> str:
        done = cli("optimize", watch_folder, "--show-plan", "--json", *options)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["profile"]["id"])

    registry.put("kitchen", registry.Entry(address="ssh://pi@kitchen", profile="raspberry-pi-4"))
    registry.put("bare", registry.Entry(address="ssh://pi@bare"))
    assert planned("--device", "kitchen") == "raspberry-pi-4"
    assert planned("--device", "kitchen", "--profile", "raspberry-pi-5") == "raspberry-pi-5"
    assert planned("--device", "bare") == planned("--device", "ssh://pi@kitchen") == planned()


def test_a_run_file_may_name_the_transport(server: LoopbackBoard, cli: Run, watch_folder: Path) -> None:
    """`ssh` is not found on this PATH, so whoever needs it says so."""
    text = (watch_folder / "edgeopt.toml").read_text()
    (watch_folder / "edgeopt.toml").write_text(text.replace("[device]\n", '[device]\ntransport = "ssh"\n'))
    alone = {"PATH": "/nowhere"}
    refused = cli("optimize", watch_folder, "--device", server.address, "--root", "/nowhere/at/all", env=alone)
    assert refused.returncode == 2
    assert "--transport ssh: there is no `ssh` command here" in refused.stderr
    (watch_folder / "edgeopt.toml").write_text(text.replace("[device]\n", '[device]\ntransport = "telnet"\n'))
    refused = cli("optimize", watch_folder, "--show-plan")
    assert 'device.transport: found "telnet"; allowed: one of auto, paramiko, ssh' in refused.stderr


def test_another_host_key_is_refused(server: LoopbackBoard, devices: Path, cli: Run, tmp_path: Path) -> None:
    added(server)
    kept = devices.parent / "known_hosts" / "one"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    kept.write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'other.pub').read_text()}")
    done = cli("status", "--device", "one")
    assert done.returncode == 5
    assert "THE HOST KEY CHANGED" in done.stderr
    (mend,) = re.findall(r"`(edgeopt device add one .* --overwrite)`", done.stderr)
    assert "ssh-keygen -f" not in done.stderr
    assert cli(*mend.split()[1:], "--accept-new").returncode == 0
    assert cli("status", "--device", "one").returncode == 0


def test_another_board_under_that_name_is_refused(server: LoopbackBoard, devices: Path, cli: Run) -> None:
    added(server)
    entry = registry.get("one")
    registry.put("one", entry.model_copy(update={"machine_id": "f" * 32}))
    added(server, "two")
    done = cli("status", "--device", "one")
    assert done.returncode == 5
    for words in ("'one'", "f" * 32, str(entry.machine_id), "that is 'two'", "edgeopt device remove one"):
        assert words in done.stderr
    assert cli("device", "probe", "one", "--out", devices.with_name("p.toml")).returncode == 5
    assert cli("status", "--device", "two").returncode == 0


@pytest.mark.parametrize(
    "text", ["0000000000000000", "Default string", "To be filled by O.E.M.", "None", "", " \n", None]
)
def test_what_makers_leave_blank_is_no_serial_number(text: str | None) -> None:
    assert facts.real_serial(text) is None
    assert facts.real_serial("10000000abcdef01") == "10000000abcdef01"


def test_the_serial_number_decides_where_both_know_it() -> None:
    entry = registry.Entry(address="ssh://x", serial="1", machine_id="m")
    registry.require_same("one", entry, {"serial": "1", "machine_id": "reinstalled"})
    registry.require_same("one", entry, {"serial": None, "machine_id": "m"})
    registry.require_same("one", entry, {"serial": None, "machine_id": None})
    with pytest.raises(IntegrityError, match=r"serial number 1.* is now serial number 2 .Pi."):
        registry.require_same("one", entry, {"serial": "2", "machine_id": "m", "model": "Pi"})
    with pytest.raises(IntegrityError, match=r"machine id m.* is now machine id n"):
        registry.require_same("one", entry, {"serial": None, "machine_id": "n"})


# probe


def test_probe_writes_a_profile_that_holds(server: LoopbackBoard, tmp_path: Path) -> None:
    added(server)
    out = tmp_path / "board.toml"
    done = run_cli("device", "probe", "one", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["facts"]
    made = profile.load(out)
    assert made.cpu.cores
    assert made.cpu.cores.value == os.cpu_count() == told["cores"]
    assert made.cpu.cores.source.startswith("measured: ")
    assert made.memory.total_bytes
    assert made.memory.total_bytes.value == told["memory_bytes"]
    assert made.board.root == str(server.folder / "root")
    assert made.runtimes == tuple(name for name in profile.RUNTIMES if told["runtimes"][name])
    assert made.budget == profile.Budget(), "demands are the owner's"
    assert run_cli("profiles", "check", out).returncode == 0
    assert not (server.folder / "root").exists()


def test_probe_knows_hidden_folders_and_needs_no_name(server: LoopbackBoard, tmp_path: Path) -> None:
    """Personal Pythons and this machine's own root lie in folders whose names begin with a dot."""
    hidden = tmp_path / ".hidden"
    hidden.mkdir()
    (hidden / "python3").symlink_to(sys.executable)
    where = ["--identity", server.identity, "--known-hosts", server.known_hosts, "--board-python", hidden / "python3"]
    out = tmp_path / "board.toml"
    for device, options, root in (
        (server.address, where, probe.DEFAULT_ROOT),
        ("local", [], f"{tmp_path}/home/.local/state/edgeopt"),
    ):
        done = run_cli("device", "probe", device, *options, "--out", out, "--overwrite")
        assert done.returncode == 0, done.stderr
        assert profile.load(out).board.root == root
        assert profile.load(out).board.python.startswith(str(hidden if options else Path(sys.executable).parent))


def test_probe_overwrites_only_when_told(server: LoopbackBoard, tmp_path: Path) -> None:
    added(server)
    out = tmp_path / "board.toml"
    out.write_text("mine")
    done = run_cli("device", "probe", "one", "--out", out)
    assert done.returncode == 2
    assert out.read_text() == "mine"
    done = run_cli("device", "probe", "one", "--out", out, "--overwrite")
    assert done.returncode == 0
    assert f"wrote {out}: " in done.stdout
    assert f"--profile {out}" in done.stdout
    assert profile.load(out).cpu.architecture == os.uname().machine
    done = run_cli("device", "probe", "one", "--out", tmp_path / "board.txt")
    assert done.returncode == 2
    assert "ends in .toml" in done.stderr


def test_nothing_stays_on_a_board_that_was_looked_at(server: LoopbackBoard) -> None:
    class Recorded(SshTransport):
        said: ClassVar[list[str]] = []

        def open(self, command: str) -> SshPipe:
            self.said.append(command)
            return super().open(command)

    found = probe.look(Recorded(ssh_address(server)), sys.executable)
    assert found["environment"]["executable"] == os.path.realpath(sys.executable)
    (folder,) = {word for said in Recorded.said for word in re.findall(r"/tmp/edgeopt-[0-9a-f]{12}", said)}
    until(lambda: not Path(folder).exists(), "the end of the agent's folder")


def test_big_and_little_cores_and_arm_words_reach_the_profile(tmp_path: Path) -> None:
    told = {
        "model": 'Radxa "ROCK" 5B',
        "serial": "0123",
        "cpu_model": "Arm implementer 0x41 part 0xd0b",
        "cpu_features": ["asimd", "asimddp", "i8mm"],
        "cores": 8,
        "memory_bytes": 8_000_000_000,
        "kernel": "6.1",
        "python": "3.11.2",
        "runtimes": {"tflite": None},
        "environment": {"machine": "aarch64", "frequencies_max_hz": [1_800_000_000] * 4 + [2_400_000_000] * 4},
    }
    path = tmp_path / "rock.toml"
    path.write_text(probe.profile_text(told, "/data/edgeopt", "python3", datetime.date(2026, 1, 1)))
    made = profile.load(path)
    assert made.name == told["model"]
    assert made.cpu.int8_features
    assert made.cpu.int8_features.value == ("neon", "asimddp", "i8mm")
    assert made.cpu.cores_big
    assert made.cpu.cores_little
    assert (made.cpu.cores_big.value, made.cpu.cores_little.value) == (4, 4)
    assert made.cpu.frequency_max_hz
    assert made.cpu.frequency_max_hz.value == 2_400_000_000
    assert "serial 0123" in made.cpu.frequency_max_hz.source
    assert "edgeopt device setup" in path.read_text(), "no runtime is there yet"


def test_a_profile_of_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="the board is 'riscv64'; profiles know x86_64"):
        probe.profile_text({"environment": {"machine": "riscv64"}}, "/r", "python3", datetime.date(2026, 1, 1))
