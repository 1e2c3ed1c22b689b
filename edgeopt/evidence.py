"""The raw samples that a run keeps, and the figures that are made of them: by `optimize`, and again by `recompute`.

samples/<trial>.npz         a whole job's latencies: `seconds`, `copy_s`, `block` and `started` of the candidate, and of
                            each rival as <rival>.seconds and so on; `job`: what else the board said of the job, as JSON
samples/<trial>.energy.npz  where energy was measured, a whole job's readings: `power`, `overhead`, and `job` as above
samples/<trial>.selection.npz, samples/final.npz    per sample: scores, decisions, errors of the outputs (`Scored`)
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import wire

from . import arrays, cost, disk, power, slices, stats
from .errors import IntegrityError
from .measure import Comparison
from .plan import OF_ENERGY
from .stats import Figure
from .task import Array, Samples

Score = Callable[[Sequence[Array], Array | None], Array]


@dataclasses.dataclass(frozen=True)
class Scored:
    """What the figures of accuracy rest on, a row a sample: `own` on the board, `reference` of the source model.

    labels, decisions and source_decisions: (n,), None where there are no classes; groups: (n,) or None.
    errors: (outputs, n, 4), of each output's elements the greatest and the summed absolute difference from the source
    model's, the sum of that difference squared, and of the source model's squared; elements: (outputs,), a sample's.
    confidence, source_confidence: (n,), the largest share of a decision; None where there are no classes.
    """

    own: Array
    reference: Array
    errors: Array
    elements: Array
    labels: Array | None = None
    groups: Array | None = None
    decisions: Array | None = None
    source_decisions: Array | None = None
    confidence: Array | None = None
    source_confidence: Array | None = None

    @classmethod
    def of(
        cls, outputs: Sequence[Array], source: Sequence[Array], samples: Samples, score: Score, classify: bool
    ) -> Scored:
        """outputs, source: each (n, ...). classify: outputs[0] holds one score per class, so decisions can be
        compared."""
        own, reference = score(outputs, samples.labels), score(source, samples.labels)
        errors = [_errors(a, b) for a, b in zip(outputs, source, strict=True)]
        elements = np.array([array[:1].size for array in source])
        if not classify:
            return cls(own, reference, np.stack(errors), elements, groups=samples.groups)
        found, expected = (array[0].reshape(len(array[0]), -1) for array in (outputs, source))
        shares = is_shares(expected)
        return cls(
            own,
            reference,
            np.stack(errors),
            elements,
            samples.labels,
            samples.groups,
            found.argmax(axis=1),
            expected.argmax(axis=1),
            confidence(found, shares),
            confidence(expected, shares),
        )

    def write(self, path: Path) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        columns: dict[str, Any] = {name: array for name, array in given.items() if array is not None}
        _write_arrays(path, columns)

    @classmethod
    def read(cls, path: Path) -> Scored:
        """Raises IntegrityError, FileNotFoundError."""
        held = arrays.read(path, str(path))
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            found = cls(**{name: array for name, array in held.items() if name in names})
            found.require_whole()
        except (TypeError, ValueError) as error:
            raise IntegrityError(f"{path}: not the scores of samples, as this edgeopt keeps them ({error})") from error
        return found

    def require_whole(self) -> None:
        """Raises ValueError where these are not one row a sample, or no scores."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {name: array for name, array in columns.items() if array is not None}
        samples = {name: array for name, array in given.items() if name not in ("errors", "elements")}
        arrays.require_rows(samples)
        if any(array.ndim != 1 for array in samples.values()):
            raise ValueError("each sample has one score, one label and one decision")
        shape = (len(self.elements), len(self.own), 4)
        if self.errors.shape != shape or self.elements.ndim != 1 or not (self.elements > 0).all():
            raise ValueError(f"errors {list(self.errors.shape)}, which must be {list(shape)}")
        for name in given.keys() - {"labels", "groups"}:
            if given[name].dtype.kind not in "biuf" or not np.isfinite(given[name]).all():
                raise ValueError(f"{name} holds what is no finite number")
        if self.decisions is not None and (self.labels is None or self.labels.dtype.kind not in "iu"):
            raise ValueError("decisions need labels that are whole numbers")


def judged(scored: Scored, floor: float, classes: Sequence[str] = (), threshold: float | None = None) -> dict[str, Any]:
    """`final` of run.json: the score on the board, its paired drop below the source model, and the verdict.

    classes: their names, if they have any. threshold: the confidence below which an output goes to a person.
    """
    own, reference, groups = scored.own, scored.reference, scored.groups
    drop = stats.paired_drop(reference, own, groups)
    verdict, reason = stats.verdict(drop["drop"], drop["drop_interval"], floor, drop["n"], drop["groups"])
    figure = stats.score(own, groups)
    decisions, expected = scored.decisions, scored.source_decisions
    return {
        "value": figure.value,
        "interval": list(figure.interval) if figure.interval else None,
        "reference": float(reference.mean()),
        **drop,
        "drop_interval": list(drop["drop_interval"]) if drop["drop_interval"] else None,
        "floor_drop": floor,
        "agreement": None if decisions is None or expected is None else stats.agreement(decisions, expected),
        "verdict": verdict,
        "reason": reason,
        **_by_class(scored, classes),
        "worst_group": None if groups is None else stats.worst_class(own, groups),
        "per_group": None if groups is None else slices.by_label(own, reference, groups),
        "output_error": output_errors(scored),
        "review": _review(scored, threshold),
    }


def _review(scored: Scored, threshold: float | None) -> dict[str, Any] | None:
    if threshold is None or scored.confidence is None or scored.source_confidence is None:
        return None
    return cost.review(scored.confidence, scored.source_confidence, threshold, scored.groups)


def _by_class(scored: Scored, classes: Sequence[str]) -> dict[str, Any]:
    labels, decisions, source = scored.labels, scored.decisions, scored.source_decisions
    if labels is None or decisions is None or source is None:
        return dict.fromkeys(("worst_class", "per_class", "confusion"))
    worst = stats.worst_class(scored.own, labels)
    return {
        "worst_class": dict(worst, label=slices.named(worst["label"], classes)),
        "per_class": slices.by_label(scored.own, scored.reference, labels, classes),
        "confusion": slices.confusion(decisions, source, labels, classes),
    }


def _errors(own: Array, reference: Array) -> Array:
    """(n, 4), as Scored.errors of one output."""
    expected = reference.reshape(len(reference), -1).astype(np.float64)
    difference = own.astype(np.float64).reshape(expected.shape) - expected
    columns = (np.abs(difference).max(axis=1), np.abs(difference).sum(axis=1))
    return np.stack([*columns, (difference**2).sum(axis=1), (expected**2).sum(axis=1)], axis=1)


def output_errors(scored: Scored) -> list[dict[str, float | None]]:
    """Per output: greatest and mean absolute error, and signal over quantization noise in decibels."""
    found: list[dict[str, float | None]] = []
    for errors, elements in zip(scored.errors, scored.elements.tolist(), strict=True):
        noise, signal = float(errors[:, 2].sum()), float(errors[:, 3].sum())
        found.append(
            {
                "max": float(errors[:, 0].max()),
                "mean": float(errors[:, 1].sum() / (len(errors) * elements)),
                "sqnr_db": float(10 * np.log10(signal / noise)) if noise > 0 and signal > 0 else None,
            }
        )
    return found


def is_shares(outputs: Array) -> bool:
    """Whether outputs (n, classes) are shares already: none below 0, and each row's sum is 1 to a hundredth."""
    return bool((outputs >= 0).all() and (np.abs(outputs.sum(axis=1) - 1) < 0.01).all())


def confidence(outputs: Array, shares: bool) -> Array:
    """The largest share of each row (n,) of outputs (n, classes); softmax makes shares of what are none."""
    values = outputs.astype(np.float64)
    if not shares:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    found: Array = values.max(axis=1)
    return found


# A job's latencies


def write_job(path: Path, comparison: Comparison, names: Sequence[str]) -> None:
    """names: of the job's artifacts, in order; the candidate is the last."""
    columns: dict[str, Any] = {}
    for index, name in enumerate(names):
        own = [block for block in comparison.result["blocks"] if block["artifact"] == index]
        prefix = "" if index == len(names) - 1 else f"{name}."
        columns[f"{prefix}seconds"] = comparison.seconds(index)
        columns[f"{prefix}copy_s"] = comparison.copy_and_invoke_s[index][:, 0]
        columns[f"{prefix}block"] = np.repeat(np.arange(len(own), dtype=np.int32), [block["n"] for block in own])
        columns[f"{prefix}started"] = np.array([block["began_s"] for block in own])
    job = {"names": list(names), "mode": comparison.mode, "result": comparison.result}
    columns["job"] = np.frombuffer(json.dumps(job).encode("utf-8"), dtype=np.uint8)
    _write_arrays(path, columns)


def _write_arrays(path: Path, columns: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    disk.write(path, buffer.getbuffer())


def read_job(path: Path) -> tuple[list[str], Comparison]:
    """(names of the artifacts, the candidate last; the comparison). Raises IntegrityError, FileNotFoundError."""
    held = arrays.read(path, str(path))
    try:
        job = wire.parse(held["job"].tobytes().decode("utf-8"))
        names: list[str] = job["names"]
        pairs = []
        for index, name in enumerate(names):
            prefix = "" if index == len(names) - 1 else f"{name}."
            pairs.append(np.stack([held[f"{prefix}copy_s"], held[f"{prefix}seconds"]], axis=1))
        return names, Comparison.of(job["mode"], job["result"], pairs)
    except (KeyError, ValueError, TypeError) as error:
        raise IntegrityError(f"{path}: not the whole job's samples, as this edgeopt keeps them ({error!r})") from error


def of_job(comparison: Comparison, names: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """The candidate's part of a trial's record, the candidate being the last of `names`; sizes: bytes of each
    artifact. `ratios` are against the first, `step` (all objectives) against the one before it."""
    index = len(names) - 1
    artifact = comparison.result["artifacts"][index]
    return {
        "latency": comparison.latency(index),
        "load_s": artifact["load_s"],
        "first_inference_s": artifact["first_inference_s"],
        "memory": comparison.memory(index),
        "ratios": _against(comparison, names, sizes, index, 0),
        "step": _against(comparison, names, sizes, index, max(0, index - 1)),
        "executed": comparison.executed(index),
        "conditions": comparison.conditions(),
    }


def _against(
    comparison: Comparison, names: Sequence[str], sizes: Sequence[int], index: int, against: int
) -> dict[str, Any]:
    found = ratios(comparison, sizes, index, against)
    return {name: dict(figure.to_json(), against=names[against]) for name, figure in found.items()}


def ratios(comparison: Comparison, sizes: Sequence[int], index: int, against: int) -> dict[str, Figure]:
    """Each objective as a ratio between two artifacts of one job."""
    own, other = comparison.memory(index), comparison.memory(against)
    memory = Figure(None, None, 0, invalid="not measured")
    if own and other and own["above_runtime_bytes"] and other["above_runtime_bytes"]:
        memory = Figure(own["above_runtime_bytes"] / other["above_runtime_bytes"], None, 1)
    return {
        "latency_p50_s": comparison.ratio(index, against),
        "size_bytes": Figure(sizes[index] / sizes[against], None, 1),
        "peak_memory_bytes": memory,
    }


# A job's energy


def write_energy(path: Path, run: power.Run, names: Sequence[str], most_w: float) -> None:
    """names: of the job's artifacts, in order; most_w: more than this no reading can be."""
    columns: dict[str, Any] = {"power": np.stack([run.readings.times_s, run.readings.values], axis=1)}
    columns["overhead"] = np.zeros(0) if run.overhead_s is None else run.overhead_s
    job = {"names": list(names), "most_w": most_w, "result": run.result}
    columns["job"] = np.frombuffer(json.dumps(job).encode("utf-8"), dtype=np.uint8)
    _write_arrays(path, columns)


def read_energy(path: Path) -> tuple[power.Run, list[str], float]:
    """(the readings; names of the artifacts, the candidate last; most_w). Raises IntegrityError, FileNotFoundError."""
    held = arrays.read(path, str(path))
    try:
        job = wire.parse(held["job"].tobytes().decode("utf-8"))
        overhead = np.stack([np.zeros(len(held["overhead"])), held["overhead"]], axis=1)
        most_w = float(job["most_w"])
        return power.Run.of(job["result"], held["power"], overhead), list(job["names"]), most_w
    except (KeyError, ValueError, TypeError) as error:
        raise IntegrityError(f"{path}: not the whole job's readings, as this edgeopt keeps them ({error!r})") from error


def of_energy(run: power.Run, names: Sequence[str], most_w: float) -> dict[str, Any]:
    """As of_job, of joules and watts: the candidate's own, and its ratios to the first and to the one before it."""
    index = len(names) - 1
    found = run.per_inference(index, most_w)
    told = {"sensor": run.told(), "sampler_overhead": run.overhead(), "marks": run.remarks()}
    capped = run.result["frequency_max_hz"][index]
    sides = {
        key: {name: dict(run.ratio(index, other, name, most_w).to_json(), against=names[other]) for name in OF_ENERGY}
        for key, other in (("ratios", 0), ("step", max(0, index - 1)))
    }
    return {"energy": {**told, "frequency_max_hz": capped, **found}, **sides}
