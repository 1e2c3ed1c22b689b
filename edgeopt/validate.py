"""Validate a release on its board: accuracy against the source model's stored outputs, latency and size against the
budgets. Needs no torch, no data set and no source model: the bundle carries its evaluation pack. Where nobody named a
source model, the stored outputs are the model's own, recorded when it was bundled."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import preprocess
from edgeopt_agent.wire import RemoteError

from . import arrays, measure
from .bundle import Bundle, Evaluation
from .device.session import Event, Session
from .errors import AgentFailure, ConfigError, IntegrityError
from .evidence import Score, Scored, judged, lost
from .flash import describe
from .plan import OF_ENERGY
from .task import CLASS_METRICS, Array, Samples

SCORED = "scored.npz"


@dataclasses.dataclass(frozen=True)
class Pack:
    """The evaluation pack, read: samples, the source model's outputs, each (n, ...)."""

    samples: Samples
    source: tuple[Array, ...]
    metric: str | None
    classes: tuple[str, ...]
    floor_drop: float
    confidence_threshold: float | None


def pack_shards(samples: Samples, source: Sequence[Array]) -> list[bytes]:
    """The shards of an evaluation pack, as `read_pack` takes them."""
    extra = {f"source{index}": array for index, array in enumerate(source)}
    if samples.groups is not None:
        extra["groups"] = samples.groups
    return measure.shards(samples, extra)


def read_pack(bundle: Bundle) -> Pack:
    """The bundle's evaluation pack. Raises ConfigError when it has none, IntegrityError when it is damaged."""
    evaluation = bundle.manifest.evaluation
    if evaluation is None:
        raise ConfigError(
            f"{bundle.path} has no evaluation pack, so it cannot be validated; `edgeopt optimize` makes one, and "
            "`edgeopt bundle` with --labels"
        )
    columns: dict[str, list[Array]] = {}
    for number, entry in enumerate(evaluation.shards):
        held = arrays.read(bundle.blob(entry), f"{bundle.path}: shard {number + 1} of its evaluation pack")
        for name, array in held.items():
            columns.setdefault(name, []).append(array)
    try:
        return _pack(columns, evaluation)
    except (ValueError, TypeError, IndexError, KeyError, RemoteError) as error:
        raise IntegrityError(f"{bundle.path}: its evaluation pack is not arrays of samples: {error}") from error


def _pack(columns: Mapping[str, Sequence[Array]], evaluation: Evaluation) -> Pack:
    """columns: the shards' arrays by name. Raises ValueError and what numpy raises for what cannot be a pack."""
    joined = {name: np.concatenate(parts, axis=0) for name, parts in columns.items()}
    arrays.require_rows(joined)
    inputs, source = arrays.numbered(joined, "input"), arrays.numbered(joined, "source")
    if not inputs or not source:
        raise ValueError(f"it has {', '.join(sorted(joined))[:200]}, not input0 and source0")
    if not all(array.dtype.kind in "biuf" and bool(np.isfinite(array).all()) for array in source):
        raise ValueError("the source model's outputs must be finite numbers")
    groups, labels = joined.get("groups"), joined.get("labels")
    if groups is not None and groups.ndim != 1:
        raise ValueError(f"groups {list(groups.shape)} must be one a sample")
    if evaluation.metric is not None:
        score = np.asarray(preprocess.score(evaluation.metric, source, labels))
        if score.shape != (len(source[0]),) or not np.isfinite(score).all():
            raise ValueError(f"'{evaluation.metric}' gives no score a sample of its labels")
        if evaluation.metric in CLASS_METRICS and (
            labels is None or labels.shape != score.shape or labels.dtype.kind not in "iu"
        ):
            raise ValueError(f"'{evaluation.metric}' needs one label a sample, a whole number")
    return Pack(
        Samples(inputs, labels, groups),
        source,
        evaluation.metric,
        tuple(evaluation.classes),
        evaluation.floor_drop,
        evaluation.confidence_threshold,
    )


def reference_of(bundle: Bundle) -> dict[str, Any]:
    """{"kind": "own", the model's own outputs when it was bundled, or "source"; "file" of that model, where known}."""
    told = bundle.manifest.lineage.get("reference")  # `edgeopt bundle` writes a text where it is the model itself
    file = told.get("file") if isinstance(told, dict) else None
    return {"kind": "own" if isinstance(told, str) else "source", "file": file}


def health_inputs(bundle: Bundle) -> bytes:
    """The inputs of the bundle's health check as a shard; what it expects of them is this release's own.

    Raises IntegrityError.
    """
    data = bundle.blob(bundle.manifest.files[bundle.manifest.health.file])
    what = f"{bundle.path}: its health check"
    held = arrays.read(data, what)
    try:
        inputs = arrays.numbered(held, "input")
        arrays.require_rows({str(index): array for index, array in enumerate(inputs)})
    except ValueError as error:
        raise IntegrityError(f"{what} has no arrays of samples ({error})") from error
    return measure.shard(Samples(inputs, None, None))


def mode_for(bundle: Bundle, asked: str | None) -> str:
    """How long to measure: as asked, else as short as the bundle's budgets allow. Raises ConfigError."""
    needs_p95 = "latency_p95_s" in bundle.manifest.budgets
    if asked == "rapid" and needs_p95:
        raise ConfigError(f"--mode rapid: {bundle.path} has a budget for the 95th percentile; use quick or normal")
    return asked or ("quick" if needs_p95 else "rapid")


def validate(
    session: Session,
    bundle: Bundle,
    mode: str,
    samples: Path,
    say: Event,
    score: Score | None = None,
    *,
    repeat: bool = True,
) -> dict[str, Any]:
    """Measure the board's current release with the bundle's evaluation pack; what `figures` needs beside the raw
    samples, which are written into `samples`.

    `score` replaces the pack's metric (tasks that score in Python); `repeat`: latency that drifted or throttled is
    measured again. Raises AgentFailure when another release is current, ConfigError, IntegrityError, DeviceUnreachable.
    """
    bundle.check()
    _require_current(session, bundle)
    pack = read_pack(bundle)
    metric = pack.metric
    if score is None:
        if metric is None:
            raise ConfigError(f"{bundle.path}: its task scores in Python; name the run file with --run-file")

        def score(outputs: Sequence[Array], labels: Array | None) -> Array:
            return np.asarray(preprocess.score(str(metric), outputs, labels))

    with tempfile.TemporaryDirectory(prefix="edgeopt-validate-") as folder:
        artifact = bundle.artifact(Path(folder))
        inputs = dataclasses.replace(pack.samples, labels=None)
        outputs = measure.outputs(session, artifact, measure.shards(inputs))
        some = measure.shards(inputs.take(np.arange(min(len(inputs), measure.LATENCY_SAMPLES))))
        measure.settled(session, [artifact], some, mode, 0, samples, say, repeat=repeat)
    if [(len(one), one[:1].size) for one in outputs] != [(len(one), one[:1].size) for one in pack.source]:
        shapes = [[list(one.shape) for one in side] for side in (outputs, pack.source)]
        raise IntegrityError(f"{bundle.path}: the artifact answers {shapes[0]}, its evaluation pack has {shapes[1]}")
    numbers, lost = _numbers(outputs)
    Scored.of(numbers, pack.source, pack.samples, score, metric in CLASS_METRICS).write(samples / SCORED)
    return {
        "device": session.address,
        "release": bundle.release,
        "name": bundle.manifest.name,
        "reference": reference_of(bundle),
        "bundle": str(bundle.path),
        "budgets": dict(bundle.manifest.budgets),
        "size_bytes": artifact.size_bytes,
        "metric": metric,
        "classes": list(pack.classes),
        "floor_drop": pack.floor_drop,
        "confidence_threshold": pack.confidence_threshold,
        "lost": lost,
    }


def figures(about: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    """{"verdict", "reasons", "final", …} of what `validate` noted and wrote. Raises OSError, IntegrityError."""
    scored, comparison = Scored.read(samples / SCORED), measure.Comparison.read(samples)
    final = judged(scored, about["floor_drop"], about["classes"], about["confidence_threshold"])
    latency, memory = comparison.latency(0), comparison.memory(0)
    broken, unknown = _over_budget(about["budgets"], latency, memory, about["size_bytes"])
    if about["lost"]:
        total = len(scored.own)
        broken.append(f"{about['lost']} of {total} samples gave NaN or infinite outputs, which count as 0 here")
    verdict = "fail" if broken else "undecided" if unknown and final["verdict"] == "pass" else final["verdict"]
    return {
        "device": about["device"],
        "release": about["release"],
        "name": about["name"],
        "verdict": verdict,
        "reference": about["reference"],
        "reasons": [*broken, *unknown, f"score: {final['reason']}", *lost(final["output_error"]), *_unjudged(about)],
        "final": dict(final, metric=about["metric"]),
        "latency": latency,
        "memory": memory,
        "conditions": {key: comparison.conditions()[key] for key in ("marks", "repeated")},
    }


def _numbers(outputs: Sequence[Array]) -> tuple[list[Array], int]:
    """(outputs, each (n, ...), with 0 for what is not finite; how many samples have such values)."""
    finite = [np.isfinite(output) for output in outputs]
    whole = np.all([mask.reshape(len(mask), -1).all(axis=1) for mask in finite], axis=0)
    numbers = [np.where(mask, output, np.zeros_like(output)) for mask, output in zip(finite, outputs, strict=True)]
    return numbers, int((~whole).sum())


def _require_current(session: Session, bundle: Bundle) -> None:
    current = session.status(verify=True)["current"]
    if current is None or current["release"] != bundle.release:
        there = describe(current) if current else "no release"
        raise AgentFailure(
            f"{session.address}: {there} is current, not {bundle.manifest.name} ({bundle.release[:12]}) of "
            f"{bundle.path}; flash that bundle first, or validate with the bundle that is there",
            kind="no-release",
        )
    if not current["whole"]:
        raise AgentFailure(f"{session.address}: the current release is damaged: {current['problem']}", kind="integrity")


def _unjudged(about: Mapping[str, Any]) -> list[str]:
    """Demands that nothing here can judge: they are said, not dropped."""
    options = {"energy_j": "--budget-j", "power_w": "--budget-w"}
    budgets = {name: value for name, value in about["budgets"].items() if name in OF_ENERGY}
    asked = " ".join(f"{options[name]} {value:g}" for name, value in budgets.items())
    names = " and ".join(budgets)
    return [f"not judged here: {names}; `edgeopt power {about['bundle']} {asked}` judges it"] if budgets else []


def _over_budget(
    budgets: Mapping[str, float], latency: dict[str, Any], memory: dict[str, Any] | None, size_bytes: int
) -> tuple[list[str], list[str]]:
    """In words: (budgets that are missed, budgets whose quantity could not be measured)."""
    found = {
        "latency_p50_s": latency["p50_s"]["value"],
        "latency_p95_s": latency["p95_s"]["value"],
        "size_bytes": size_bytes,
        "peak_memory_bytes": memory["above_runtime_bytes"] if memory else None,
    }
    over, unknown = [], []
    for name, budget in budgets.items():
        value = found.get(name)
        if name in OF_ENERGY:
            continue
        if value is None:
            unknown.append(f"{name} could not be measured, and the budget is {budget:g}")
        elif value > budget:
            over.append(f"{name} {value:.6g} is over the budget of {budget:g}")
    return over, unknown
