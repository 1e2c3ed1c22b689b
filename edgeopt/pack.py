"""The chosen candidate as a bundle: its artifact, the limits of its health check, and the evaluation pack."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from . import bundle, decode, measure, provenance, validate
from .cache import sha256_bytes
from .ladder import Trial
from .plan import Plan
from .task import CLASS_METRICS
from .trial import Run

HEALTH_SAMPLES = 64
HEALTH_SPARE = 0.05  # of the health shard's samples may turn wrong before the board refuses
HEALTH_OUTPUT_ERROR = 0.1  # of an output's range: other kernels round otherwise, a wrong model is far off
HEALTH_LATENCY = 3.0  # times the measured median at most, or the budget where that is less
LEAST_HEALTH_LATENCY = 1.25  # times it at least: the median of a few queries scatters
SCHEDULING_S = 0.001


def pack(run: Run, chosen: Trial, verdict: str) -> bundle.Bundle:
    plan, artifact = run.plan, run.artifacts[chosen.recipe.name]
    health_blob, correct = _health_shard(run, chosen.recipe.name)
    files = artifact.read()
    shards = validate.pack_shards(run.bench.splits["final"], run.sources["final"])
    kind = plan.run_file.task.kind
    golden = [decode.golden(plan, run.bench.cache, kind)] if kind else []
    blobs = {sha256_bytes(data): data for data in (*files.values(), health_blob, *shards, *golden)}
    metric = plan.run_file.task.metric
    of = min(HEALTH_SAMPLES, len(run.bench.splits["selection"]))
    manifest = bundle.Manifest.model_validate(
        {
            "format": 1,
            "name": plan.name,
            "created_by": f"edgeopt {metadata.version('edgeopt')}",
            "profile": plan.profile.id,
            "root": plan.run_file.device.root or plan.profile.board.root,
            "python": plan.run_file.device.python or plan.profile.board.python,
            "verdict": verdict,
            "budgets": plan.budgets,
            "artifact": {
                "file": artifact.file,
                "runtime": artifact.runtime,
                "threads": artifact.threads,
                "preprocess": artifact.preprocess,
                "options": artifact.options,
                "frequency_max_hz": artifact.frequency_max_hz,
            },
            "files": {name: _entry(data) for name, data in {**files, "health.npz": health_blob}.items()},
            "health": {
                "file": "health.npz",
                "metric": metric if correct is not None else None,
                "of": of,
                "least_correct": None if correct is None else max(0, int(correct - np.ceil(HEALTH_SPARE * of))),
                "greatest_median_latency_s": _slowest(run, chosen),
                "greatest_output_error": HEALTH_OUTPUT_ERROR,
            },
            "policy": {},
            "evaluation": {
                "shards": [_entry(shard) for shard in shards],
                "metric": metric,
                "n": len(run.bench.splits["final"]),
                "floor_drop": plan.floor_drop,
                "classes": list(plan.run_file.task.classes),
                "golden": _entry(golden[0]) if golden else None,
                "confidence_threshold": plan.run_file.task.confidence_threshold,
            },
            "measured_on": provenance.record(run.facts),
            "lineage": {
                "source_graph": run.bench.graph,
                "inputs": list(plan.run_file.task.inputs),
                "steps": chosen.record["steps"],
                "selection_score": chosen.record["score"]["value"],
                "latency_p50_s": chosen.values["latency_p50_s"],
            },
        }
    )
    return bundle.write(run.scratch / f"{plan.name}.edgeopt", manifest, blobs)


def _slowest(run: Run, chosen: Trial) -> float | None:
    """The greatest median latency in seconds that the health check lets pass; None where none is known."""
    plan, p50 = run.plan, chosen.values["latency_p50_s"]
    if run.facts.get("stand_in"):  # its milliseconds say nothing of the board that this is meant for
        return plan.budgets.get("latency_p50_s")
    if p50 is None:
        return None
    return max(LEAST_HEALTH_LATENCY * p50, min(HEALTH_LATENCY * p50 + SCHEDULING_S, _budget(plan)))


def _budget(plan: Plan) -> float:
    return plan.budgets.get("latency_p50_s", float("inf"))


def _health_shard(run: Run, name: str) -> tuple[bytes, int | None]:
    """(a small shard of selection with the outputs that the board gave for it, how many of it were right)."""
    selection = run.bench.splits["selection"]
    rows = np.random.default_rng(run.plan.seed).permutation(len(selection))[:HEALTH_SAMPLES]
    some, outputs = selection.take(rows), [array[rows] for array in run.outputs[name]]
    data = measure.shard(some, {f"expected{index}": array for index, array in enumerate(outputs)})
    if run.plan.run_file.task.metric not in CLASS_METRICS:
        return data, None
    return data, int(run.bench.scores(outputs, some.labels).sum())


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": sha256_bytes(data), "size_bytes": len(data)}
