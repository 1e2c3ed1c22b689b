"""Rules of measuring that no single part keeps: what is timed, in which order and for how long; what is watched
meanwhile; what is measured again; what a power sensor's own reading costs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import artifact_entry, bench_request, dense_tflite, fake_model, local_session, npz
from conftest import EDGEOPT, run_cli
from edgeopt_agent import energy as agent_energy
from edgeopt_agent.jobs import Context
from edgeopt_agent.power import Sensor
from edgeopt_agent.runner import Runner
from edgeopt_agent.worker import Worker
from test_watch import series

from edgeopt import measure, power
from edgeopt.artifact import Artifact
from edgeopt.device.local import LocalTransport
from edgeopt.device.session import Placement, Session
from edgeopt.energy import Readings
from edgeopt.energy import Sensor as Told


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Session]:
    with local_session(tmp_path / "root") as session:
        yield session


def invoke_s(session: Session, job: str, result: dict[str, Any], index: int = 0) -> np.ndarray:
    return np.frombuffer(session.fetch(job, result["artifacts"][index]["samples"])).reshape(-1, 2)[:, 1]


def numbered(count: int) -> bytes:
    """Samples that tell their own number."""
    return npz(np.arange(count, dtype=np.float32)[:, None].repeat(4, axis=1))


# What is timed


def test_loading_the_first_inference_and_warming_up_are_not_among_the_samples(board: Session) -> None:
    """The first 13 invokes are slow: the first inference, ten that warm up, two of the three before the first block."""
    slow = 0.1
    blob = board.send(fake_model(first_s=[slow] * 13))
    job, result = board.run(bench_request([blob], [board.send(numbered(4))], min_queries=4, min_seconds=0.0, rounds=1))
    (found,) = result["artifacts"]
    assert found["first_inference_s"] >= slow
    assert found["load_s"] < slow
    assert invoke_s(board, job, result)[:2].min() < slow


def test_only_the_invoke_is_timed(board: Session) -> None:
    """Its own work is nothing here; the input is large, so preparing and copying it take long."""
    width = 1 << 20
    request = bench_request([board.send(fake_model(shape=[1, width], invoke_s=0.0, gain=2.0))], [], min_seconds=0.1)
    request["shards"] = [board.send(npz(np.ones((2, width), np.uint8)))]
    request["artifacts"][0]["preprocess"] = [[{"op": "scale", "by": 0.5, "offset": 1.0}]]
    job, result = board.run(request)
    copy_s, own_s = np.frombuffer(board.fetch(job, result["artifacts"][0]["samples"])).reshape(-1, 2).T
    assert np.median(own_s) < np.median(copy_s)
    assert np.median(own_s) < np.median(result["artifacts"][0]["pre_s"])
    assert len(result["artifacts"][0]["post_s"]) > 0


# In which order, of what


def runner(folder: Path, **model: Any) -> Runner:
    """A worker's inside, with twelve samples."""
    (folder / "model").write_bytes(fake_model(**model))
    (folder / "shard.npz").write_bytes(numbered(12))
    entry = {**artifact_entry("", "fake"), "path": str(folder / "model")}
    return Runner(lambda: None, entry, [str(folder / "shard.npz")], most=None, random=0, cold=False)


def order_of(folder: Path, seed: int, queries: int = 24) -> list[int]:
    """The numbers of the samples that a block meets, after a warm-up with that seed."""
    own = runner(folder)
    met: list[int] = []
    copy = own.session.set_inputs
    own.warm_up(seed)
    own.session.set_inputs = lambda arrays: (met.append(int(arrays[0][0, 0])), copy(arrays))
    own.block(seconds=0.0, queries=queries, out=str(folder / "out.f64"))
    return met[-queries:]


def test_real_inputs_come_in_random_order_with_a_seed(tmp_path: Path) -> None:
    orders = [order_of(tmp_path, seed) for seed in (1, 1, 2)]
    assert all(sorted(order) == sorted([*range(12)] * 2) for order in orders)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert all(order[:12] != sorted(order[:12]) for order in orders)


def test_bench_says_that_inputs_were_random(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(dense_tflite())
    (tmp_path / "inputs.npz").write_bytes(npz(np.ones((3, 4), np.float32)))
    options = ["bench", "model.tflite", "--no-repeat", "--root", tmp_path / "root"]
    marked = short_cli(tmp_path, *options, "--random")["results"][0]["marks"]
    real = short_cli(tmp_path, *options, "--inputs", "inputs.npz")["results"][0]["marks"]
    assert ("random inputs" in marked, "random inputs" in real) == (True, False)


# How long


@pytest.mark.parametrize(
    ("mode", "queries", "seconds"), [("rapid", 64, 6.0), ("quick", 256, 10.0), ("normal", 1024, 60.0)]
)
def test_modes_ask_for_what_they_promise(mode: str, queries: int, seconds: float, tmp_path: Path) -> None:
    replay = Replay([job(STEADY)] * 2)
    for count in (1, 2):
        measure.bench(replay, [replay.artifact(tmp_path)] * count, [], mode, 0, tmp_path)  # type: ignore[arg-type]
        asked = replay.asked[-1]
        assert (asked["min_queries"], asked["min_seconds"]) == (queries, seconds)
        assert asked["cap_seconds"] == 600.0 * count
        assert asked["rounds"] >= 6, "what the ratio's interval needs"


@pytest.mark.parametrize(("queries", "seconds"), [(60, 0.0), (1, 0.8)])
def test_every_artifact_gets_both_its_queries_and_its_seconds(board: Session, queries: int, seconds: float) -> None:
    blobs = [board.send(fake_model(invoke_s=delay)) for delay in (0.001, 0.004)]
    asked = {"min_queries": queries, "min_seconds": seconds}
    _, result = board.run(bench_request(blobs, [board.send(numbered(4))], **asked))
    for index in range(2):
        own = [block for block in result["blocks"] if block["artifact"] == index]
        assert sum(block["n"] for block in own) >= queries
        assert sum(block["seconds"] for block in own) >= seconds
    assert not result["capped"]


# Under load


def test_a_query_waits_for_those_that_came_before_it(tmp_path: Path) -> None:
    """Queries of 10 ms that come every 2 ms: the last one to be served has waited for nearly all of them."""
    out = tmp_path / "arrivals.f64"
    told = runner(tmp_path, invoke_s=0.01).arrivals(rate=500.0, seconds=0.3, seed=1, out=str(out))
    waited, served = np.fromfile(out).reshape(-1, 2).T
    assert told["served"] == len(waited) <= told["offered"]
    assert waited[-1] > 0.5 * served[:-1].sum()


def test_queries_arrive_at_random_times(tmp_path: Path) -> None:
    """Poisson: the gaps between arrivals vary as much as they last, and their number is about rate by time."""
    own = runner(tmp_path)
    offered = [own.arrivals(200.0, 0.2, seed, str(tmp_path / "out.f64"))["offered"] for seed in range(12)]
    assert np.mean(offered) == pytest.approx(40, rel=0.25)
    assert np.var(offered, ddof=1) > 10  # 40 is expected; even arrivals have 0


# What is watched meanwhile


def test_the_board_is_looked_at_before_between_and_after(board: Session) -> None:
    blobs = [board.send(fake_model()) for _ in range(2)]
    request = bench_request(blobs, [board.send(numbered(4))], rounds=3, min_seconds=0.5)
    _, result = board.run(request)
    looks = result["conditions"]
    assert len(looks) == 1 + 3
    assert all(early["at_s"] < late["at_s"] for early, late in itertools.pairwise(looks))
    assert looks[-1]["at_s"] - looks[0]["at_s"] >= sum(block["seconds"] for block in result["blocks"])
    for look in looks:
        assert look.keys() >= {"temperature_c", "frequency_hz", "throttle", "throttle_count", "cooling", "others"}
        assert look["power_mode"].keys() >= {"governor", "frequency_max_hz", "boost", "nvpmodel"}
        assert look["memory_available_bytes"] > 0
        assert look["load_1min"] >= 0


class Confined(LocalTransport):
    """This machine, of which the board's processes may use one CPU."""

    def open(self, command: str) -> Any:
        return super().open(f"taskset -cp {min(os.sched_getaffinity(0))} $$ >/dev/null && {command}")


def test_threads_and_affinity_are_part_of_the_result(tmp_path: Path) -> None:
    with Session(Confined(), Placement(str(tmp_path / "root"), sys.executable)) as session:
        request = bench_request([session.send(fake_model())], [session.send(numbered(4))], rounds=1)
        request["artifacts"][0]["threads"] = 3
        _, result = session.run(request)
        assert session.facts()["cores_allowed"] == 1
    assert result["cores_allowed"] == 1
    assert result["artifacts"][0]["executed"]["threads"] == 3


# What is measured again


STEADY, RISING = [0.01] * 12, [0.01] * 6 + [0.02] * 6


def job(rounds: list[float], **changes: Any) -> dict[str, Any]:
    """What the agent says of one artifact, whose rounds take these seconds; `changes` of the last reading."""
    blocks = [
        {"artifact": 0, "round": number, "n": 10, "seconds": 10 * s, "began_s": 0.0}
        for number, s in enumerate(rounds)
        for _ in range(2)
    ]
    spread = np.linspace(0.99, 1.01, 10)
    invoke = np.concatenate([seconds * spread for seconds in rounds for _ in range(2)])
    raw = np.stack([np.zeros_like(invoke), invoke], axis=1).tobytes()
    own = {
        "samples": {"name": "samples", "size_bytes": len(raw), "sha256": "0" * 64, "raw": raw.hex()},
        **{"load_s": 0.1, "load_cold_s": 0.1, "first_inference_s": 0.2, "pre_s": [0.1], "post_s": [0.1]},
        "executed": {"threads": 1, "ops": {}, "delegate_nodes": 0, "precision": None},
        "memory": {"peak_rss_bytes": None, "above_runtime_bytes": None},
    }
    told = {"artifacts": [own], "blocks": blocks, "conditions": series(**changes), "capped": False, "renew": 0}
    return {**told, "turns": 1, "shared_cpus": [], "cores_allowed": 1}


class Replay:
    """A session with a board that says, one after the other, what it is told to."""

    address = "a board"

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.results, self.asked = results, []  # type: ignore[var-annotated]
        self.waited: list[float] = []

    def artifact(self, folder: Path) -> Artifact:
        (folder / "model.tflite").write_bytes(b"")
        return Artifact.of_files([folder / "model.tflite"], "tflite", 1, [[]], {})

    def send(self, _data: bytes, _what: str = "") -> str:
        return "0" * 64

    def run(self, request: dict[str, Any], _limit_s: float | None = None) -> tuple[str, dict[str, Any]]:
        self.asked.append(request)
        result = self.results[len(self.asked) - 1]
        count = len(request["artifacts"])
        blocks = [{**block, "artifact": index} for block in result["blocks"] for index in range(count)]
        return "job", {**result, "artifacts": result["artifacts"] * count, "blocks": blocks}

    def fetch(self, _job: str, entry: dict[str, Any]) -> bytes:
        return bytes.fromhex(entry["raw"])

    def pause(self, seconds: float) -> None:
        self.waited.append(seconds)


@pytest.mark.parametrize(
    ("results", "runs", "why", "still"),
    [
        ([job(STEADY)], 1, None, []),
        ([job(RISING), job(STEADY)], 2, "the second half is slower", []),
        ([job(STEADY, cooling=["cpufreq-cpu0 2"]), job(STEADY)], 2, "the board throttled", []),
        ([job(STEADY, throttle={"undervoltage": True}), job(STEADY)], 2, "too little voltage", []),
        ([job(RISING), job(RISING)], 2, "second half is slower", ["second half is slower"]),
    ],
)
def test_a_disturbed_run_is_repeated_once_after_a_cool_down(
    results: list[dict[str, Any]], runs: int, why: str | None, still: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    replay = Replay(results)
    given = replay, [replay.artifact(tmp_path)], [], "rapid", 0, tmp_path
    measure.settled(*given, lambda event: said.append(event["what"]))  # type: ignore[arg-type]
    found = measure.Comparison.read(tmp_path)
    assert len(replay.asked) == runs
    assert replay.waited == [measure.COOL_DOWN_S] * (runs - 1)
    assert measure.COOL_DOWN_S >= 10
    marks = found.conditions()["marks"]
    assert len(marks) == len(still)
    assert all(words in mark for words, mark in zip(still, marks, strict=True))
    last = bytes.fromhex(results[-1]["artifacts"][0]["samples"]["raw"])
    assert np.array_equal(found.seconds(0), np.frombuffer(last)[1::2])
    if why is None:
        assert (found.conditions()["repeated"], said) == (None, [])
    else:
        assert why in found.conditions()["repeated"]
        assert f"measuring again after {measure.COOL_DOWN_S:.0f} s" in said[0]


SHORT = """
from edgeopt import measure, stats
from edgeopt.cli import main
measure.COOL_DOWN_S = 0.1
stats.MODES["rapid"] = stats.Mode(64, 0.3)
main()
"""
WITH_TREE = 'mount --bind "$1" /sys/class && shift && exec "$@"'


def require_namespace() -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a command another /sys/class (a mount namespace)")


def short_cli(folder: Path, *arguments: object, before: tuple[object, ...] = ()) -> Any:
    """The command, with modes that last a moment; its JSON."""
    command = [*before, sys.executable, "-c", SHORT, *arguments, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def throttling(tmp_path: Path) -> tuple[tuple[Any, ...], str]:
    """(what goes before a command so that it sees a cooling device holding the processor back, where the kernel shows
    it: Documentation/driver-api/thermal; what is then said)."""
    require_namespace()
    device = tmp_path / "class" / "thermal" / "cooling_device0"
    device.mkdir(parents=True)
    (device / "type").write_text("cpufreq-cpu0\n")
    (device / "cur_state").write_text("2\n")
    before = ("unshare", "--mount", "sh", "-c", WITH_TREE, "sh", tmp_path / "class")
    return before, "the board throttled (cooling device cpufreq-cpu0 2)"


LOAD = ("load", "--seconds", "1", "--streams", "1", "--rate", "20")


@pytest.mark.parametrize(
    ("command", "jobs"),
    [(("bench",), 2), (("bench", "--no-repeat"), 1), (LOAD, 4), ((*LOAD, "--no-repeat"), 2)],
)
def test_what_throttled_is_repeated_by_default_and_marked(command: tuple[str, ...], jobs: int, tmp_path: Path) -> None:
    before, throttled = throttling(tmp_path)
    (tmp_path / "model.tflite").write_bytes(dense_tflite())
    asked = [*command, "model.tflite", "--random", "--root", tmp_path / "root"]
    found = short_cli(tmp_path, *asked, before=before)
    if command[0] == "bench":
        assert throttled in found["results"][0]["marks"]
    else:
        assert throttled in found["marks"]
        assert throttled in found["repeated"] if jobs == 4 else found["repeated"] is None
    assert len(list((tmp_path / "root" / "jobs").glob(f"{command[0]}-*"))) == jobs


@pytest.mark.parametrize(("option", "jobs"), [((), 2), (("--no-repeat",), 1)])
def test_a_validation_repeats_what_throttled(
    bundle_file: Path, option: tuple[str, ...], jobs: int, tmp_path: Path
) -> None:
    before, throttled = throttling(tmp_path)
    root = ["--root", tmp_path / "root"]
    assert run_cli("flash", bundle_file, *root).returncode == 0
    validate = ["validate", bundle_file, *root, "--allow-undecided", *option]
    conditions = short_cli(tmp_path, *validate, before=before)["conditions"]
    assert throttled in conditions["marks"]
    assert throttled in conditions["repeated"] if jobs == 2 else conditions["repeated"] is None
    assert len(list((tmp_path / "root" / "jobs").glob("bench-*"))) == jobs


# Energy: what the board does when, and what sampling costs


class Local(Context):
    """A job whose blobs lie in its folder."""

    def blob(self, sha256: Any) -> str:
        return os.path.join(self.root, sha256)


def test_idle_windows_stand_before_and_after_and_the_sampler_rests_in_every_other_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_at: list[float] = []
    blocks: list[tuple[float, float]] = []

    def read() -> float:
        read_at.append(time.monotonic())
        return 5.0

    ask = Worker.ask

    def told(self: Worker, op: str, **parameters: Any) -> Any:
        began = time.monotonic()
        answer = ask(self, op, **parameters)
        if op == "block":
            blocks.append((began, time.monotonic()))
        return answer

    monkeypatch.setattr(agent_energy.power, "choose", lambda *_: Sensor("fake", "all", "", read, interval_s=0.02))
    monkeypatch.setattr(Worker, "ask", told)
    monkeypatch.setattr(agent_energy, "SETTLE_S", 0.05)
    (tmp_path / "model").write_bytes(fake_model())
    (tmp_path / "shard").write_bytes(numbered(4))
    request = {
        **{"artifacts": [artifact_entry("model", "fake")] * 2, "shards": ["shard"], "sensor": {"kind": None}},
        **{"windows": 2, "window_seconds": 0.2, "idle_seconds": 0.2, "overhead_rounds": 1, "seed": 0},
    }
    found = agent_energy.run(Local(str(tmp_path), str(tmp_path)), request)
    assert [mark["artifact"] for mark in found["marks"]] == [None, 0, 1, 1, 0, None]
    assert [mark["n"] > 0 for mark in found["marks"]] == [False, True, True, True, True, False]
    assert all(mark["ended_s"] - mark["began_s"] >= 0.2 for mark in found["marks"])
    assert all(early["ended_s"] <= late["began_s"] for early, late in itertools.pairwise(found["marks"]))
    sampled = [sum(began + 0.1 < at < ended for at in read_at) for began, ended in blocks]
    assert [block["sampling"] for block in found["overhead"]] == [count > 0 for count in sampled]
    assert [count > 0 for count in sampled] == [False, True, True, False]


def test_what_the_sampler_costs_is_latency_with_it_over_latency_without() -> None:
    blocks = [{"sampling": number % 4 in (1, 2), "n": 8} for number in range(24)]
    seconds = np.concatenate([np.full(8, 0.0103 if block["sampling"] else 0.01) for block in blocks])
    readings = Readings(Told("hwmon", "VDD_IN", "power_w", 0.1), np.zeros(0), np.zeros(0))
    found = power.Run({"overhead": blocks}, readings, [], seconds).overhead()
    assert found is not None
    assert found["value"] == pytest.approx(1.03)
    assert found["interval"] == pytest.approx([1.03, 1.03])


# What `make bench` says


@pytest.fixture
def make_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Callable[..., None]]:
    """tests/bench/run.py, and what makes all its referees one that takes `seconds`, beside own figures of `ratios`."""
    folder = Path(__file__).parent / "bench"
    models = types.SimpleNamespace(artifact=lambda *_: tmp_path / "model.tflite")
    monkeypatch.setitem(sys.modules, "efficientnet", models)
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("make_bench", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_bench", script)
    spec.loader.exec_module(script)

    def measured(seconds: float, ratios: list[float], turns: list[str]) -> None:
        left = iter(ratios)

        def own(*_: Any) -> float:
            turns.append("own")
            return seconds * next(left)

        def referee(*_: Any) -> float:
            turns.append("referee")
            return seconds

        monkeypatch.setattr(script, "ours", own)
        monkeypatch.setattr(script, "REFEREES", {"other": script.Referee("tflite", "p50_s", 0.02, referee)})
        monkeypatch.setattr(sys, "argv", ["run.py", "--rounds", str(len(ratios) // 2), "--referees", "other"])

    return script, measured


def test_make_bench_gives_the_median_of_pairs_with_min_and_max(make_bench: Any, capsys: Any) -> None:
    script, measured = make_bench
    turns: list[str] = []
    measured(0.01, [1.01, 1.00, 1.50] * 2, turns)
    assert script.main() == 0
    assert turns[:6] == ["own", "referee", "referee", "own", "own", "referee"]
    assert "edgeopt / other = 1.010 (1.000 to 1.500, 3 pairs)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "code", "said"), [(0.01, 1, "missed: other fp32"), (0.0049, 0, "too short to judge")]
)
def test_make_bench_judges_models_of_5_ms_and_more(
    make_bench: Any, seconds: float, code: int, said: str, capsys: Any
) -> None:
    script, measured = make_bench
    measured(seconds, [1.03] * 6, [])
    assert script.main() == code
    assert said in capsys.readouterr().out


def test_referees_run_with_threads_and_precision_pinned(make_bench: Any, monkeypatch: Any, tmp_path: Path) -> None:
    script, _ = make_bench
    ran: list[list[str]] = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, **_: ran.append(command))
    (tmp_path / "litert.json").write_text('{"latency": {"median_ms": 5.0}}')
    (tmp_path / "benchmark_report.json").write_text('{"execution_results": {"latency (ms)": 5.0}}')
    assert script.litert_benchmark(tmp_path / "m.tflite", 3, tmp_path) == 0.005
    assert script.benchmark_app(tmp_path / "m.xml", 3, tmp_path) == 0.005
    litert, openvino = (" ".join(command) for command in ran)
    assert "--num_threads 3" in litert
    for words in ("-nthreads 3", "-infer_precision f32", "-api sync", "-nstreams 1"):
        assert words in openvino


def test_counters_that_only_root_may_read_are_said_to_be(tmp_path: Path) -> None:
    """What cannot be read stands for what may not be: root, who runs this, may read all."""
    require_namespace()
    zone = tmp_path / "class" / "powercap" / "intel-rapl:0"
    (zone / "energy_uj").mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    before = ("unshare", "--mount", "sh", "-c", WITH_TREE, "sh", tmp_path / "class")
    command = [*before, EDGEOPT, "power", "--list", "--root", tmp_path / "root"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no power sensor to this user" in done.stdout
