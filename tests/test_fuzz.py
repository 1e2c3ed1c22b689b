"""Fuzzers, bounded and seeded: whatever a bundle, a host, a board or a run folder says, it is used, or refused by a
typed error; nothing else is raised, nothing hangs, nothing is written elsewhere."""

from __future__ import annotations

import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bundle_variants
import click
import lying_board
import mutations
import numpy as np
import pytest
from boards import bench_request, dense_bundle, dense_tflite, fake_model, npz
from edgeopt_agent import jobs, main, releases, requests, store, wire
from test_watch import QUIET

from edgeopt import bundle as bundles
from edgeopt import device, power, stats, validate, visible
from edgeopt.cli import cli
from edgeopt.device import session as session_module
from edgeopt.diagnose import prepared
from edgeopt.errors import ConfigError, EdgeoptError, IntegrityError

LONGEST_S = 20.0  # of one case, on a busy machine


def everything(folder: Path) -> dict[str, bytes | str]:
    """What lies below a folder: content of files, targets of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@contextlib.contextmanager
def nothing_outside(tree: Path, *ours: str) -> Iterator[None]:
    """Only the folders `ours` of a tree may change meanwhile, and not for longer than LONGEST_S."""

    def others() -> dict[str, bytes | str]:
        return {name: held for name, held in everything(tree).items() if name.split("/")[0] not in ours}

    before = others()
    yield
    assert others() == before
    assert not Path("/tmp/edgeopt-written").exists()


# Bundles


def tiny_bundle() -> tuple[dict[str, Any], dict[str, bytes]]:
    """(manifest, blobs by SHA-256) of a bundle for the agent's fake runtime."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        blobs[sha256] = data
        return {"sha256": sha256, "size_bytes": len(data)}

    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    labels = np.array([3, 3, 3, 3, 3, 0])
    golden = npz(rows[:1], raw0=np.frombuffer(b"words", np.uint8), name0=np.array("a.txt"), prepare=np.array("{}"))
    manifest = {
        **{"format": 1, "name": "tiny", "created_by": "edgeopt 0", "profile": "generic-x86-64", "verdict": "pass"},
        **{"root": "/var/lib/edgeopt", "python": "python3", "budgets": {"latency_p50_s": 0.1}},
        "artifact": {
            **{"file": "m.json", "runtime": "fake", "threads": 1, "options": {}, "frequency_max_hz": None},
            "preprocess": [
                [{"op": "scale", "by": 2.0, "offset": 0.5}, {"op": "normalize", "mean": [0.5], "std": [2.0], "axis": 1}]
            ],
        },
        "files": {"m.json": add(fake_model()), "health.npz": add(npz(rows, labels=labels, expected0=rows))},
        "health": {
            **{"file": "health.npz", "metric": "top1", "of": 6, "least_correct": 1},
            **{"greatest_median_latency_s": 1.0, "greatest_output_error": 1e9},
        },
        "policy": {"confirm_within_s": None},
        "evaluation": {
            "shards": [add(npz(rows, source0=rows, labels=labels, groups=np.arange(6)))],
            **{"metric": "top1", "n": 6, "floor_drop": 0.01, "classes": ["a", "b", "c", "d"]},
            **{"golden": add(golden), "confidence_threshold": 0.5},
        },
        "lineage": {"reference": {"file": "net.onnx"}, "steps": [{"kind": "lower"}]},
    }
    return manifest, blobs


def packed(text: bytes, blobs: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", text)
        for sha256, data in blobs.items():
            archive.writestr(f"blobs/{sha256}", data)
    return buffer.getvalue()


def mutated_bundle(manifest: dict[str, Any], blobs: dict[str, bytes], chance: random.Random) -> bytes:
    """One whose manifest differs, whose bytes do, or whose arrays do under hashes that are right."""
    way = chance.random()
    if way < 0.7:
        return packed(json.dumps(mutations.document(manifest, chance)).encode(), blobs)
    if way < 0.85:
        return mutations.data(packed(json.dumps(manifest).encode(), blobs), chance)
    old = chance.choice(list(blobs))
    data = odd_arrays(chance) if chance.random() < 0.5 else mutations.data(blobs[old], chance)
    new = hashlib.sha256(data).hexdigest()
    text = json.dumps(manifest).replace(
        f'"{old}", "size_bytes": {len(blobs[old])}', f'"{new}", "size_bytes": {len(data)}'
    )
    return packed(text.encode(), {**blobs, new: data})


def odd_arrays(chance: random.Random) -> bytes:
    """An archive of samples whose arrays do not fit one another, or claim to be what they are not."""
    kinds = [
        np.zeros((6, 4), np.float32), np.zeros((5, 4)), np.zeros((6, 0)), np.zeros(6), np.float32(1), np.zeros((0, 4)),
        np.full((6, 4), np.nan), np.full((6, 4), 1e308), np.array(["a"] * 6), np.zeros(6, "M8[s]"), np.arange(6),
        np.zeros((6, 2, 2), np.complex64), np.full(6, -3), np.zeros(6, [("a", int)]), np.full(6, 2**62),
    ]  # fmt: skip
    names = (
        "input0",
        "input1",
        "input2",
        "source0",
        "source1",
        "labels",
        "groups",
        "expected0",
        "raw0",
        "name0",
        "prepare",
    )
    buffer = io.BytesIO()
    save = chance.choice((np.savez, np.savez_compressed))
    save(buffer, **{name: chance.choice(kinds) for name in chance.sample(names, chance.randrange(1, 8))})  # type: ignore[arg-type]
    data = buffer.getvalue()
    if chance.random() < 0.3:  # a header that says more than there is
        data = data.replace(b"(6,", chance.choice((b"(9,", b"(-6", b"(6e")))
    return data


def use_bundle(path: Path) -> bundles.Bundle:
    """All that the host reads of a bundle without a board."""
    opened = bundles.read(path)
    opened.check()
    validate.mode_for(opened, None)
    validate.reference_of(opened)
    for work in (validate.read_pack, validate.health_inputs, prepared.golden):
        with contextlib.suppress(EdgeoptError):
            work(opened)
    return opened


@pytest.mark.parametrize("seed", range(5))
def test_mutated_bundles_are_used_or_refused(seed: int, tmp_path: Path) -> None:
    manifest, blobs = tiny_bundle()
    path, root = tmp_path / "b.edgeopt", tmp_path / "root"
    (tmp_path / "beside").mkdir()
    main.prepare(str(root))
    accepted = 0
    with nothing_outside(tmp_path, "b.edgeopt", "root"):
        for number in range(1000):
            chance = random.Random(f"bundle {seed} {number}")
            path.write_bytes(mutated_bundle(manifest, blobs, chance))
            began = time.monotonic()
            try:
                opened = use_bundle(path)
            except (ConfigError, IntegrityError):
                continue
            finally:
                assert time.monotonic() - began < LONGEST_S, number
            accepted += 1
            found = requests.manifest(opened.text)  # what the host takes, the agent takes
            assert found["files"].keys() == opened.manifest.files.keys()
            if accepted <= 3:
                activate(root, opened, tmp_path / "root" / f"job-{number}")
    assert accepted > 10, "a fuzzer that only meets refusals sees little"


def activate(root: Path, opened: bundles.Bundle, folder: Path) -> None:
    """The agent's part of a flash, in this process but for the worker."""
    folder.mkdir()
    for entry in opened.manifest.files.values():
        data = opened.blob(entry)
        store.put(str(root), entry.sha256, len(data), 0, data)
    request = {"kind": "activate", "release": opened.release, "manifest": opened.text}
    requests.job_request(request)
    with contextlib.suppress(wire.RemoteError):
        releases.activate(jobs.Context(str(root), str(folder)), request)


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", ".", "", "a\0b", "x" * 300, "manifest.json", "a\nb"])
def test_the_agent_makes_no_link_for_a_name_that_leaves_its_folder(name: str, tmp_path: Path) -> None:
    manifest, _ = tiny_bundle()
    manifest["files"][name] = manifest["files"]["m.json"]
    text = json.dumps(manifest)
    root, folder = tmp_path / "root", tmp_path / "root" / "job"
    main.prepare(str(root))
    folder.mkdir()
    request = {"kind": "activate", "manifest": text, "release": hashlib.sha256(text.encode()).hexdigest()}
    with nothing_outside(tmp_path, "root"), pytest.raises(wire.RemoteError, match="manifest") as caught:
        releases.activate(jobs.Context(str(root), str(folder)), request)
    assert caught.value.kind == "bad-request"
    assert everything(folder) == {}


# Requests to the agent


def plain_requests() -> list[dict[str, Any]]:
    sha256 = hashlib.sha256(b"blob").hexdigest()
    known = {"op": "job.start", "job": "known"}
    manifest, _ = tiny_bundle()
    energy = {"kind": "energy", "windows": 1, "window_seconds": 1.0, "idle_seconds": 1.0, "overhead_rounds": 0}
    bench = bench_request([sha256], [sha256])
    one = bench["artifacts"][0]
    load = {"streams": [1], "batches": [2], "rates": [1.0], "repeats": 0, "seconds": 1.0, "seed": 0}
    asked = [
        bench,
        {"kind": "infer", "artifact": one, "shards": [sha256]},
        {"kind": "operators", "artifact": one, "shards": [], "runs": 1},
        {**energy, "artifacts": [one], "shards": [], "seed": 0, "sensor": {"kind": "rapl", "rail": None}},
        {"kind": "load", "artifact": one, "shards": [], **load},
        {"kind": "activate", "manifest": json.dumps(manifest), "release": sha256},
        {
            "kind": "set-up",
            "wheels": {"a-1-py3-none-any.whl": sha256},
            "runtimes": ["tflite"],
            "system_packages": False,
        },
        {"kind": "rollback"},
    ]
    return [
        {"op": "hello"},
        {"op": "clock"},
        {"op": "blob.stat", "sha256": [sha256, "0" * 64]},
        {"op": "blob.put", "sha256": sha256, "size_bytes": 4, "offset": 0},
        {"op": "job.poll", "job": "known", "offset": 0, "wait_s": 0.0},
        {"op": "job.file", "job": "known", "name": "request.json", "offset": 0, "limit": 100},
        {"op": "job.cancel", "job": "known"},
        {"op": "status", "verify": True},
        *[{**known, "request": request} for request in asked],
    ]


def served(root: Path, stream: bytes) -> list[dict[str, Any]]:
    """The agent's replies to a stream, each whole."""
    sink = io.BytesIO()
    main.serve(str(root), io.BytesIO(stream), sink)
    answered = io.BytesIO(sink.getvalue())
    assert answered.readline() + answered.readline() == b"\n" + wire.SENTINEL + b"\n"
    replies = []
    with contextlib.suppress(EOFError):
        while True:
            replies.append(wire.receive(answered.readline, answered.read)[0])
    return replies


@pytest.mark.parametrize("seed", range(5))
def test_mutated_requests_are_answered(seed: int, tmp_path: Path) -> None:
    """1,000 in streams of 50; in some, bytes differ, and the agent may end such a conversation, but no other."""
    root, known = tmp_path / "root", tmp_path / "root" / "jobs" / "known"
    main.prepare(str(root))
    known.mkdir()  # a job that ended: asked for again, none is started
    (known / "request.json").write_text('{"kind": "rollback"}')
    (known / "process.json").write_text('{"pid": 0}')
    (known / "result.json").write_text('{"ok": true, "result": {}}')
    plain = plain_requests()
    with nothing_outside(tmp_path, "root"):
        for stream in range(20):
            chance = random.Random(f"request {seed} {stream}")
            garbled = stream % 4 == 0
            sent = []
            for number in range(50):
                message = mutations.document({"id": number, **chance.choice(plain)}, chance)
                if not garbled and not isinstance(message, dict):  # a line that is no object ends a conversation
                    message = {"id": number, "op": "status", "verify": message}
                if isinstance(message, dict):
                    message.pop("bytes", None)
                    if message.get("job") not in (None, "known"):
                        message["op"] = "job.poll"  # nothing is started under another name
                sent.append(json.dumps(message).encode() + b"\n")
            whole = b"".join(line for line in sent if b"NaN" not in line and b"Infinity" not in line)
            began = time.monotonic()
            replies = served(root, mutations.data(whole, chance) if garbled else whole)
            assert time.monotonic() - began < LONGEST_S
            assert garbled or len(replies) == whole.count(b"\n")
            for reply in replies:
                assert reply["ok"] or reply["error"]["kind"] in wire.ERROR_KINDS
                assert reply["ok"] or "Error: " not in reply["error"]["message"], reply
    shutil.rmtree(root)


# Run folders


def run_command(*arguments: object) -> tuple[int | None, str]:
    """(exit code of the error, None for none; what was printed) of a command in this process."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            cli.main([str(argument) for argument in arguments], standalone_mode=False)
        except (EdgeoptError, click.ClickException) as error:
            told.write(visible.message(error))
            return error.exit_code, told.getvalue()
    return None, told.getvalue()


def require_harmless(shown: str) -> None:
    """What was printed draws only what is printable."""
    strange = {sign for sign in shown if not (sign.isprintable() or sign == "\n")}
    assert not strange, (strange, shown[:2000])


def show_mutated_runs(whole: Path, work: Path, seed: int, count: int) -> int:
    """`report`, --recompute and --against of `count` changed copies of run.json; how many of them were shown."""
    plain, out = json.loads((whole / "run.json").read_text()), work / "two.html"
    for name in ("run", "light"):
        shutil.copytree(whole, work / name)
    for path in (work / "light" / "samples").glob("*.npz"):  # which cost most of the time
        if not path.name.endswith("selection.npz"):
            path.unlink()
    shown = 0
    with nothing_outside(work, "run", "light", "two.html"):
        for number in range(count):
            chance = random.Random(f"run {seed} {number}")
            run = work / ("light" if number % 20 else "run")
            (run / "run.json").write_text(json.dumps(mutations.document(plain, chance)))
            ways: list[list[object]] = [[run], [run, "--against", whole], [whole, "--against", run, "--out", out]]
            for way in (ways[number % 3], [run, "--recompute", *(["--json"] if number % 2 else [])]):
                began = time.monotonic()
                code, said = run_command("report", *way)
                assert time.monotonic() - began < LONGEST_S, (number, way)
                assert code in (None, 2, 5), (number, code)
                require_harmless(said)
                shown += code is None
    return shown


@pytest.mark.parametrize("seed", range(2))
def test_mutated_runs_are_shown_or_refused(seed: int, small_run: Path, tmp_path: Path) -> None:
    assert show_mutated_runs(small_run, tmp_path, seed, 500) > 50


# Replies to the host


class Recorded(NamedTuple):
    """A command and what a board said while it ran."""

    arguments: list[object]
    said: lying_board.Said
    kept: Path | None = None  # a folder of --keep that holds all of it


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Recorded]]:
    """Conversations with a real agent, measured in a moment."""
    folder = tmp_path_factory.mktemp("recorded")
    model, inputs = folder / "dense.tflite", folder / "inputs.npz"
    model.write_bytes(dense_tflite())
    rows = np.arange(480, dtype=np.float32).reshape(120, 4)
    inputs.write_bytes(npz(rows))
    for number in range(2):
        bundle_to_validate(folder / f"v{number}.edgeopt", rows[:40] + number)
    commands: dict[str, list[object]] = {
        "flash": ["flash", folder / "v0.edgeopt"],
        "flash over": ["flash", folder / "v1.edgeopt"],
        "status": ["status"],
        "validate": ["validate", folder / "v1.edgeopt", "--no-repeat", "--allow-undecided"],
        "rollback": ["rollback"],
        "bench": ["bench", model, "--inputs", inputs, "--no-repeat", "--operators"],
        "compare": ["compare", model, folder / "v0.edgeopt", "--random", "--no-repeat"],
        "load": ["load", model, "--inputs", inputs, "--no-repeat", "--seconds", "1", "--batch", "2"],
        "sensors": ["power", "--list"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_CACHE", str(folder / "cache"))
        patch.setitem(stats.MODES, "rapid", stats.Mode(64, 0.2, renew=0))
        patch.setattr(session_module, "FIRST_PAUSE_S", 0.0)
        found = {}
        for name, arguments in commands.items():
            recorder = lying_board.Recorder(folder / "board")
            patch.setattr(device, "open_transport", lambda _, say=recorder: lying_board.BoardHere(say))
            code, said = run_command(*arguments, "--root", folder / "board")
            assert code is None, (name, said)
            found[name] = Recorded(arguments, recorder.said)
        for name in ("bench", "load", "validate"):  # the same again, to be kept
            say = lying_board.Replay(found[name].said)
            patch.setattr(device, "open_transport", lambda _, say=say: lying_board.BoardHere(say))
            code, said = run_command(*found[name].arguments, "--keep", folder / name, "--root", folder / "board")
            assert code is None, (name, said)
            found[name] = found[name]._replace(kept=folder / name)
        yield found


def bundle_to_validate(path: Path, rows: np.ndarray[Any, Any]) -> None:
    """A bundle of `dense_tflite` with an evaluation pack."""
    dense_bundle(path, 4, 3)
    opened = bundles.read(path)
    labels = np.arange(len(rows)) % 3
    shard = npz(rows, source0=rows[:, :3], labels=labels, groups=np.arange(len(rows)) % 7)
    manifest = opened.manifest.model_dump(mode="json")
    blobs = {entry.sha256: opened.blob(entry) for entry in opened.manifest.files.values()}
    entry = bundle_variants.add(blobs, shard)
    manifest["evaluation"] = {
        **{"shards": [entry], "metric": "top1", "n": len(rows), "floor_drop": 0.5, "classes": []},
        **{"golden": None, "confidence_threshold": None},
    }
    bundles.write(path, bundles.Manifest.model_validate(manifest), blobs)


@pytest.mark.parametrize("seed", range(4))
def test_lying_boards_are_believed_or_refused(
    seed: int, recorded: dict[str, Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    codes: collections.Counter[int | None] = collections.Counter()
    names = list(recorded)
    with nothing_outside(tmp_path):
        for number in range(250):
            chance = random.Random(f"board {seed} {number}")
            arguments, said, _ = recorded[names[number % len(names)]]
            liar = lying_board.Liar(said, chance)
            monkeypatch.setattr(device, "open_transport", lambda _, say=liar: lying_board.BoardHere(say))
            as_json = ["--json"] if chance.random() < 0.3 else []
            began = time.monotonic()
            try:
                code, shown = run_command(*arguments, *as_json, "--root", "/nowhere")
            except lying_board.NothingToSay:
                continue
            assert time.monotonic() - began < LONGEST_S, number
            assert code in (None, 3, 4, 5, 6), (number, code, shown)
            require_harmless(shown)
            codes[code] += 1
    assert codes[4] > 20, codes
    assert codes[None] > 5, codes


def energy_result() -> tuple[dict[str, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(result of a job of energy, its readings, samples with and without the sampler) of a sensor and two artifacts."""
    windows = [None, 0, 1, 1, 0, 0, 1, None]
    marks = [
        {"artifact": who, "n": 0 if who is None else 40, "began_s": 100.0 + 12 * at, "ended_s": 111.0 + 12 * at}
        for at, who in enumerate(windows)
    ]
    sensor = {"kind": "hwmon", "rail": "VDD", "where": "/sys", "quantity": "power_w", "interval_s": 0.1}
    executed = {"threads": 1, "ops": {"FAKE": 1}, "delegate_nodes": 0, "precision": None}
    output = {"name": "power.f64", "size_bytes": 16, "sha256": "0" * 64}
    result = {
        "sensor": {**sensor, "resolution": 1e-6, "range_j": None, "period_s": 0.1},
        **{"marks": marks, "clocks": [], "failures": {"gone": 1}, "products": [[2.0, 5.0, 0.4]], "power": output},
        "overhead": [{"sampling": number % 4 in (1, 2), "n": 10} for number in range(24)],
        **{"overhead_samples": output, "executed": [executed, executed], "frequency_max_hz": [None, None]},
        **{"conditions": [copy.deepcopy(QUIET) for _ in range(4)], "cores_allowed": 2, "meter": None},
    }
    times = np.arange(99.0, 200.0, 0.1)
    return result, np.stack([times, np.full(len(times), 2.0)], axis=1), np.full((240, 2), 0.001)


def use_energy(result: dict[str, Any], rows: np.ndarray[Any, Any], overhead: np.ndarray[Any, Any]) -> bool:
    """All figures of it; False where it is refused."""
    try:
        run = power.Run.of(result, rows, overhead)
    except ValueError:
        return False
    found = [run.per_inference(0), run.ratio(1, 0, "energy_j").to_json(), run.told(), run.overhead(), run.remarks()]
    times, watts = run.watts()
    json.dumps([*found, times.tolist(), [value for value in watts.tolist() if np.isfinite(value)]], allow_nan=False)
    return True


def test_what_a_lying_sensor_tells_is_a_figure_or_refused() -> None:
    result, rows, overhead = energy_result()
    assert use_energy(result, rows, overhead)
    used = 0
    for number in range(400):
        chance = random.Random(f"energy {number}")
        odd = [rows.copy(), overhead.copy()]
        told = result
        if number % 2:
            told = json.loads(json.dumps(mutations.document(result, chance)))
        else:
            which = chance.randrange(2)
            some = slice(chance.randrange(len(odd[which])), None, chance.choice((1, 2, 100)))
            odd[which][some, chance.randrange(2)] = chance.choice(lying_board.NUMBERS)
            odd[which] = odd[which][: chance.choice((None, 0, 1, 7))]
        if isinstance(told, dict):
            told.setdefault("meter", None)
            told["meter"] = None  # what a meter said is the host's own
        used += use_energy(told, *odd)
    assert used > 20


@pytest.mark.parametrize("name", ["bench", "load", "validate"])
def test_mutated_kept_folders_are_shown_or_refused(name: str, recorded: dict[str, Recorded], tmp_path: Path) -> None:
    whole, kept = recorded[name].kept, tmp_path / "kept"
    assert whole is not None
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name != "lock"]
    with nothing_outside(tmp_path, "kept"):
        for number in range(100):
            chance = random.Random(f"kept {name} {number}")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(whole, kept)
            path = kept / chance.choice(files)
            if path.suffix == ".json" and chance.random() < 0.9:
                path.write_text(json.dumps(mutations.document(json.loads(path.read_text()), chance)))
            else:
                path.write_bytes(mutations.data(path.read_bytes(), chance))
            for way in ([], ["--recompute"]):
                began = time.monotonic()
                code, said = run_command("report", kept, *way)
                assert time.monotonic() - began < LONGEST_S, number
                assert code in (None, 2, 5), (number, code, said)
                require_harmless(said)
