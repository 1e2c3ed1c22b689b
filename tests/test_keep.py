"""--keep: raw samples that stay, figures that are computed again, jobs that outlive the command that asked for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import dense_tflite, is_alive, progress_of, until
from conftest import EDGEOPT, SshBoard, run_cli

LONG = ("--mode", "sustained", "--minutes", "0.3")
ROUNDS = 24  # blocks of one model in that time


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(dense_tflite(256, 256))
    return path


def kept(folder: Path, *command: object) -> dict[str, Any]:
    """The document of a command with --keep."""
    done = run_cli(*command, "--keep", folder, "--json")
    assert done.returncode in (0, 10, 11), done.stderr
    return dict(json.loads(done.stdout))


def recomputed(folder: Path, code: int) -> dict[str, Any]:
    done = run_cli("report", folder, "--recompute", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def commands(model: Path) -> dict[str, list[object]]:
    other = model.with_name("other.tflite")
    other.write_bytes(dense_tflite(512, 256))
    own: list[object] = ["--random", "--root", model.parent / "root"]
    return {
        "bench": ["bench", model, *own, "--no-repeat"],
        "compare": ["compare", model, other, *own, "--no-repeat"],
        "sustained": ["bench", model, *own, *LONG],
        "load": ["load", model, *own, "--seconds", "1"],
        "power": ["power", model, *own, "--estimate", "--profile", "raspberry-pi-4"],
    }


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("bench", "results.0.latency.p50_s.value"),
        ("compare", "ratio.interval.0"),
        ("sustained", "results.0.sustained.end.p50_s.value"),
        ("load", "arrivals.0.latency.p50_s.value"),
        ("power", "results.0.gross_j.value"),
    ],
)
def test_every_figure_is_computed_again_and_what_was_changed_is_named(model: Path, name: str, figure: str) -> None:
    folder = model.parent / "kept"
    document = kept(folder, *commands(model)[name])
    check(folder, document, figure)


def check(folder: Path, document: dict[str, Any], figure: str) -> None:
    assert json.loads((folder / "document.json").read_text()) == document
    shown = run_cli("report", folder, "--json")
    assert json.loads(shown.stdout) == document
    assert run_cli("report", folder).returncode == 0
    found = recomputed(folder, 0)
    assert (found["differences"], found["missing"]) == ([], [])
    assert found["again"].items() <= document.items()
    place: Any = document
    *above, last = figure.split(".")
    for key in above:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] *= 1.0001
    (folder / "document.json").write_text(json.dumps(document))
    assert [one["figure"] for one in recomputed(folder, 5)["differences"]] == [figure]
    samples = next(path for path in sorted((folder / "samples").iterdir()) if path.suffix in (".f64", ".npz"))
    data = bytearray(samples.read_bytes())
    data[-1] ^= 1
    samples.write_bytes(data)
    assert f"samples/{samples.name}, SHA-256" in [one["figure"] for one in recomputed(folder, 5)["differences"]]
    samples.unlink()
    assert any(samples.name in words for words in recomputed(folder, 5)["missing"])


def test_a_validation_is_computed_again(bundle_file: Path, tmp_path: Path) -> None:
    where = ["--root", tmp_path / "root"]
    assert run_cli("flash", bundle_file, *where).returncode == 0
    document = kept(tmp_path / "kept", "validate", bundle_file, *where)
    check(tmp_path / "kept", document, "final.value")


def test_a_folder_of_something_else_is_left_alone(model: Path) -> None:
    folder = model.parent / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    done = run_cli(*commands(model)["bench"], "--keep", folder)
    assert done.returncode == 2
    assert f"--keep {folder}: something else is there" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    alone = run_cli("bench", model, "--random", "--stop")
    assert (alone.returncode, "--stop: name the folder" in alone.stderr) == (2, True)


def plain(text: str) -> str:
    """Without the screen's line ends."""
    return " ".join(text.split())


class Long:
    """A sustained bench with --keep that is in the middle of measuring."""

    def __init__(self, model: Path, root: Path, where: list[str]) -> None:
        self.folder = model.parent / "kept"
        self.command = ["bench", str(model), "--random", *LONG, *where, "--keep", str(self.folder)]
        self.process = subprocess.Popen([str(EDGEOPT), *self.command], stderr=subprocess.PIPE, text=True)
        self.job = until(lambda: progress_of(root), "a job that measures")
        self.pid: int = json.loads((self.job / "process.json").read_text())["pid"]

    def end(self) -> str:
        _, errors = self.process.communicate(timeout=60)
        return plain(errors)

    def jobs(self) -> list[str]:
        return [entry["job"] for entry in json.loads((self.folder / "jobs.json").read_text())["jobs"]]


Begin = Callable[[str], Long]


@pytest.fixture
def begin(model: Path, request: pytest.FixtureRequest) -> Begin:
    def begun(how: str) -> Long:
        if how == "local":
            root = model.parent / "root"
            return Long(model, root, ["--root", str(root)])
        board: SshBoard = request.getfixturevalue("ssh_board")
        return Long(model, board.root, board.options)

    return begun


def goes_on(run: Long) -> None:
    """The same command ends with the samples of the one job that there ever was."""
    done = run_cli(*run.command, "--json")
    assert done.returncode == 0, done.stderr
    assert f"job {run.job.name}" in plain(done.stderr)
    assert "taken up where it is" in plain(done.stderr)
    assert run.jobs() == [run.job.name]
    assert [path.name for path in run.job.parent.iterdir()] == [run.job.name]
    (result,) = json.loads(done.stdout)["results"]
    raw = np.fromfile(run.folder / "samples" / "samples-0.f64").reshape(-1, 2)
    assert result["latency"]["n"] == len(raw)
    assert (run.folder / "samples" / "samples-0.f64").read_bytes() == (run.job / "samples-0.f64").read_bytes()
    blocks = json.loads((run.folder / "samples" / "bench.json").read_text())["result"]["blocks"]
    assert len(blocks) == ROUNDS
    assert recomputed(run.folder, 0)["differences"] == []


@pytest.mark.parametrize("how", ["local", "ssh"])
def test_ctrl_c_leaves_the_job_and_the_same_command_takes_it_up(begin: Begin, how: str) -> None:
    run = begin(how)
    run.process.send_signal(signal.SIGINT)
    errors = run.end()
    assert run.process.returncode == 130, errors
    assert f"job {run.job.name} goes on on the board: the same command takes it up, and with --stop added" in errors
    assert is_alive(run.pid)
    goes_on(run)


def test_a_killed_host_and_another_model(begin: Begin, model: Path) -> None:
    run = begin("local")
    run.process.kill()
    run.end()
    assert is_alive(run.pid)
    whole = model.read_bytes()
    model.write_bytes(dense_tflite(257, 256))
    other = run_cli(*run.command)
    assert other.returncode == 2, other.stderr
    assert "job 1, artifacts, 1, files, model.tflite is " in other.stderr
    model.write_bytes(whole)
    slower = run_cli(*run.command, "--seed", 3)
    assert slower.returncode == 2
    assert "seed was 0 when it was begun and is 3 now" in slower.stderr
    assert is_alive(run.pid)
    goes_on(run)


def test_the_second_ctrl_c_ends_the_job(begin: Begin) -> None:
    run = begin("local")
    run.process.send_signal(signal.SIGINT)
    assert run.process.stderr is not None
    for line in run.process.stderr:
        if "goes on on" in line:
            break
    run.process.send_signal(signal.SIGINT)
    assert "is stopped; the same command measures it again" in run.end()
    assert not is_alive(run.pid)
    assert run.jobs() == []


def test_stop_ends_the_job_of_a_killed_host(begin: Begin) -> None:
    run = begin("local")
    os.kill(run.process.pid, signal.SIGKILL)
    run.end()
    assert is_alive(run.pid)
    stopped = run_cli(*run.command, "--stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped on the board: {run.job.name}\n"), stopped.stderr
    assert not is_alive(run.pid)
    again = run_cli(*run.command, "--stop", "--json")
    assert json.loads(again.stdout)["stopped"] == []


def test_without_keep_ctrl_c_ends_the_job_and_names_the_option(model: Path) -> None:
    root = model.parent / "root"
    command = [str(EDGEOPT), "bench", str(model), "--random", "--mode", "sustained", "--minutes", "5"]
    process = subprocess.Popen([*command, "--root", str(root)], stderr=subprocess.PIPE, text=True)
    job = until(lambda: progress_of(root), "a job that measures")
    pid = json.loads((job / "process.json").read_text())["pid"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "about 300 s of measuring begin anew next time; with --keep FOLDER they would go on" in plain(errors)
    assert not is_alive(pid)
