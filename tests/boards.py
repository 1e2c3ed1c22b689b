"""What tests of the agent and of transports share: small models, samples, Pythons of boards, and processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_board import LoopbackBoard

from edgeopt.device import Address, parse_address
from edgeopt.device.local import LocalTransport
from edgeopt.device.session import Placement, Session

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt-tests"
BOARD_PACKAGES = ("numpy<2", "tflite-runtime")
NEWER_PACKAGES = ("numpy", "ai-edge-litert")  # tflite-runtime ended with Python 3.11


def npz(*inputs: np.ndarray, **others: np.ndarray) -> bytes:
    """A shard of samples, inputs (n, ...)."""
    buffer = io.BytesIO()
    np.savez(buffer, **{f"input{i}": array for i, array in enumerate(inputs)}, **others)
    return buffer.getvalue()


def samples(count: int = 4, width: int = 4) -> bytes:
    """A shard of (count, width) float32."""
    return npz(np.arange(count * width, dtype=np.float32).reshape(count, width))


def fake_model(**says: Any) -> bytes:
    """A model of the agent's fake runtime, taking (1, 4) float32."""
    return json.dumps({"shape": [1, 4], "invoke_s": 0.0005, **says}).encode()


def dense_tflite(inputs: int = 4, outputs: int = 3) -> bytes:
    """A TFLite model of one FULLY_CONNECTED operator, (1, inputs) -> (1, outputs) float32; weights are k % 7 - 3."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    weights = (np.arange(outputs * inputs) % 7 - 3).astype("<f4")
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    buffers = [schema.BufferT() for _ in range(2)]
    buffers[1].data = np.frombuffer(weights.tobytes(), dtype=np.uint8)
    tensors = []
    for name, shape, buffer in (("x", [1, inputs], 0), ("w", [outputs, inputs], 1), ("y", [1, outputs], 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, shape, buffer, schema.TensorType.FLOAT32
        tensors.append(tensor)
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators, graph.name = tensors, [0], [2], [operator], "main"
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def artifact_entry(sha256: str, runtime: str) -> dict[str, Any]:
    """How a job request names an artifact of one file."""
    plain = {"threads": 1, "preprocess": [], "options": {}}
    return {"file": "model", "files": {"model": sha256}, "runtime": runtime, **plain}


def bench_request(blobs: list[str], shards: list[str], **changes: Any) -> dict[str, Any]:
    """A short bench of fake models."""
    artifacts = [artifact_entry(sha, "fake") for sha in blobs]
    short = {"min_queries": 12, "min_seconds": 0.05, "cap_seconds": 60.0, "rounds": 2, "block_seconds": 60.0, "seed": 0}
    return {"kind": "bench", "renew": 0, "artifacts": artifacts, "shards": shards, **short, **changes}


def long_bench(session: Session, seconds: float = 30.0) -> dict[str, Any]:
    """A request whose job measures for about `seconds`, in 10 rounds; its blobs are on the board."""
    blobs = [session.send(fake_model())]
    return bench_request(blobs, [session.send(samples())], min_seconds=seconds, rounds=10)


def local_session(root: Path, python: str | None = None, **how: Any) -> Session:
    return Session(LocalTransport(), Placement(str(root), python or sys.executable), **how)


def ssh_address(server: LoopbackBoard, transport: str = "paramiko") -> Address:
    return parse_address(server.address, server.identity, server.known_hosts, transport)


def in_background(session: Session, request: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    """Session.run in a thread, and what it returned or raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(session.run(request))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def until(holds: Callable[[], Any], what: str, patience_s: float = 30.0) -> Any:
    """What `holds` returned when it first was true."""
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not come within {patience_s:.0f} s"
        time.sleep(0.005)
    return found


def job_folders(root: Path) -> list[Path]:
    return sorted((root / "jobs").iterdir()) if (root / "jobs").exists() else []


def events(folder: Path) -> list[dict[str, Any]]:
    """The whole events that a job has written so far."""
    path = folder / "events.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def progress_of(root: Path) -> Path | None:
    """The folder of the one job under `root`, once it is in the middle of measuring."""
    folders = job_folders(root)
    return folders[0] if folders and any(event["event"] == "progress" for event in events(folders[0])) else None


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent's pid, command line) of every live process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if stat[0] not in ("Z", "X"):
                    command = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
                    yield int(entry.name), int(stat[1]), command
            except (FileNotFoundError, ProcessLookupError):
                continue


def children(pid: int) -> list[int]:
    return [child for child, parent, _ in processes() if parent == pid]


def workers_of(job: Path) -> list[int]:
    """Worker processes of a running job."""
    return children(json.loads((job / "process.json").read_text())["pid"])


def cable_addresses(kind: int) -> tuple[str, str]:
    """(this machine's, the board's) on a cable between them: of each test process and each kind of cable its own."""
    number = kind + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    return f"10.213.{number}.1", f"10.213.{number}.2"


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """`work` in a thread of its own; its event is set, and it is waited for, where the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_alive(pid: int) -> bool:
    return any(found == pid for found, _, _ in processes())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def pyenv_python(version: str) -> str:
    """A Python of that version from pyenv; skips the test where there is none."""
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not found:
        pytest.skip(f"no Python {version} in ~/.pyenv/versions")
    return str(found[-1])


def board_python(version: str) -> str:
    """A Python of that version with a TFLite runtime, made once per machine; skips where it cannot be made."""
    base = pyenv_python(version)
    packages = NEWER_PACKAGES if version in ("3.12", "3.13") else BOARD_PACKAGES
    key = hashlib.sha256(f"{base} {packages}".encode()).hexdigest()[:12]
    folder = CACHE / f"python{version}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"pip cannot install {packages} for Python {version}: {done.stderr[-300:]}")
            (folder / "complete").touch()
    return str(folder / "bin" / "python")


def ssh_sessions(server: int) -> list[int]:
    """The processes of a running server that serve connections: its descendants named sshd, sshd-session, dropbear."""
    names = ("sshd", "dropbear")
    found = [pid for pid in children(server) if Path(f"/proc/{pid}/comm").read_text().startswith(names)]
    return found + [deeper for pid in found for deeper in ssh_sessions(pid)]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def dense_bundle(path: Path, inputs: int, outputs: int) -> None:
    """A bundle of `dense_tflite` whose health check only asks for finite outputs."""
    from edgeopt import bundle as bundles

    files = {"model.tflite": dense_tflite(inputs, outputs)}
    zeros = {"expected0": np.zeros((2, outputs), np.float32)}
    files["health.npz"] = npz(np.zeros((2, inputs), np.float32), **zeros)
    blobs = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
    limits = dict.fromkeys(("metric", "least_correct", "greatest_median_latency_s", "greatest_output_error"))
    manifest = {
        "format": 1,
        "name": "dense",
        "created_by": "tests",
        "profile": "generic-x86-64",
        "root": "/nowhere",
        "python": "python3",
        "verdict": "pass",
        "budgets": {},
        "artifact": {"file": "model.tflite", "runtime": "tflite", "threads": 1, "preprocess": [[]]},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for name, data in files.items()
        },
        "health": {"file": "health.npz", "of": 2, **limits},
        "policy": {},
        "evaluation": None,
        "lineage": {},
    }
    bundles.write(path, bundles.Manifest.model_validate(manifest), blobs)
