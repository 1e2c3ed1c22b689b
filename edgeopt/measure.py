"""Asks the agent for raw samples, and turns them into figures that say how valid they are."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import replies

from . import arrays, conditions, disk, stats
from .artifact import Artifact
from .cache import check_json
from .device.session import Session
from .errors import AgentFailure, IntegrityError, ProtocolError
from .task import Array, Samples

LATENCY_SAMPLES = 64
COOL_DOWN_S = 20.0
SLACK_S = 3600.0  # beyond the timed part, for what cannot be foreseen: loading, memory, another job's end
SHARD_BYTES = 4 << 20
LONGEST_S = 1e9
PACKAGES = {"tflite": "ai-edge-litert (or tflite-runtime with numpy<2)"}  # whose names differ from the runtime's


def shard(samples: Samples, extra: Mapping[str, Array] | None = None) -> bytes:
    """An .npz of input0, …, labels and `extra` arrays, each (n, ...); the same samples give the same bytes."""
    columns = {f"input{index}": array for index, array in enumerate(samples.inputs)}
    if samples.labels is not None:
        columns["labels"] = samples.labels
    buffer = io.BytesIO()
    np.savez(buffer, **columns, **(extra or {}))  # type: ignore[arg-type]
    return buffer.getvalue()


def shards(samples: Samples, extra: Mapping[str, Array] | None = None) -> list[bytes]:
    """The samples in shards of about SHARD_BYTES, so that a lost link repeats little."""
    one = sum(array[:1].nbytes for array in samples.inputs)
    step = max(1, SHARD_BYTES // max(1, one))
    return [
        shard(samples.take(rows), {name: array[rows] for name, array in (extra or {}).items()})
        for rows in (np.arange(start, min(start + step, len(samples))) for start in range(0, len(samples), step))
    ]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Raw samples of artifacts that were measured in alternating blocks of one job."""

    mode: str
    result: dict[str, Any]
    copy_and_invoke_s: list[Array]  # per artifact (n, 2) float64, in order

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """From the raw samples that `bench` kept. Raises OSError, IntegrityError."""
        saved = check_json(folder / "bench.json")
        try:
            count = len(saved["result"]["artifacts"])
            raw = [read_pairs(folder / f"samples-{index}.f64") for index in range(count)]
            return cls.of(saved["mode"], saved["result"], raw)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{folder / 'bench.json'}: not a job's samples, as it was measured ({error})"
            ) from error

    @classmethod
    def of(cls, mode: str, result: dict[str, Any], copy_and_invoke_s: list[Array]) -> Comparison:
        """Raises ValueError for what the samples of one job cannot be: figures are made of them without looking."""
        if wrong := replies.result_problem("bench", result):
            raise ValueError(wrong)
        if mode not in (*stats.MODES, stats.SUSTAINED) or len(copy_and_invoke_s) != len(result["artifacts"]):
            raise ValueError(
                f"mode {mode!r}, {len(copy_and_invoke_s)} of {len(result['artifacts'])} artifacts' samples"
            )
        blocks = result["blocks"]
        rounds = 1 + max(block["round"] for block in blocks)
        for index, pairs in enumerate(copy_and_invoke_s):
            own = [block["n"] for block in blocks if block["artifact"] == index]
            if not own or len(own) % 2 or len(own) * len(copy_and_invoke_s) != len(blocks):
                raise ValueError(
                    f"artifact {index + 1} has {len(own)} of {len(blocks)} blocks, which are no whole turns"
                )
            if sum(own) != len(pairs):
                raise ValueError(f"artifact {index + 1} has {len(pairs)} samples, and its blocks {sum(own)}")
            require_times(pairs[:, 0], pairs[:, 1])
        if mode == stats.SUSTAINED and len(result["conditions"]) != rounds + 1:
            raise ValueError(f"{len(result['conditions'])} looks at the board around {rounds} rounds")
        return cls(mode, result, copy_and_invoke_s)

    def seconds(self, index: int) -> Array:
        """Invoke alone, (n,)."""
        return self.copy_and_invoke_s[index][:, 1]

    def blocks(self, index: int) -> list[Array]:
        """Invoke seconds of each block in order, (n_i,) each."""
        counts = [block["n"] for block in self.result["blocks"] if block["artifact"] == index]
        return [np.asarray(part) for part in np.split(self.seconds(index), np.cumsum(counts)[:-1])]

    def latency(self, index: int) -> dict[str, Any]:
        """LATENCY as run.json keeps it; pre- and post-processing and copies apart."""
        own = self.result["artifacts"][index]
        apart = {
            name: dataclasses.asdict(_median(np.asarray(values)))
            for name, values in (
                ("pre_s", own["pre_s"]),
                ("post_s", own["post_s"]),
                ("copy_s", self.copy_and_invoke_s[index][:, 0]),
            )
        }
        summary = stats.summary_to_json(stats.summarize(self.seconds(index), self.mode))
        wall = sum(block["seconds"] for block in self.result["blocks"] if block["artifact"] == index)
        return dict(summary, duration_s=wall, **apart)

    def ratio(self, index: int, against: int) -> stats.Figure:
        """Median latency of one artifact over another's, from their paired blocks."""
        turns = self.result["turns"] * max(1, self.result["renew"])
        return stats.ratio_of_medians(self.blocks(index), self.blocks(against), turns)

    def executed(self, index: int) -> dict[str, Any]:
        executed: dict[str, Any] = self.result["artifacts"][index]["executed"]
        return executed

    def memory(self, index: int) -> dict[str, Any] | None:
        found: dict[str, Any] = self.result["artifacts"][index]["memory"]
        return found if found["peak_rss_bytes"] is not None else None

    def conditions(self) -> dict[str, Any]:
        """What the board was like meanwhile (conditions.summary), the marks to be seen, why it was measured again
        (`repeated`, None: it was not), and the sets of processors that a round's artifacts shared."""
        found = {"marks": self._marks(), "repeated": self.result.get("repeated")}
        return {**found, "shared_cpus": self.result["shared_cpus"], **conditions.summary(self.result["conditions"])}

    def disturbances(self) -> list[str]:
        """Why this comparison should be repeated: the board throttled, or an artifact's second half drifted."""
        found, count = [], len(self.copy_and_invoke_s)
        for index in range(count):
            drift = stats.drift(self.blocks(index))
            if drift.drifted:
                found.append(f"drift{f' of artifact {index + 1} of {count}' if count > 1 else ''}: {drift.reason}")
        return found + conditions.slowed(self.result["conditions"])

    def _marks(self) -> list[str]:
        series = self.result["conditions"]
        marks = self.disturbances() + conditions.background(series) + conditions.changed(series)
        if len(self.copy_and_invoke_s) > 1 and not self.result["renew"]:
            marks.append("one process an artifact: what differs between processes is not in the ratio's interval")
        if self.result["capped"]:
            marks.append("stopped at the time limit with fewer samples than the mode asks for")
        return marks


def bench(
    session: Session,
    artifacts: Sequence[Artifact],
    inputs: Sequence[bytes],
    mode: str,
    seed: int,
    folder: Path,
    minutes: float = 30.0,
    power_mode: Mapping[str, Any] | None = None,
) -> Comparison:
    """Measure artifacts in alternating blocks on one board; raw samples are kept in `folder`.

    inputs: shards of real samples; none means random tensors, and the result is marked so. minutes: of "sustained".
    power_mode: {"governor", "frequency_max_hz"} to hold meanwhile, None: as it is.
    Raises AgentFailure, DeviceUnreachable, ProtocolError, IntegrityError.
    """
    chosen = stats.sustained(minutes, len(artifacts)) if mode == stats.SUSTAINED else stats.MODES[mode]
    for artifact in artifacts:
        send(session, artifact)
    hashes = [session.send(data, "inputs") for data in inputs]
    job, result = session.run(
        {
            "kind": "bench",
            "artifacts": [artifact.entry() for artifact in artifacts],
            "shards": hashes,
            "min_queries": chosen.min_queries,
            "min_seconds": chosen.min_seconds,
            "cap_seconds": chosen.max_seconds * len(artifacts),
            "rounds": chosen.rounds,
            "block_seconds": chosen.block_s if len(artifacts) > 1 else chosen.min_seconds,
            "renew": chosen.renew if len(artifacts) > 1 else 0,
            "keep": chosen.keep,
            "power_mode": dict(power_mode or {}),
            "seed": seed,
        },
        chosen.max_seconds * len(artifacts) + SLACK_S,
    )
    if len(result["artifacts"]) != len(artifacts):
        raise ProtocolError(
            f"{session.address}: job {job} measured {len(result['artifacts'])} artifacts, and was asked for "
            f"{len(artifacts)}"
        )
    for index, entry in enumerate(result["artifacts"]):
        disk.write(folder / f"samples-{index}.f64", session.fetch(job, entry["samples"]))
    disk.write(folder / "bench.json", json.dumps({"mode": mode, "result": result}))
    with believed(session, job):
        return Comparison.read(folder)


@contextlib.contextmanager
def believed(session: Session, job: str) -> Iterator[None]:
    """What a job measured, looked at for the first time: what cannot be is the board's fault. Raises ProtocolError."""
    try:
        yield
    except IntegrityError as error:
        raise ProtocolError(f"{session.address}: what job {job} measured contradicts itself: {error}") from error


def read_pairs(path: Path) -> Array:
    """(n, 2) float64 of a file of samples. Raises OSError, ValueError for a file that was cut."""
    size = path.stat().st_size
    if size % 16:
        raise ValueError(f"{path.name} has {size} bytes, which are no pairs of numbers")
    return np.fromfile(path).reshape(-1, 2)


def require_times(copied: Array, invoked: Array) -> None:
    """Raises ValueError unless all are seconds that a query can have taken."""
    for what, seconds, least in (("copies", copied, 0.0), ("queries", invoked, np.nextafter(0.0, 1.0))):
        if not bool(((seconds >= least) & (seconds <= LONGEST_S)).all()):
            raise ValueError(f"its {what} took what are no seconds: from {seconds.min():g} to {seconds.max():g}")


def settled(
    session: Session,
    artifacts: Sequence[Artifact],
    inputs: Sequence[bytes],
    mode: str,
    seed: int,
    folder: Path,
    say: Callable[[dict[str, Any]], None],
    power_mode: Mapping[str, Any] | None = None,
    minutes: float = 30.0,
    repeat: bool = True,
) -> Comparison:
    """`bench`, and with `repeat` once more where the board throttled or its second half departed from its first.

    Not of mode "sustained", which is to show just that. `say` is told (an event of the agent's kind); `conditions` then
    has the reason as `repeated`.
    """
    found = bench(session, artifacts, inputs, mode, seed, folder, minutes, power_mode)
    if repeat and mode != stats.SUSTAINED and (disturbed := found.disturbances()):
        reason = cool_down(session, disturbed, say)
        found = bench(session, artifacts, inputs, mode, seed, folder, minutes, power_mode)
        found.result["repeated"] = reason
        disk.write(folder / "bench.json", json.dumps({"mode": mode, "result": found.result}))
    return found


def cool_down(session: Session, disturbed: Sequence[str], say: Callable[[dict[str, Any]], None]) -> str:
    """A pause before what was disturbed is measured once more; the reason."""
    reason = "; ".join(disturbed)
    say({"event": "stage", "what": f"{reason}; measuring again after {COOL_DOWN_S:.0f} s"})
    session.pause(COOL_DOWN_S)
    return reason


def outputs(session: Session, artifact: Artifact, inputs: Sequence[bytes]) -> tuple[Array, ...]:
    """What the artifact answers on the board, each output (n, ...), for all samples of the shards."""
    send(session, artifact)
    hashes = [session.send(data, "evaluation data") for data in inputs]
    job, result = session.run({"kind": "infer", "artifact": artifact.entry(), "shards": hashes})
    if len(result["outputs"]) != len(inputs):
        raise ProtocolError(f"{session.address} returned outputs for {len(result['outputs'])} of {len(inputs)} shards")
    columns: list[tuple[Array, ...]] = []
    for entry, given in zip(result["outputs"], inputs, strict=True):
        data = session.fetch(job, entry)
        with believed(session, job):
            columns.append(_outputs(data, entry["name"], len(arrays.read(given, "inputs")["input0"])))
    if len({tuple((array.dtype, array.shape[1:]) for array in column) for column in columns}) != 1:
        raise ProtocolError(f"{session.address} returned differing kinds of outputs for the shards")
    return tuple(np.concatenate(parts, axis=0) for parts in zip(*columns, strict=True))


def _outputs(data: bytes, what: str, count: int) -> tuple[Array, ...]:
    """Each output (n, ...) of a shard of `count` samples. Raises IntegrityError."""
    held = arrays.read(data, what)
    try:
        arrays.require_rows(held, count, count)
        found = arrays.numbered(held, "output")
    except ValueError as error:
        raise IntegrityError(f"{what}: {error}") from error
    if not found or any(array.dtype.kind not in "biuf" for array in found):
        raise IntegrityError(f"{what}: outputs must be numbers, not {[array.dtype.name for array in found]}")
    return found


def send(session: Session, artifact: Artifact) -> None:
    """An artifact's files, as blobs."""
    for name, data in artifact.read().items():
        session.send(data, artifact.name if len(artifact.paths) == 1 else f"{artifact.name}, {name}")


def board_identity(facts: Mapping[str, Any], runtime: str) -> dict[str, Any]:
    """What must be equal for a stored comparison to be this board's."""
    names = ("hostname", "model", "serial", "machine_id", "machine", "kernel", "cpu_model", "cores_allowed", "governor")
    return {name: facts[name] for name in (*names, "memory_bytes", "python")} | {"runtime": facts["runtimes"][runtime]}


def require_runtime(facts: Mapping[str, Any], runtime: str, address: str, python: str) -> None:
    """Raises AgentFailure before anything big is sent when the board cannot run the artifact."""
    known = facts["runtimes"]
    if known.get(runtime) is None:
        there = ", ".join(name for name, found in known.items() if found) or "none"
        package = PACKAGES.get(runtime, runtime)
        setup = f"`edgeopt device setup … --runtime {runtime}` brings it there from this machine; or install "
        raise AgentFailure(
            f"{address}: runtime '{runtime}' is not installed for the board's Python '{python}' ({facts['python']}, "
            f"{facts['machine']}); runtimes there: {there}. "
            f"{'install ' if address == 'local' else setup}{package} for that Python, or name another one in the "
            "profile's [board] python, or with --board-python",
            kind="missing-runtime",
        )


def _median(values: Array) -> stats.Figure:
    return stats.Figure(float(np.median(values)), None, len(values))
