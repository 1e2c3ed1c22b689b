"""edgeopt device setup: the wheels that fit a board, brought from here, on boards of several Pythons and machines."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_releases as fakes
import pytest
from board_folder import tree
from boards import board_python, dense_bundle, dense_tflite, pyenv_python
from conftest import run_cli, run_quick
from edgeopt_agent import environment, facts, jobs, replies, store
from edgeopt_agent.root import prepare
from edgeopt_agent.schema import check
from edgeopt_agent.wire import RemoteError
from loopback_board import LoopbackBoard
from setups import NO_NETWORK, ok, prepared, set_up

from edgeopt import setup
from edgeopt.device import registry
from edgeopt.errors import ConfigError, MissingDependency


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry, for this process and the commands that it runs."""
    path = tmp_path / "config" / "devices.toml"
    monkeypatch.setenv(registry.VARIABLE, str(path))
    return path


Add = Callable[[str], Path]


@pytest.fixture
def add(loopback: LoopbackBoard, tmp_path: Path) -> Add:
    """Adds a board with a bare Python of that version, as "board"; its folder."""

    def add(version: str) -> Path:
        root = tmp_path / "root"
        options = ["--identity", loopback.identity, "--known-hosts", loopback.known_hosts, "--root", root]
        ok(run_cli("device", "add", "board", loopback.address, *options, "--board-python", pyenv_python(version)))
        return root

    return add


@pytest.fixture
def wheels() -> Callable[[str], Path]:
    return lambda version: prepared(version, str(registry.get("board").wheels))


def wheel(path: Path, name: str, files: dict[str, bytes]) -> Path:
    """A wheel of that name, version 99."""
    info = f"{name.replace('-', '_')}-99.dist-info"
    path = path / f"{name.replace('-', '_')}-99-py3-none-any.whl"
    said = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n".encode(),
        "WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inner, data in {**files, **{f"{info}/{key}": value for key, value in said.items()}}.items():
            archive.writestr(inner, data)
    return path


# On boards behind OpenSSH


@pytest.mark.parametrize(("version", "package"), [("3.8", "tflite-runtime"), ("3.13", "ai-edge-litert")])
def test_a_bare_board_gets_what_its_python_can_use(
    version: str, package: str, add: Add, wheels: Callable[[str], Path], tmp_path: Path
) -> None:
    root = add(version)
    model = tmp_path / "dense.tflite"
    model.write_bytes(dense_tflite())
    before = run_quick("bench", model, "--random", "--device", "board")
    assert before.returncode == 4
    assert "not installed" in before.stderr
    done = set_up("--wheels", wheels(version), env=NO_NETWORK)
    assert done["versions"]["tflite"]["package"] == package
    assert done["python"] == registry.get("board").python == f"{root}/python/current/bin/python3"
    assert done["board"]["name"] == "board"
    assert not [path for path in (root / "store").iterdir() if path.suffix != ".lock"], "unpacked wheels take no room"
    ok(run_quick("bench", model, "--random", "--device", "board"))

    state = tree(root)
    entry = registry.get("board")
    again = set_up(env=NO_NETWORK)
    assert again["already"], "and pip was not asked"
    assert tree(root) == state
    assert registry.get("board") == entry


def test_a_damaged_environment_is_made_anew(add: Add, wheels: Callable[[str], Path]) -> None:
    root = add("3.8")
    first = set_up("--wheels", wheels("3.8"))
    (file,) = root.glob("python/current/lib/python3.8/site-packages/numpy/version.py")
    text = file.read_bytes()
    file.write_bytes(text + b"#")
    again = set_up("--wheels", wheels("3.8"))
    assert not again["already"]
    assert again["id"] == first["id"]
    assert file.read_bytes() == text
    assert set_up()["already"]


class Stopped(Exception):
    """The job ends here, as when the power goes."""


class StoppedWhileItUnpacks(jobs.Context):
    def emit(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            raise Stopped


def test_repairing_an_environment_leaves_one_at_every_moment(tmp_path: Path) -> None:
    """The damaged one stays until another one is whole: `current` never leads nowhere."""
    prepare(str(tmp_path))
    (tmp_path / "wheels").mkdir()
    found = {
        "numpy": {"numpy/__init__.py": b'__version__ = "99"'},
        "ai-edge-litert": {"ai_edge_litert/__init__.py": b""},
    }
    found["ai-edge-litert"]["ai_edge_litert/interpreter.py"] = b"class Interpreter: pass"
    made = [wheel(tmp_path / "wheels", name, files) for name, files in found.items()]
    python = tmp_path / "python" / "current" / "bin" / "python3"

    def set_up(kind: type[jobs.Context]) -> dict[str, Any]:
        names = {}
        for path in made:
            names[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            store.put(str(tmp_path), names[path.name], path.stat().st_size, 0, path.read_bytes())
        context = kind(str(tmp_path), fakes.context(tmp_path).folder)
        return environment.set_up(context, {"wheels": names, "runtimes": ["tflite"], "system_packages": False})

    first = set_up(jobs.Context)
    (file,) = tmp_path.glob("python/current/lib/python*/site-packages/numpy/__init__.py")
    whole = file.read_bytes()
    file.write_bytes(whole + b"# damaged")
    with pytest.raises(Stopped):
        set_up(StoppedWhileItUnpacks)
    assert python.exists()
    assert file.read_bytes() != whole
    again = set_up(jobs.Context)
    assert again["id"] == first["id"]
    assert python.exists()
    assert file.read_bytes() == whole
    assert len(list((tmp_path / "python").iterdir())) == 2


def test_what_the_board_does_alone_uses_the_environment_too(
    loopback: LoopbackBoard, wheels: Callable[[str], Path], tmp_path: Path
) -> None:
    """Flashed with a Python of the board's own first; `rollback` there must not need that one any more."""
    root = tmp_path / "root"
    options = ["--identity", loopback.identity, "--known-hosts", loopback.known_hosts, "--root", root]
    ok(run_cli("device", "add", "board", loopback.address, *options, "--board-python", board_python("3.8")))
    for number, shape in enumerate(((4, 3), (5, 3))):
        dense_bundle(tmp_path / f"{number}.edgeopt", *shape)
        ok(run_cli("flash", tmp_path / f"{number}.edgeopt", "--device", "board"))
    entry = root / "bin" / "edgeopt-agent"
    assert "python/current" not in entry.read_text()
    (root / "python" / ".new" / "left").mkdir(parents=True)  # by a power cut
    set_up("--wheels", wheels("3.8"))
    assert f"{root}/python/current/bin/python3" in entry.read_text()
    assert sorted(path.is_symlink() for path in (root / "python").iterdir()) == [False, True]
    done = subprocess.run([entry, "rollback"], capture_output=True, text=True, check=False, timeout=120)
    assert json.loads(done.stdout)["state"] == "done", done.stderr


@pytest.mark.parametrize(
    "record", [{"python": 3}, {"runtimes": "x"}, {"runtimes": [1]}, {"files": {}}, {"files": []}], ids=str
)
def test_an_environment_whose_record_is_none_is_not_whole(tmp_path: Path, record: dict[str, Any]) -> None:
    folder = tmp_path / "python" / "x"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").write_text("x")
    (folder.parent / "current").symlink_to("x")
    files = {"bin/python3": hashlib.sha256(b"x").hexdigest()}
    (folder / "environment.json").write_text(json.dumps({"files": files, "python": "3.8", "runtimes": [], **record}))
    found = environment.collect(str(tmp_path))
    assert found["current"]["whole"] is False
    assert check(replies.ENVIRONMENT, found) is None


def test_what_cannot_be_imported_there_changes_nothing(add: Add, wheels: Callable[[str], Path], tmp_path: Path) -> None:
    root = add("3.8")
    set_up("--wheels", wheels("3.8"))
    state = tree(root, without=("jobs", "lock", "store.lock", "store", "agent"))
    newer = tmp_path / "newer"
    shutil.copytree(wheels("3.8"), newer)
    wheel(newer, "ai-edge-litert", {"ai_edge_litert/interpreter.py": b"raise ImportError('libmissing.so.7')\n"})
    done = set_up("--wheels", newer, "--upgrade", code=4)
    assert "libmissing.so.7" in done["error"]["message"]
    assert "nothing was changed" in done["error"]["message"]
    assert tree(root, without=("jobs", "lock", "store.lock", "store", "agent")) == state
    assert set_up()["already"]


def test_a_wheel_that_leaves_its_folder_is_refused(add: Add, wheels: Callable[[str], Path], tmp_path: Path) -> None:
    root = add("3.8")
    evil = tmp_path / "evil"
    shutil.copytree(wheels("3.8"), evil)
    wheel(evil, "ai-edge-litert", {"../../../../../escaped": b"x"})
    done = set_up("--wheels", evil, code=4)
    assert "leaves its folder" in done["error"]["message"]
    assert not list(tmp_path.rglob("escaped"))
    assert not (root / "python" / "current").exists()


def test_a_wheel_that_does_not_exist_is_said_before_anything_is_sent(add: Add, tmp_path: Path) -> None:
    root = add("3.13")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = set_up("--wheels", empty, "--runtime", "onnxruntime", "--runtime", "tflite", code=6)
    message = done["error"]["message"]
    target = str(registry.get("board").wheels)
    for words in (f"in {empty}", target, "onnxruntime", "ai-edge-litert", "tflite-runtime", "numpy<2", "--wheels"):
        assert words in message
    assert not (root / "python").exists()
    assert not [path for path in (root / "store").iterdir() if path.suffix != ".lock"]
    done = set_up("--wheels", tmp_path / "nowhere", code=2)
    assert "no such folder" in done["error"]["message"]


def test_without_an_index_the_way_out_is_named(add: Add) -> None:
    add("3.13")
    done = set_up(code=6, env=NO_NETWORK)
    assert "index cannot be reached" in done["error"]["message"]
    assert "--download-only" in done["error"]["message"]


def test_an_unknown_board_is_set_up_by_its_address(
    loopback: LoopbackBoard, add: Add, wheels: Callable[[str], Path], tmp_path: Path
) -> None:
    add("3.13")
    root = tmp_path / "other"
    where = ["--identity", loopback.identity, "--known-hosts", loopback.known_hosts, "--root", root]
    python = ["--board-python", pyenv_python("3.13")]
    done = ok(run_cli("device", "setup", loopback.address, *where, *python, "--wheels", wheels("3.13")))
    assert f"--board-python {root}/python/current/bin/python3" in done.stdout
    assert list(registry.entries()) == ["board"]


# What fits what


@pytest.mark.parametrize(
    ("target", "first", "there", "not_there"),
    [
        (("aarch64", "glibc", "2.36"), "manylinux_2_36_aarch64", "manylinux2014_aarch64", "manylinux_2_37_aarch64"),
        (("armv7l", "glibc", "2.31"), "manylinux_2_31_armv7l", "manylinux_2_17_armv7l", "manylinux_2_16_armv7l"),
        (("x86_64", "glibc", "2.12"), "manylinux_2_12_x86_64", "manylinux1_x86_64", "manylinux2014_x86_64"),
        (("aarch64", "musl", "1.2"), "musllinux_1_2_aarch64", "musllinux_1_1_aarch64", "manylinux_2_17_aarch64"),
    ],
)
def test_every_platform_tag_up_to_the_libc_is_named(
    target: tuple[str, str, str], first: str, there: str, not_there: str
) -> None:
    made = setup.Target("3.11.2", *target)
    assert made.tags()[0] == first
    assert there in made.tags()
    assert not_there not in made.tags()
    assert setup.Target.parse(str(made)) == made


def test_a_board_that_no_wheel_is_made_for_is_told_apart() -> None:
    found = {"python": "3.9.1", "machine": "x86_64", "numpy": None, "implementation": "cpython", "libc": None}
    with pytest.raises(MissingDependency, match="unknown libc"):
        setup.Target.of(found, "ssh://board")
    libc = {"name": "glibc", "version": "2.31"}
    with pytest.raises(MissingDependency, match="pypy with glibc"):
        setup.Target.of({**found, "implementation": "pypy", "libc": libc}, "ssh://board")
    with pytest.raises(ConfigError, match="Python 3"):
        setup.Target.parse("cpython 3.9")


def test_the_boards_own_numpy_serves_where_there_is_no_wheel(tmp_path: Path) -> None:
    """32-bit Arm: numpy comes from the board's distribution."""
    given = tmp_path / "wheels"
    given.mkdir()
    wheel(given, "tflite-runtime", {"tflite_runtime/interpreter.py": b""})
    target = setup.Target("3.11.2", "armv7l", "glibc", "2.36", numpy="1.24.2")
    found = setup.choose(target, ["tflite"], tmp_path / "chosen", given, "ssh://board")
    assert found.system_packages
    assert found.packages == ("tflite-runtime",)
    for numpy in (None, "2.1.0"):
        target = setup.Target("3.11.2", "armv7l", "glibc", "2.36", numpy=numpy)
        with pytest.raises(MissingDependency, match=r"tflite-runtime \+ numpy<2 \(no wheel of numpy<2\)"):
            setup.choose(target, ["tflite"], tmp_path / "chosen", given, "ssh://board")


@pytest.mark.parametrize(
    "name", ["../up.py", "/etc/passwd", "a/../../up.py", "a\\..\\up.py", "a//b.py", "x.data/purelib/../../up"]
)
def test_no_wheel_leaves_its_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(RemoteError, match="leaves its folder"):
        environment.list_wheel("a.whl", str(path))


def test_a_wheel_has_no_links_and_is_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    link = zipfile.ZipInfo("here")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(RemoteError, match="leaves its folder"):
        environment.list_wheel("a.whl", str(path))
    path.write_bytes(b"PK, but no more")
    with pytest.raises(RemoteError, match="not a wheel"):
        environment.list_wheel("a.whl", str(path))


def test_programs_and_headers_of_a_wheel_stay_away(tmp_path: Path) -> None:
    names = ["a/b.py", "x-1.data/purelib/c.py", "x-1.data/platlib/d.so", "x-1.data/scripts/run", "x-1.data/headers/h.h"]
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    assert [place for _, place, _ in environment.list_wheel("a.whl", str(path))] == ["a/b.py", "c.py", "d.so"]


def test_what_boards_say_of_libc_and_machine() -> None:
    assert environment.parse_confstr("glibc 2.36") == {"name": "glibc", "version": "2.36"}
    said = "musl libc (aarch64)\nVersion 1.2.4\nDynamic Program Loader\nUsage: ld-musl-aarch64.so.1 [options]\n"
    assert environment.parse_musl(said) == {"name": "musl", "version": "1.2"}
    assert environment.parse_musl("no such thing") is None
    assert facts.architecture("aarch64", 4) == "armv7l", "a 32-bit system under a 64-bit kernel"
    assert facts.architecture("aarch64", 8) == "aarch64"
