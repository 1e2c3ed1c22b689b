"""The stage cache: what is found again, what is built anew, and what two processes or a killed one leave."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from edgeopt import model
from edgeopt.cache import Cache, key_of, source_of, versions

INPUTS = {"graph": "abc", "n": 3}


def writing(text: str, calls: list[str] | None = None) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        if calls is not None:
            calls.append(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "out").write_text(text)
        (folder / "other").write_text("whole")

    return build


def never(folder: Path) -> None:
    raise AssertionError(f"built again in {folder}")


def stages(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "stages").iterdir())


def test_a_stage_is_built_once(tmp_path: Path) -> None:
    first = Cache(tmp_path)
    folder = first.stage("lowered", INPUTS, writing("a"))
    assert (first.hits, first.misses) == ([], ["lowered"])
    again = Cache(tmp_path)
    assert again.stage("lowered", INPUTS, never) == folder
    assert (again.hits, again.misses) == (["lowered"], [])
    assert (folder / "deep" / "out").read_text() == "a"
    assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize(("name", "inputs"), [("pruned", INPUTS), ("lowered", INPUTS | {"n": 4}), ("lowered", {})])
def test_another_input_is_another_stage(tmp_path: Path, name: str, inputs: dict[str, Any]) -> None:
    cache = Cache(tmp_path)
    first = cache.stage("lowered", INPUTS, writing("a"))
    assert cache.stage(name, inputs, writing("b")) != first
    assert (first / "deep" / "out").read_text() == "a"


def test_keys_do_not_depend_on_the_order_of_names() -> None:
    assert (
        key_of({"a": 1, "b": [1.0, None]}) == key_of({"b": [1.0, None], "a": 1}) != key_of({"a": 1, "b": [None, 1.0]})
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        key_of(float("nan"))


def test_versions_and_sources() -> None:
    assert versions(["pytest", "no-such-package"]) == {"pytest": pytest.__version__, "no-such-package": None}
    assert source_of("edgeopt/task.py") != source_of("edgeopt/plan.py")
    assert source_of("edgeopt/task.py", "edgeopt/plan.py") != source_of("edgeopt/plan.py", "edgeopt/task.py")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def failing(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    cache = Cache(tmp_path)
    for run in (cache.stage, cache.traced):
        with pytest.raises(error):
            run("lowered", INPUTS, failing)
    assert not (tmp_path / "stages").exists()
    assert list((tmp_path / "partial").iterdir()) == []
    assert (cache.stage("lowered", INPUTS, writing("a")) / "deep" / "out").read_text() == "a"


def script(root: Path, body: str) -> list[str]:
    """A process with `cache` and `folder`s of its own to build in."""
    head = "import os, signal, sys, time\nfrom pathlib import Path\nfrom edgeopt.cache import Cache\n"
    text = f"{head}cache = Cache(Path({str(root)!r}))\n{textwrap.dedent(body)}"
    return [sys.executable, "-c", text]


@pytest.mark.parametrize("run", ["stage", "traced"])
def test_a_killed_build_leaves_no_stage_and_its_rest_goes_with_the_next(tmp_path: Path, run: str) -> None:
    body = f"""
        def build(folder):
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        cache.{run}("lowered", {INPUTS!r}, build)
    """
    done = subprocess.run(script(tmp_path, body), cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "stages").exists() or stages(tmp_path) == []
    folder = getattr(Cache(tmp_path), run)("lowered", INPUTS, writing("a"))
    assert sorted(path.name for path in folder.iterdir()) == ["deep", "other", "stage.json"]
    assert stages(tmp_path) == [folder.name]
    assert list((tmp_path / "partial").iterdir()) == []


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("run", ["stage", "traced"])
@pytest.mark.parametrize("file", ["deep/out", "other", "stage.json"])
@pytest.mark.parametrize("spoil", [remove, shorten, change, empty])
def test_a_damaged_stage_is_built_again(tmp_path: Path, spoil: Callable[[Path], None], file: str, run: str) -> None:
    folder = getattr(Cache(tmp_path), run)("lowered", INPUTS, writing("a"))
    spoil(folder / file)
    calls: list[str] = []
    again = getattr(Cache(tmp_path), run)("lowered", INPUTS, writing("a", calls))
    assert (again, calls) == (folder, ["a"])
    assert (folder / "deep" / "out").read_text() == "a"
    assert getattr(Cache(tmp_path), run)("lowered", INPUTS, never) == folder


@pytest.mark.parametrize("spoil", [shorten, change, empty])
def test_a_damaged_record_of_what_was_read_is_made_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = Cache(tmp_path).traced("source", INPUTS, writing("a"))
    (record,) = (tmp_path / "traced").iterdir()
    spoil(record)
    assert Cache(tmp_path).traced("source", INPUTS, writing("a")) == folder
    assert Cache(tmp_path).traced("source", INPUTS, never) == folder


def test_checkpoints_stay_until_the_stage_is_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def interrupted(_: Path) -> None:
        (cache.partial("pruned", INPUTS) / "checkpoint").write_text("epoch 3")
        raise KeyboardInterrupt

    def finished(folder: Path) -> None:
        (folder / "seen").write_text((cache.partial("pruned", INPUTS) / "checkpoint").read_text())

    with pytest.raises(KeyboardInterrupt):
        cache.stage("pruned", INPUTS, interrupted)
    assert (cache.stage("pruned", INPUTS, finished) / "seen").read_text() == "epoch 3"
    assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("run", ["stage", "traced"])
def test_two_processes_that_build_the_same_stage_end_with_one(tmp_path: Path, run: str) -> None:
    """Both begin before either ends; every one of them gets a whole folder that stays as it is."""
    root, ready = tmp_path / "cache", tmp_path / "ready"
    ready.mkdir()
    body = f"""
        ready = Path({str(ready)!r})
        def build(folder):
            with (ready.parent / "builds").open("a") as file:
                file.write("built ")
            for part in range(20):
                (folder / str(part)).write_text(str(part))
                time.sleep(0.01)
        (ready / str(os.getpid())).touch()
        while len(list(ready.iterdir())) < 3:
            time.sleep(0.001)
        for number in range(4):
            folder = cache.{run}("lowered", {{"n": number}}, build)
            for part in range(20):
                assert (folder / str(part)).read_text() == str(part)
                time.sleep(0.002)
    """
    several = [
        subprocess.Popen(script(root, body), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in several:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert len(stages(root)) == 4
    assert list((root / "partial").iterdir()) == []
    assert (tmp_path / "builds").read_text().split() == ["built"] * 4, "the others waited and found it"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's code: a factory that imports a module, which imports another and reads a file."""
    folder = tmp_path / "project"
    (folder / "traced_parts").mkdir(parents=True)
    (folder / "traced_net.py").write_text("from traced_parts import middle\ndef load(): return middle.value()\n")
    (folder / "traced_parts" / "__init__.py").write_text("")
    (folder / "traced_parts" / "middle.py").write_text("from . import deep\ndef value(): return deep.read()\n")
    (folder / "traced_parts" / "deep.py").write_text(
        "from pathlib import Path\ndef read(): return (Path(__file__).parents[1] / 'weights.txt').read_text()\n"
    )
    (folder / "weights.txt").write_text("one")
    (folder / "notes.txt").write_text("unread")
    (folder / "unused.py").write_text("x = 1")
    return folder


def made(root: Path, project: Path) -> tuple[str, bool]:
    """(what the factory gave, whether it was run)."""
    cache = Cache(root)

    def build(folder: Path) -> None:
        (folder / "made").write_text(model.call_factory("traced_net:load", project, {}, "key"))

    text = (cache.traced("source", {"folder": str(project)}, build) / "made").read_text()
    return text, bool(cache.misses)


def test_what_a_run_writes_beside_the_code_does_not_count_as_used(tmp_path: Path, project: Path) -> None:
    """Its own outputs, the board's folder, and folders that only the search for packages listed."""
    (project / "traced_net.py").write_text(
        "import os, importlib.metadata\ndef load():\n    importlib.metadata.version('numpy')\n"
        "    return ' '.join(sorted(os.listdir(os.path.dirname(__file__))))\n"
    )
    written = [project / "out", project / "board"]

    def made() -> str:
        cache = Cache(tmp_path / "cache", written=written)
        sys.modules.pop("traced_net", None)

        def build(folder: Path) -> None:
            (folder / "made").write_text(model.call_factory("traced_net:load", project, {}, "key"))

        return (cache.traced("source", {"folder": str(project)}, build) / "made").read_text()

    seen = made()
    for folder in (*written, project / "runs" / "one"):
        folder.mkdir(parents=True)
        (folder / "samples.npz").write_bytes(b"1")
    assert made() == seen
    (project / "weights.npz").write_bytes(b"1")
    assert "weights.npz" in made()


def test_a_traced_result_is_found_without_importing(tmp_path: Path, project: Path) -> None:
    assert made(tmp_path, project) == ("one", True)
    for name in [name for name in sys.modules if name.startswith("traced_")]:
        del sys.modules[name]
    assert made(tmp_path, project) == ("one", False)
    assert not [name for name in sys.modules if name.startswith("traced_")]


@pytest.mark.parametrize(
    ("file", "text", "result"),
    [
        ("weights.txt", "two", "two"),
        ("traced_net.py", "def load(): return 'three'\n", "three"),
        ("traced_parts/middle.py", "def value(): return 'four'\n", "four"),
        ("traced_parts/deep.py", "def read(): return 'five'\n", "five"),
        ("traced_parts/__init__.py", "# six\n", "one"),
    ],
)
def test_whatever_was_read_or_imported_decides(
    tmp_path: Path, project: Path, file: str, text: str, result: str
) -> None:
    made(tmp_path, project)
    before = (project / file).read_text()
    (project / file).write_text(text)
    assert made(tmp_path, project) == (result, True)
    assert made(tmp_path, project) == (result, False)
    (project / file).write_text(before)
    assert made(tmp_path, project)[0] == "one"


def test_what_was_not_read_does_not_decide(tmp_path: Path, project: Path) -> None:
    made(tmp_path, project)
    (project / "notes.txt").write_text("changed")
    (project / "unused.py").write_text("x = 2")
    (project / "new.txt").write_text("new")
    assert made(tmp_path, project) == ("one", False)


def test_a_file_that_is_gone_asks_the_factory_again(tmp_path: Path, project: Path) -> None:
    made(tmp_path, project)
    (project / "weights.txt").unlink()
    with pytest.raises(model.ModelError, match="FileNotFoundError"):
        made(tmp_path, project)


def test_byte_code_that_is_there_already_hides_no_source(tmp_path: Path, project: Path) -> None:
    subprocess.run([sys.executable, "-m", "compileall", "-q", project], check=True)
    assert (project / "traced_parts" / "__pycache__").is_dir()
    made(tmp_path, project)
    (project / "traced_parts" / "deep.py").write_text("def read(): return 'five'\n")
    assert made(tmp_path, project) == ("five", True)


def test_weights_that_native_code_reads_decide_too(tmp_path: Path, project: Path) -> None:
    """As safetensors does: its file is opened by no Python code."""
    weights = project / "weights.safetensors"
    weights.write_bytes(b"one")
    (project / "traced_net.py").write_text(
        textwrap.dedent(f"""
            import ctypes
            def load():
                libc = ctypes.CDLL(None)
                handle = libc.open({str(weights)!r}.encode(), 0)
                buffer = ctypes.create_string_buffer(3)
                libc.read(handle, buffer, 3)
                libc.close(handle)
                return buffer.value.decode()
        """)
    )
    assert ctypes.CDLL(None).open is not None
    assert made(tmp_path, project) == ("one", True)
    assert made(tmp_path, project) == ("one", False)
    weights.write_bytes(b"two")
    assert made(tmp_path, project) == ("two", True)


def test_the_record_names_the_users_files_only(tmp_path: Path, project: Path) -> None:
    made(tmp_path, project)
    (record,) = (tmp_path / "traced").iterdir()
    files = set(json.loads(record.read_text())["files"])
    names = (
        "traced_net.py",
        "traced_parts/__init__.py",
        "traced_parts/middle.py",
        "traced_parts/deep.py",
        "weights.txt",
    )
    assert {str(project / name) for name in names} <= files
    packages = [file for file in files if "site-packages" in file or "/encodings/" in file or "/edgeopt/" in file]
    assert packages == []
