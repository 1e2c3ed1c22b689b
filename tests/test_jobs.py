"""Detached jobs: they survive their session, end when told to, and never work two at a time."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from board_folder import Way
from boards import (
    bench_request,
    events,
    fake_model,
    in_background,
    is_alive,
    job_folders,
    kill,
    long_bench,
    processes,
    progress_of,
    samples,
    until,
    workers_of,
)
from edgeopt_agent import jobs

from edgeopt.device.session import Session
from edgeopt.errors import AgentFailure, IntegrityError


def test_a_job_survives_its_session_and_every_event_arrives_once(way: Way, root: Path) -> None:
    seen: list[dict[str, Any]] = []
    with way.session(root, on_event=seen.append) as session:
        request = long_bench(session, seconds=2.0)
        thread, outcome = in_background(session, request)
        until(lambda: progress_of(root), "the middle of the job")
        kill(session.hello["pid"])
        thread.join(60)
    job, result = outcome[0]
    assert [folder.name for folder in job_folders(root)] == [job]
    assert len(result["blocks"]) == 20
    assert any("link lost" in event["what"] for event in seen)
    of_the_job = [event for event in seen if event.get("what") == "measuring latency"]
    assert of_the_job == [event for event in events(root / "jobs" / job) if event["event"] == "progress"]
    assert [event["done"] for event in of_the_job] == list(range(1, 11))


def test_two_listeners_from_the_start_see_the_same_events(way: Way, root: Path) -> None:
    with way.session(root) as session, way.session(root) as other:
        request = long_bench(session, seconds=0.5)
        session.request("job.start", job="one", request=request)
        heard: list[list[dict[str, Any]]] = [[], []]
        for listener, into in ((session, heard[0]), (other, heard[1])):
            offset, state = 0, "running"
            while state == "running":
                now = listener.request("job.poll", job="one", offset=offset, wait_s=5)
                offset, state = now["offset"], now["state"]
                into += now["events"]
        assert heard[0] == heard[1] == events(root / "jobs" / "one")
        assert len(heard[0]) == 10


def test_more_events_than_one_reply_holds_all_arrive_before_the_end_is_told(session: Session, root: Path) -> None:
    session.request("job.start", job="one", request=long_bench(session, seconds=0.1))
    until(lambda: session.request("job.poll", job="one", offset=0, wait_s=5)["state"] == "done", "the end")
    with (root / "jobs" / "one" / "events.jsonl").open("a") as file:
        for number in range(30_000):
            file.write(json.dumps({"event": "progress", "what": "x" * 50, "done": number, "of": 30_000}) + "\n")
    assert (root / "jobs" / "one" / "events.jsonl").stat().st_size > 2 * jobs.MAX_EVENT_BYTES
    got, offset, state = [], 0, "running"
    while state == "running":
        now = session.request("job.poll", job="one", offset=offset, wait_s=0)
        assert (now["result"] is None) == (now["state"] == "running")
        offset, state = now["offset"], now["state"]
        got += now["events"]
    assert got == events(root / "jobs" / "one")


def test_starting_a_job_twice_is_one_job(way: Way, root: Path) -> None:
    """Also when two sessions ask at the same moment, as after a lost link."""
    with way.session(root) as session:
        request = long_bench(session, seconds=1.0)
    sessions = [way.session(root) for _ in range(4)]
    together = threading.Barrier(len(sessions))
    states: list[str] = []

    def start(one: Session) -> None:
        together.wait()
        states.append(one.request("job.start", job="one", request=request)["state"])

    threads = [threading.Thread(target=start, args=(one,)) for one in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert states == ["running"] * 4
    found = {pid: parent for pid, parent, line in processes() if line.rstrip().endswith(str(root / "jobs" / "one"))}
    assert len([pid for pid, parent in found.items() if parent not in found]) == 1, found  # one may just fork a worker
    until(lambda: sessions[0].request("job.poll", job="one", offset=0, wait_s=5)["state"] == "done", "the end")
    assert sessions[1].request("job.start", job="one", request=request)["state"] == "done"
    assert len(events(root / "jobs" / "one")) == 10
    for one in sessions:
        with one:
            pass


def test_an_ended_job_leaves_no_zombie_in_a_session_that_stays(session: Session) -> None:
    agent = session.hello["pid"]
    job = session.run(bench_request([session.send(fake_model())], [session.send(samples())]))[0]

    def all_are_reaped() -> bool:
        session.request("job.poll", job=job, offset=0, wait_s=0)
        return not Path(f"/proc/{agent}/task/{agent}/children").read_text().split()

    until(all_are_reaped, "the reaping", 5)


def test_cancel_ends_the_job_and_its_workers(session: Session, root: Path) -> None:
    session.request("job.start", job="one", request=long_bench(session))
    job = until(lambda: progress_of(root), "the middle of the job")
    workers = until(lambda: workers_of(job), "a worker")
    assert session.request("job.cancel", job="one") == {"state": "failed"}
    result = session.request("job.poll", job="one", offset=0, wait_s=0)["result"]
    assert result["error"]["kind"] == "cancelled"
    until(lambda: not any(is_alive(pid) for pid in workers), "the end of the workers", 5)
    assert session.request("job.cancel", job="one") == {"state": "failed"}


def test_a_waiting_job_can_be_cancelled(session: Session, root: Path) -> None:
    session.request("job.start", job="one", request=long_bench(session))
    until(lambda: progress_of(root), "the middle of the job")
    session.request("job.start", job="two", request=long_bench(session))
    until(lambda: events(root / "jobs" / "two"), "its waiting")
    assert session.request("job.cancel", job="two") == {"state": "failed"}
    assert session.request("job.poll", job="one", offset=0, wait_s=0)["state"] == "running"
    session.request("job.cancel", job="one")


def test_a_killed_job_is_called_lost_and_takes_its_workers_with_it(session: Session, root: Path) -> None:
    """Also a worker that is in the middle of a long invoke and hears nothing."""
    model = fake_model(invoke_s=60.0, prints="invoked")
    thread, outcome = in_background(session, bench_request([session.send(model)], []))
    job = until(lambda: (job_folders(root) or [None])[0], "the job")
    until(lambda: (job / "log").exists() and "invoked" in (job / "log").read_text(), "the first invoke")
    workers = workers_of(job)
    assert workers
    kill(json.loads((job / "process.json").read_text())["pid"])
    thread.join(60)
    assert isinstance(outcome[0], AgentFailure)
    assert "ended without a result: it was killed, or the board restarted" in str(outcome[0])
    assert job.name in str(outcome[0])
    until(lambda: not any(map(is_alive, workers)), "the end of the workers", 10)
    assert session.request("job.cancel", job=job.name) == {"state": "lost"}


def test_two_jobs_never_work_at_once_and_the_second_says_that_it_waits(session: Session, root: Path) -> None:
    request = long_bench(session, seconds=1.0)
    session.request("job.start", job="one", request=request)
    until(lambda: progress_of(root), "the middle of the first job")
    session.request("job.start", job="two", request=request)
    waiting = until(lambda: events(root / "jobs" / "two"), "the second job's first word")
    assert (waiting[0]["event"], waiting[0]["behind"]) == ("waiting", "one")
    assert "waiting behind job one" in waiting[0]["what"]
    while session.request("job.poll", job="two", offset=0, wait_s=0)["state"] == "running":
        now = [session.request("job.poll", job=job, offset=0, wait_s=0)["state"] for job in ("two", "one")]
        working = [event for event in events(root / "jobs" / "two") if event["event"] == "progress"]
        assert not (working and now[1] == "running"), "both worked at the same time"
    assert [event["event"] for event in events(root / "jobs" / "two")] == ["waiting"] * 2 + ["progress"] * 10


def test_result_files_come_by_their_hash(session: Session, root: Path) -> None:
    job, result = session.run(bench_request([session.send(fake_model())], [session.send(samples())]))
    entry = result["artifacts"][0]["samples"]
    path = root / "jobs" / job / entry["name"]
    assert session.fetch(job, entry) == path.read_bytes()
    path.write_bytes(b"\0" * entry["size_bytes"])
    with pytest.raises(IntegrityError, match=entry["name"]):
        session.fetch(job, entry)
    with pytest.raises(AgentFailure, match="no file 'nothing'"):
        session.fetch(job, {**entry, "name": "nothing"})
    with pytest.raises(AgentFailure, match="'name' must be a plain name"):
        session.fetch(job, {**entry, "name": "../../secret"})


def test_only_the_newest_finished_jobs_are_kept_and_a_running_one_always(
    way: Way, session: Session, root: Path
) -> None:
    session.request("job.start", job="works", request=long_bench(session, 10.0))
    until(lambda: progress_of(root), "the middle of the job")
    for number in range(jobs.KEEP_FINISHED + 3):
        name = f"old-{number:02}"
        (root / "jobs" / name).mkdir()
        (root / "jobs" / name / "request.json").write_text("{}")
        (root / "jobs" / name / "result.json").write_text('{"ok": true, "result": {}}')
        os.utime(root / "jobs" / name, (2e9 + number, 2e9 + number))
        way.give(*root.glob(f"jobs/{name}/*"), root / "jobs" / name)
    session.request("job.start", job="new", request={"kind": "rollback"})
    kept = {folder.name for folder in job_folders(root)}
    assert {"works", "new", f"old-{jobs.KEEP_FINISHED + 2:02}"} <= kept
    assert "old-00" not in kept
    assert len(kept - {"works"}) == jobs.KEEP_FINISHED
    session.request("job.cancel", job="works")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"kind": "dance"},
            "unknown job kind 'dance'; known: bench, infer, operators, energy, load, activate",
        ),
        ({"kind": 7}, "'kind' must be a text"),
        (bench_request([], []), "'artifacts' must be a list of 1 to"),
        (bench_request(["0" * 64], []), "blob 000000000000 is not on the board"),
        ({"kind": "bench", "artifacts": [], "shards": []}, "'artifacts' must be a list of 1 to"),
    ],
)
def test_requests_that_cannot_be_done_say_why(session: Session, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentFailure, match=words):
        session.run(asked)
