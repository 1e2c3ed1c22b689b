"""Whose turn it is on a board: who gave up waiting never begins, what works is shown, and anybody may end it."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import (
    bench_request,
    dense_bundle,
    dense_tflite,
    events,
    fake_model,
    is_alive,
    job_folders,
    local_session,
    progress_of,
    samples,
    until,
    workers_of,
)
from conftest import EDGEOPT, run_cli
from edgeopt_agent import jobs, turn

from edgeopt import conditions
from edgeopt.device.session import Session

LONG = ("--random", "--mode", "sustained", "--minutes", "5")


@contextlib.contextmanager
def busy(root: Path) -> Iterator[None]:
    """The board's lock, held as another job holds it."""
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A board whose current release is a.edgeopt; b.edgeopt, c.edgeopt and model.tflite lie beside."""
    for name, outputs in (("a", 3), ("b", 4), ("c", 5)):
        dense_bundle(tmp_path / f"{name}.edgeopt", 4, outputs)
    (tmp_path / "model.tflite").write_bytes(dense_tflite(256, 256))
    found = tmp_path / "root"
    assert json.loads(edgeopt(found, "flash", tmp_path / "a.edgeopt", "--json").stdout)["already"] is False
    return found


def edgeopt(root: Path, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = run_cli(*command, "--root", root)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def begun(root: Path, *command: object, **how: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen([str(EDGEOPT), *map(str, command), "--root", str(root)], text=True, **pipes)


def current(root: Path) -> str:
    found: str = json.loads(edgeopt(root, "status", "--json").stdout)["current"]["release"]
    return found


def waiting(root: Path) -> Path:
    """The newest job's folder, once it says that it waits."""

    def found() -> Path | None:
        newest = max(job_folders(root), key=lambda folder: turn.number_of(str(folder)))
        return newest if any(event["event"] == "waiting" for event in events(newest)) else None

    return Path(until(found, "a job that waits"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_flash_whose_host_ended_never_comes_true(root: Path, number: signal.Signals) -> None:
    before = current(root)
    with busy(root):
        host = begun(root, "flash", root.parent / "b.edgeopt")
        job = waiting(root)
        host.send_signal(number)
        host.send_signal(number)  # as `timeout` does: to the process, and to its group
        _, errors = host.communicate(timeout=60)
        assert host.returncode == (-number if number == signal.SIGKILL else 130), errors
        assert "Traceback" not in errors
    if number == signal.SIGKILL:
        until(lambda: any("turn" in event["what"] for event in events(job)), "its turn")
        time.sleep(1.0)
        edgeopt(root, "device", "stop", "local", "--job", job.name, "--yes")
    assert json.loads((job / "result.json").read_text())["error"]["kind"] == "cancelled"
    assert current(root) == before


def test_whether_a_release_is_current_already_is_asked_in_turn(root: Path) -> None:
    """While b waits, a is still current; when a's turn comes, it is not."""
    with busy(root):
        first = begun(root, "flash", root.parent / "b.edgeopt", "--json")
        waiting(root)
        second = begun(root, "flash", root.parent / "a.edgeopt", "--json")
        until(lambda: len([job for job in job_folders(root) if events(job)]) == 3, "the second to wait")
        time.sleep(0.5)
    told = [json.loads(host.communicate(timeout=60)[0]) for host in (first, second)]
    assert [one["already"] for one in told] == [False, False]
    assert current(root) == told[1]["release"]


@pytest.mark.parametrize("name", ["leaves_its_turn", "told_once", "is_back", "kept_job"])
def test_who_waits(name: str) -> None:
    """Of waiting_jobs.py: in a process of its own, as a job has one, since an alarm is the whole process's."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", name]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("waiting_jobs.py"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_what_works_is_shown_and_anybody_may_end_it(root: Path) -> None:
    """The host of a measurement was killed: it goes on, seen by all."""
    host = begun(root, "bench", root.parent / "model.tflite", *LONG)
    job = until(lambda: next((one for one in job_folders(root) if progress_in(one)), None), "a job that measures")
    pid = json.loads((job / "process.json").read_text())["pid"]
    host.kill()
    host.communicate()
    (shown,) = json.loads(edgeopt(root, "status", "--json").stdout)["jobs"]
    assert (shown["job"], shown["kind"], shown["waits"]) == (job.name, "bench", False)
    assert shown["by"] == f"{getpass.getuser()}@{os.uname().nodename}"
    assert shown["for_s"] > 0
    said = edgeopt(root, "status").stdout
    assert job.name in said
    assert f"edgeopt device stop local --root {root}" in said

    flash = begun(root, "flash", root.parent / "b.edgeopt")
    waits = waiting(root)
    (event,) = events(waits)
    assert event["behind"] == job.name
    refused = edgeopt(root, "device", "stop", "local", code=2)
    assert "--yes" in refused.stderr
    assert is_alive(pid)
    ended = json.loads(edgeopt(root, "device", "stop", "local", "--yes", "--json").stdout)
    assert (ended["ended"]["job"], ended["state"]) == (job.name, "failed")
    assert [one["waits"] for one in ended["jobs"]] == [False, True]
    _, errors = flash.communicate(timeout=60)
    assert flash.returncode == 0, errors
    told = " ".join(errors.split())
    assert f"waiting behind job {job.name}" in told
    assert "edgeopt device stop local --root" in told
    assert not is_alive(pid)
    assert "nothing works" in edgeopt(root, "device", "stop", "local", "--yes").stdout
    assert "no such job" in edgeopt(root, "device", "stop", "local", "--yes", "--job", "bench-1", code=2).stderr


def progress_in(job: Path) -> bool:
    return any(event["event"] == "progress" for event in events(job))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_ends_a_command_unless_it_was_told_to_stay(root: Path, ignored: bool) -> None:
    """A bench on a terminal that goes away, with and without nohup's ignored SIGHUP."""
    model, out = root.parent / "model.tflite", root.parent / "document.json"
    minutes = ("--minutes", "0.1" if ignored else "5")
    command = ["bench", model, "--random", "--mode", "sustained", *minutes, "--no-repeat", "--json", "--root", root]
    code = f"import signal; signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})"
    code += "; import sys; from edgeopt.cli import main; sys.argv = ['edgeopt', *sys.argv[1:]]; main()"
    pid, terminal = pty.fork()
    if pid == 0:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT, 0o600), 1)
        python = str(EDGEOPT.with_name("python"))
        os.execv(python, [python, "-c", code, *map(str, command)])
    reading = threading.Thread(target=drained, args=(terminal,), daemon=True)
    reading.start()
    job = until(lambda: next((one for one in job_folders(root) if progress_in(one)), None), "a job that measures")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    if ignored:
        assert os.waitstatus_to_exitcode(status) in (0, 11)
        assert json.loads(out.read_text())["results"]
    else:
        assert os.waitstatus_to_exitcode(status) == 130
        assert json.loads(out.read_text())["error"]["kind"] == "interrupted"
        assert json.loads((job / "result.json").read_text())["error"]["kind"] == "cancelled"


def drained(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


def test_a_screen_that_cannot_be_written_ends_the_job(tmp_path: Path) -> None:
    """As a full disk under a log file does."""

    def full(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and "measuring" in event["what"]:
            raise OSError(28, "No space left on device")

    with local_session(tmp_path / "root", on_event=full) as session:
        with pytest.raises(OSError, match="No space"):
            session.run(long_request(session))
        assert session.jobs() == []
    (job,) = job_folders(tmp_path / "root")
    assert json.loads((job / "result.json").read_text())["error"]["kind"] == "cancelled"


def long_request(session: Session) -> dict[str, Any]:
    return bench_request([session.send(fake_model())], [session.send(samples())], min_seconds=30.0, rounds=10)


def test_the_newest_jobs_stay_whatever_the_clock_says(tmp_path: Path) -> None:
    """A board without a battery begins in 1970; the jobs of before are then from the future."""
    root = tmp_path / "root"
    with local_session(root):
        pass
    names = [f"old-{number:02}" for number in range(jobs.KEEP_FINISHED + 5)]
    for kept in (True, False):
        for number, name in enumerate(names):
            folder = root / "jobs" / f"{name}-{kept}"
            folder.mkdir()
            turn.note_asked(str(folder), "bench", None, not kept)
            (folder / "request.json").write_text("{}")
            (folder / "result.json").write_text('{"ok": true, "result": {}}')
            os.utime(folder, (2e9 - number, 2e9 - number))
    jobs.start(str(root), "new", {"kind": "nonsense"})
    until(lambda: jobs.state(str(root), "new") == "failed", "its end")
    left = {folder.name for folder in job_folders(root)}
    newest = names[-(jobs.KEEP_FINISHED - 1) :]
    assert left == {"new", *(f"{name}-{kept}" for name in newest for kept in (True, False))}


@pytest.mark.parametrize("kept", [True, False])
def test_a_lost_board_leaves_true_words_about_the_job(tmp_path: Path, kept: bool) -> None:
    """What becomes of the job, and what the same command does then."""
    from edgeopt.device.journal import Journal
    from edgeopt.device.local import LocalTransport
    from edgeopt.errors import DeviceUnreachable

    root = tmp_path / "root"
    with local_session(root, patience_s=0.5) as session:
        request = long_request(session)
        session.keep(Journal(tmp_path / "jobs.json") if kept else None)

        def lose() -> None:
            until(lambda: progress_of(root), "the middle of the job")
            LocalTransport.open = lost  # type: ignore[method-assign,assignment]
            os.kill(session.hello["pid"], signal.SIGKILL)

        def lost(_self: LocalTransport, _command: str) -> Any:
            raise DeviceUnreachable("local is gone")

        opening = LocalTransport.open
        thread = threading.Thread(target=lose)
        thread.start()
        try:
            with pytest.raises(DeviceUnreachable) as caught:
                session.run(request)
        finally:
            thread.join()
            LocalTransport.open = opening  # type: ignore[method-assign]
        (job,) = job_folders(root)
        assert job.name in str(caught.value)
        assert ("the same command takes it up" in str(caught.value)) == kept
        assert ("begins anew" in str(caught.value)) == (not kept)
        assert session.stop(job.name) == "failed"


def test_a_processor_that_goes_away_does_not_lose_a_comparison(tmp_path: Path) -> None:
    """A cpuset that shrinks, as by a container's owner; one that is switched off looks the same to a job."""
    cpuset = Path("/sys/fs/cgroup/cpuset")
    if not os.access(cpuset / "cpuset.cpus", os.W_OK) or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has no cpuset (cgroup v1) to change, or one processor")
    group = cpuset / f"edgeopt-{os.getpid()}"
    group.mkdir()
    try:
        for name in ("cpuset.mems", "cpuset.cpus"):
            (group / name).write_text((cpuset / name).read_text())
        with local_session(tmp_path / "root") as session:
            blobs = [session.send(fake_model()), session.send(fake_model(invoke_s=0.001))]
            request = bench_request(blobs, [session.send(samples())], min_seconds=1.0, rounds=6, renew=1)
            session.request("job.start", job="bench-1", request=request)
            job = until(lambda: progress_of(tmp_path / "root"), "the middle of the job")
            for pid in [json.loads((job / "process.json").read_text())["pid"], *workers_of(job)]:
                with contextlib.suppress(ProcessLookupError):  # a worker may just have ended
                    (group / "cgroup.procs").write_text(str(pid))
            (group / "cpuset.cpus").write_text("0")
            while (now := session.request("job.poll", job="bench-1", offset=0, wait_s=5))["state"] == "running":
                pass
        assert now["state"] == "done", now["result"]
        result = now["result"]["result"]
        assert len(result["shared_cpus"]) == 2
        assert len(result["blocks"]) == 24
        (told,) = conditions.changed(result["conditions"])
        assert "processor 1 went away" in told
    finally:
        until(lambda: not (group / "cgroup.procs").read_text().split(), "the end of its processes")
        group.rmdir()
