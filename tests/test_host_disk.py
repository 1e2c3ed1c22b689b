"""This machine's own disk: full, read-only, a file where a folder is needed, links at the names of what is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import report_data
from boards import dense_tflite
from conftest import EDGEOPT, QUICK, SshBoard, run_cli, run_quick

FULL, READ_ONLY, A_FILE = "No space left", "Read-only", "file stands where a folder"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A folder of a real small file system that is full or read-only."""
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    mounted: list[Path] = []

    def mount(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        how = "size=64k" if kind == "full" else "size=1m,ro"
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        if kind == "full":
            with pytest.raises(OSError, match=FULL):
                (folder / "rest").write_bytes(bytes(1 << 20))
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(dense_tflite(8, 8))
    return path


def refused(done: subprocess.CompletedProcess[str], *words: object) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    last = " ".join(re.split("^edgeopt: ", done.stderr, flags=re.MULTILINE)[-1].split())
    assert all(str(word) in last for word in words), last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("kind", "reason"), [("full", FULL), ("read-only", READ_ONLY)])
def test_a_folder_to_keep_that_cannot_be_written_is_told_before_anything_is_measured(
    kind: str, reason: str, disk: Callable[[str], Path], model: Path, tmp_path: Path
) -> None:
    folder = disk(kind) / "kept"
    done = run_quick("bench", model, "--random", "--root", tmp_path / "board", "--keep", folder)
    refused(done, folder, reason)
    assert "measuring" not in done.stderr


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_bundle_that_cannot_be_written(kind: str, disk: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    folder = disk(kind)
    before = sorted(folder.iterdir())
    done = run_quick("bundle", model, "--profile", "generic-x86-64", "--out", folder / "m.edgeopt")
    refused(done, folder)
    assert sorted(folder.iterdir()) == before
    assert not (tmp_path / "m.edgeopt").exists()


def test_a_cache_on_a_full_disk_is_named_with_its_variable(disk: Callable[[str], Path], watch_folder: Path) -> None:
    cache = disk("full") / "cache"
    done = run_quick("optimize", watch_folder, "--device", "local", env={"EDGEOPT_CACHE": str(cache)})
    refused(done, cache, FULL, "EDGEOPT_CACHE")


def test_output_to_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([str(EDGEOPT), "profiles", "list"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert FULL in done.stderr
    assert "Traceback" not in done.stderr


def test_boards_cannot_be_noted(disk: Callable[[str], Path], ssh_board: SshBoard, tmp_path: Path) -> None:
    """Nothing is known of a board after an add that failed."""
    add = ["device", "add", "kitchen", *map(str, ssh_board.options)]
    add[add.index("--device") : add.index("--device") + 2] = [add[add.index("--device") + 1]]
    here = disk("read-only") / "boards.toml"
    refused(run_cli(*add, env={"EDGEOPT_DEVICES": str(here)}), here.parent, READ_ONLY, "EDGEOPT_DEVICES")
    under = tmp_path / "file"
    under.write_text("not a folder")
    refused(run_cli(*add, env={"EDGEOPT_DEVICES": str(under / "boards.toml")}), under, A_FILE, "EDGEOPT_DEVICES")
    own = tmp_path / "own"
    own.mkdir()
    (own / "known_hosts").write_text("somebody's host keys")
    boards = {"EDGEOPT_DEVICES": str(own / "boards.toml")}
    place = add.index("--known-hosts")
    trusting = [*add[:place], *add[place + 2 :], "--accept-new"]
    refused(run_cli(*trusting, env=boards), own / "known_hosts", A_FILE)
    assert "no board" in run_cli("device", "list", env=boards).stdout
    done = run_cli(*add, env=boards)  # with a known_hosts of its own none is needed there
    assert done.returncode == 0, done.stderr
    assert (own / "known_hosts").read_text() == "somebody's host keys"


def test_a_page_replaces_a_link_and_never_writes_through_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    report_data.write(run, report_data.run())
    precious = tmp_path / "precious"
    precious.write_text("mine")
    page = run / "report.html"
    page.unlink(missing_ok=True)
    page.symlink_to(precious)
    assert run_cli("report", run).returncode == 0
    assert precious.read_text() == "mine"
    assert page.is_file()
    assert not page.is_symlink()
    again = tmp_path / "again.json"
    again.symlink_to(precious)
    run_cli("report", run, "--recompute", "--out", again)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["lock", "samples", "samples/samples-0.f64", "kept.json", "jobs.json"])
def test_a_folder_from_elsewhere_leads_nowhere(name: str, model: Path, tmp_path: Path) -> None:
    """Of somebody else's --keep folder each name may be a link to what is precious here."""
    folder, elsewhere = tmp_path / "kept", tmp_path / "elsewhere"
    where = ["--random", "--root", tmp_path / "board", "--keep", folder]
    first = run_quick("bench", model, *where)
    assert first.returncode == 0, first.stderr
    (folder / "document.json").unlink()  # as it would be had it been interrupted
    link = folder / name
    if link.is_dir():
        link.rename(elsewhere)
    else:
        elsewhere.write_bytes(link.read_bytes() if link.exists() else b"precious")
        link.unlink(missing_ok=True)
    link.symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in [elsewhere, *elsewhere.glob("*")] if path.is_file()}
    done = run_quick("bench", model, *where)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "cp1252"])
def test_a_screen_that_lacks_signs_loses_no_result(encoding: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    narrow = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    bench = [*QUICK, "bench", str(model), "--random", "--root", str(tmp_path / "board"), "--keep", str(folder)]
    run = report_data.write(tmp_path / "run", report_data.run())
    for command in (bench, [str(EDGEOPT), "report", str(run)], [str(EDGEOPT), "report", str(folder)]):
        done = subprocess.run(command, env=narrow, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "p50" in done.stdout.decode(encoding)
    assert json.loads((folder / "document.json").read_text())["results"]
