"""What the tests share: the installed CLI, the real example at small size, and real boards on loopback."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from edgeopt import bundle as bundles

if TYPE_CHECKING:
    from board_folder import Board, Way
    from loopback_board import LoopbackBoard

    from edgeopt.device.session import Session

# A test run that was started in the background ignores SIGINT, and with it all that it starts; tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test judges an absolute time, a property's neither.
settings.register_profile("edgeopt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeopt")

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLE = REPOSITORY / "examples" / "smartwatch-activity"
EDGEOPT = Path(sys.executable).with_name("edgeopt")
QUICK = [sys.executable, str(Path(__file__).with_name("quick.py"))]  # instead of EDGEOPT: measurements take a moment
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

sys.path.insert(0, str(REPOSITORY / "examples"))
os.environ["EDGEOPT_SSH_CONFIG"] = "none"  # whatever this machine's user has there

# Each test meets its board on this machine and by one of two far corners, in turn by its name; `make boards` has every
# server with every transport and account, and every Python.
CORNERS = ("openssh,ssh,root,3.13", "dropbear,paramiko,user,3.8")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_cli(
    *arguments: object,
    cwd: Path | None = None,
    timeout: float = 600,
    env: dict[str, str] | None = None,
    program: Sequence[str] = (str(EDGEOPT),),
) -> subprocess.CompletedProcess[str]:
    """The installed `edgeopt`, as a user runs it."""
    return subprocess.run(
        [*program, *map(str, arguments)],
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def run_quick(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """`run_cli` where no figure matters."""
    return run_cli(*arguments, **how, program=QUICK)


@pytest.fixture
def cli() -> Run:
    return run_cli


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


def made_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, filled by the first worker that asks; the others wait for it."""
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            scratch = folder.with_name(folder.name + ".part")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            build(scratch)
            scratch.rename(folder)
    return folder


@pytest.fixture(scope="session")
def watch_data(shared_tmp: Path) -> Path:
    """The example's data.npz, made by its own script."""

    def build(folder: Path) -> None:
        script = [sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(folder / "data.npz")]
        subprocess.run(script, check=True, capture_output=True)

    return made_once(shared_tmp / "watch-data", build) / "data.npz"


def copy_example(folder: Path, data: Path, **changes: str) -> Path:
    """The example in `folder`; `changes` replace top-level `key = …` lines of its run file by key."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("watch_model.py", "weights.npz", "edgeopt.toml"):
        shutil.copy(EXAMPLE / name, folder)
    (folder / "data.npz").symlink_to(data)
    text = (folder / "edgeopt.toml").read_text()
    for key, value in changes.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, f"{key} stands {count} times in the example's run file"
    (folder / "edgeopt.toml").write_text(text)
    return folder


SMALL = {
    "rungs": '["fp32", "int8"]',
    "calibration": "{ groups = [1, 2, 3, 4, 5], count = 64 }",
    "selection": "{ groups = [6, 7], count = 200 }",
    "final": "{ groups = [8, 9, 10], count = 300 }",
}


@pytest.fixture
def watch_folder(tmp_path: Path, watch_data: Path) -> Path:
    """A small copy of the example, to be changed by one test."""
    return copy_example(tmp_path / "project", watch_data, **SMALL)


@pytest.fixture(scope="session")
def small_run(shared_tmp: Path, watch_data: Path) -> Path:
    """runs/<name>/ of a real optimize (fp32 and int8) of the small example on this machine."""

    def build(folder: Path) -> None:
        project = copy_example(folder / "project", watch_data, **SMALL)
        where = ["--root", folder / "board", "--out", folder / "run", "--cache", shared_tmp / "cache"]
        done = run_cli("optimize", project, "--allow-undecided", *where)
        assert done.returncode == 0, done.stderr

    return made_once(shared_tmp / "small-run", build) / "run"


@pytest.fixture(scope="session")
def bundle_file(small_run: Path) -> Path:
    """A real bundle: the int8 smartwatch model."""
    return small_run / "smartwatch-activity.edgeopt"


@pytest.fixture(scope="session")
def other_bundle_file(bundle_file: Path, shared_tmp: Path) -> Path:
    """Another release of the same model, as the next version of it would be."""

    def build(folder: Path) -> None:
        first = bundles.read(bundle_file)
        assert first.manifest.evaluation is not None
        entries = [*first.manifest.files.values(), *first.manifest.evaluation.shards]
        manifest = first.manifest.model_copy(update={"lineage": {"next": True}})
        bundles.write(folder / "next.edgeopt", manifest, {entry.sha256: first.blob(entry) for entry in entries})

    return made_once(shared_tmp / "other-bundle", build) / "next.edgeopt"


@dataclasses.dataclass(frozen=True)
class SshBoard:
    """`options` are the CLI's; `root` is edgeopt's folder on it; `server` the running LoopbackBoard."""

    server: object
    options: list[str]
    root: Path


@pytest.fixture
def ssh_board(tmp_path: Path) -> Iterator[SshBoard]:
    """A board behind a real OpenSSH server on loopback, whose Python is this one."""
    from loopback_board import LoopbackBoard

    server = LoopbackBoard(tmp_path / "sshd")
    root = tmp_path / "ssh-board"
    options = [*server.options, "--root", str(root), "--board-python", sys.executable]
    yield SshBoard(server, options, root)
    server.close()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "alone: measures what a busy machine disturbs; no other worker's test runs beside"
    )
    if not hasattr(config, "workerinput"):
        turns = tempfile.mkdtemp(prefix="edgeopt-turns-")
        os.environ["EDGEOPT_TEST_TURNS"] = turns
        config.add_cleanup(lambda: shutil.rmtree(turns, ignore_errors=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Who waits for the room to be empty keeps the gate, so nobody overtakes."""
    turns = Path(os.environ["EDGEOPT_TEST_TURNS"])
    with (turns / "gate").open("w") as gate, (turns / "room").open("w") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--board",
        action="append",
        help="How the fixtures `board` and `session` reach their board: local, or SERVER,TRANSPORT,ACCOUNT,PYTHON, "
        "each one of openssh dropbear, paramiko ssh, root user, 3.8 to 3.13; repeat it for several. "
        f"Default: local, and one of {' '.join(CORNERS)}",
    )
    parser.addoption(
        "--every-cut", action="store_true", help="Cut the power before every system call; default: before every fourth."
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "way" in metafunc.fixturenames:
        corner = CORNERS[zlib.crc32(metafunc.function.__name__.encode()) % len(CORNERS)]
        ways = metafunc.config.getoption("--board") or ("local", corner)
        metafunc.parametrize("way", ways, indirect=True, scope="session")


@pytest.fixture(scope="session")
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """How the boards of these tests are reached."""
    from board_folder import way

    with way(request.param) as found:
        yield found


@pytest.fixture
def board(way: Way, tmp_path: Path) -> Board:
    """A board with a folder of its own."""
    from board_folder import Board

    return Board(way.folder(tmp_path / "board"), way)


@pytest.fixture(scope="session")
def versions(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bundles.Bundle]:
    """Five releases with blobs of their own."""
    from bundle_variants import next_version

    folder = tmp_path_factory.mktemp("versions")
    return [next_version(bundle_file, folder / f"{number}.edgeopt", number) for number in range(5)]


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackBoard]:
    """A real OpenSSH server, for the tests of one file."""
    from loopback_board import LoopbackBoard

    server = LoopbackBoard(tmp_path_factory.mktemp("loopback") / "sshd")
    yield server
    server.close()


@pytest.fixture(scope="module")
def dropbear() -> Iterator[LoopbackBoard]:
    """A real dropbear server, for the tests of one file."""
    from servers import namespaced_board

    with namespaced_board(server="dropbear") as server:
        yield server


@pytest.fixture
def root(way: Way, tmp_path: Path) -> Path:
    """The folder of `session`'s board."""
    return way.folder(tmp_path / "root")


@pytest.fixture
def session(way: Way, root: Path) -> Iterator[Session]:
    """A conversation with a board's agent."""
    with way.session(root) as opened:
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures that tests found out, shown without -s."""
    said = [
        value
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "said"
    ]
    for line in dict.fromkeys(map(str, said)):
        terminalreporter.write_line(line)
