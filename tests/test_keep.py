"""--keep: raw samples that stay, figures that are computed again, jobs that outlive the command that asked for them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import dense_tflite, events, is_alive, job_folders, progress_of, until
from conftest import EDGEOPT, SshBoard, run_cli, run_quick

from edgeopt import documents, report
from edgeopt.report import conform

LONG = ("--mode", "sustained", "--minutes", "0.3")
ROUNDS = 24  # blocks of one model in that time


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(dense_tflite(256, 256))
    return path


def kept(folder: Path, *command: object) -> dict[str, Any]:
    """The document of a command with --keep."""
    done = run_quick(*command, "--keep", folder, "--json")
    assert done.returncode in (0, 10, 11), done.stderr
    return dict(json.loads(done.stdout))


def recomputed(folder: Path, code: int) -> dict[str, Any]:
    done = run_cli("report", folder, "--recompute", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def interrupted(folder: Path, root: Path, kind: str, *command: object) -> None:
    """Ctrl-C in the middle of the first job of that kind, which goes on."""
    whole = [EDGEOPT, *command, "--keep", folder, "--json"]
    process = subprocess.Popen(list(map(str, whole)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    job = until(lambda: measuring(root, f"{kind}-"), f"a {kind} job that measures")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"job {job.name} goes on on the board: the same command takes it up" in plain(errors)
    assert job.name in jobs_of(folder)


def measuring(root: Path, begins: str) -> Path | None:
    """The first job whose name begins so, once it is in the middle of measuring."""
    jobs = [job for job in job_folders(root) if job.name.startswith(begins)]
    return next((job for job in jobs if any(event["event"] == "progress" for event in events(job))), None)


def jobs_of(folder: Path) -> list[str]:
    return [entry["job"] for entry in json.loads((folder / "jobs.json").read_text())["jobs"]]


def taken_up(folder: Path, root: Path, kind: str, *command: object) -> dict[str, Any]:
    """The document of a command with --keep that was interrupted in a job of that kind, and given again."""
    interrupted(folder, root, kind, *command)
    before = jobs_of(folder)
    done = run_cli(*command, "--keep", folder, "--json")
    assert done.returncode in (0, 10, 11), done.stderr
    for job in before:
        assert re.search(rf"job {job} (goes on|has ended meanwhile); taken up where it is", plain(done.stderr))
    assert jobs_of(folder)[: len(before)] == before
    there = [job.name for job in job_folders(root) if job.name.startswith(f"{kind}-")]
    assert set(there) == {job for job in jobs_of(folder) if job.startswith(f"{kind}-")}
    return dict(json.loads(done.stdout))


def commands(model: Path) -> dict[str, list[object]]:
    other, inputs = model.with_name("other.tflite"), model.with_name("inputs.npz")
    other.write_bytes(dense_tflite(512, 256))
    np.savez(inputs, x=np.random.default_rng(0).normal(size=(120, 256)).astype(np.float32))
    root = ["--root", model.parent / "root"]
    own: list[object] = ["--random", *root]
    return {
        "bench": ["bench", model, *own, "--operators", "--no-repeat"],
        "compare": ["compare", model, other, *own, "--no-repeat"],
        "sustained": ["bench", model, *own, *LONG],
        "load": ["load", model, "--inputs", inputs, *root, "--seconds", "1"],
        "power": ["power", model, *own, "--no-repeat", "--estimate", "--profile", "raspberry-pi-4", "--stand-in"],
    }


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("bench", "results.0.latency.p50_s.value"),
        ("compare", "ratio.interval.0"),
        ("sustained", "results.0.sustained.end.p50_s.value"),
    ],
)
def test_every_figure_is_computed_again_and_what_was_changed_is_named(model: Path, name: str, figure: str) -> None:
    folder = model.parent / "kept"
    document = kept(folder, *commands(model)[name])
    check(folder, document, figure)


@pytest.mark.parametrize(
    ("name", "kind", "figure"),
    [
        ("load", "load", "arrivals.0.latency.p50_s.value"),
        ("power", "bench", "results.0.gross_j.value"),  # an estimate's time; a sensor's job takes a minute
    ],
)
def test_what_ctrl_c_left_is_taken_up_and_computed_again(model: Path, name: str, kind: str, figure: str) -> None:
    folder = model.parent / "kept"
    document = taken_up(folder, model.parent / "root", kind, *commands(model)[name])
    check(folder, document, figure)


def check(folder: Path, document: dict[str, Any], figure: str) -> None:
    assert json.loads((folder / "document.json").read_text()) == document
    shown = run_cli("report", folder, "--json")
    assert json.loads(shown.stdout) == document
    assert run_cli("report", folder).returncode == 0
    page = folder.with_name("page.html")
    has_curves = document["kind"] == "power" or any("sustained" in one for one in document.get("results", ()))
    told = run_cli("report", folder, "--out", page)
    assert (told.returncode, page.is_file(), f"--out {page}: pages are made of" in plain(told.stderr)) == (
        (0, True, False) if has_curves else (2, False, True)
    )
    schema = json.loads(run_cli("report", "--schema", document["kind"]).stdout)
    assert list(conform.problems(document, schema, schema, document["kind"])) == []
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


def test_a_validation_is_taken_up_and_computed_again(bundle_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_cli("flash", bundle_file, "--root", root).returncode == 0
    document = taken_up(tmp_path / "kept", root, "bench", "validate", bundle_file, "--root", root)
    check(tmp_path / "kept", document, "final.value")


def test_there_is_a_schema_of_every_document() -> None:
    assert {*documents.OF, report.RUN} == set(report.KINDS)


def test_a_job_with_a_meter_is_stopped(model: Path) -> None:
    """Its readings end with the command, so nothing can take it up."""
    root, folder = model.parent / "root", model.parent / "kept"
    meter = ["--meter", f"csv:{model.parent / 'log.csv'}", "--meter-columns", "time=t:s,watts=P:W"]
    command = [EDGEOPT, "power", model, "--random", "--root", root, *meter, "--keep", folder]

    def begun(before: str = "") -> tuple[subprocess.Popen[str], Path, int]:
        def asked() -> Path | None:
            jobs = jobs_of(folder) if (folder / "jobs.json").exists() else []
            return measuring(root, jobs[0]) if jobs and jobs != [before] else None

        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        job = until(asked, "an energy job that measures")
        return process, job, json.loads((job / "process.json").read_text())["pid"]

    killed, first, pid = begun()
    killed.kill()
    killed.communicate()
    assert is_alive(pid)
    process, second, other = begun(first.name)
    assert not is_alive(pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"job {first.name} was stopped and begins anew" in plain(errors)
    assert f"a meter at this machine cannot be taken up again: job {second.name} is stopped" in plain(errors)
    assert not is_alive(other)
    assert jobs_of(folder) == []


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
        return jobs_of(self.folder)


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
