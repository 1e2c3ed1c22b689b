"""The raw samples that a run keeps, and the figures that are made of them: by `optimize`, and again by `recompute`.

samples/<trial>.npz         a whole job's latencies: `seconds`, `copy_s`, `block` and `started` of the candidate, and of
                            each rival as <rival>.seconds and so on; `job`: what else the board said of the job, as JSON
samples/<trial>.energy.npz  where energy was measured, a whole job's readings: `power`, `overhead`, and `job` as above
samples/<trial>.selection.npz, samples/final.npz    per sample: scores, decisions, errors of the outputs (`Scored`)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import wire

from . import arrays, cost, fidelity, power, slices, stats
from .errors import IntegrityError
from .measure import Comparison
from .plan import OF_ENERGY
from .stats import Figure
from .task import Array, Samples

# Of Scored: what has not one row a sample.
OF_OUTPUTS = ("errors", "elements", "equal", "parts", "part_of", "part_channels", "part_largest")
Score = Callable[[Sequence[Array], Array | None], Array]


@dataclasses.dataclass(frozen=True)
class Scored:
    """What the figures of accuracy rest on, a row a sample: `own` on the board, `reference` of the source model.

    labels, decisions and source_decisions: (n,), None where there are no classes; groups: (n,) or None.
    errors: (outputs, n, 4), of each output's elements the greatest and the summed absolute difference from the source
    model's, the sum of that difference squared, and of the source model's squared; elements: (outputs,), a sample's.
    confidence, source_confidence: (n,), the largest share of a decision; None where there are no classes.
    equal: (outputs, n), the share of equal values of an output of whole numbers, -1 of other outputs.
    parts: as errors, (groups, n, 4), of each group of channels of an output (fidelity.groups); None where there are
    none. part_of: (groups, 4), its output, axis, number of channels and elements of a sample; part_channels: (groups,
    ranges, 2), the first and last channel of each row of them, -1 where there are fewer rows; part_largest: (groups,).
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
    equal: Array | None = None
    parts: Array | None = None
    part_of: Array | None = None
    part_channels: Array | None = None
    part_largest: Array | None = None

    @classmethod
    def of(
        cls, outputs: Sequence[Array], source: Sequence[Array], samples: Samples, score: Score, classify: bool
    ) -> Scored:
        """outputs, source: each (n, ...). classify: outputs[0] holds one score per class, so decisions can be
        compared."""
        own, reference = score(outputs, samples.labels), score(source, samples.labels)
        errors = [_errors(a, b) for a, b in zip(outputs, source, strict=True)]
        elements = np.array([array[:1].size for array in source])
        shaped = [a.reshape(b.shape) for a, b in zip(outputs, source, strict=True)]
        told = {"equal": _equal(shaped, source), **_parts(shaped, source)}
        if not classify:
            return cls(own, reference, np.stack(errors), elements, groups=samples.groups, **told)
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
            **told,
        )

    def write(self, path: Path) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        columns: dict[str, Any] = {name: array for name, array in given.items() if array is not None}
        arrays.write(path, columns)

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
        samples = {name: array for name, array in given.items() if name not in OF_OUTPUTS}
        arrays.require_rows(samples)
        if any(array.ndim != 1 for array in samples.values()):
            raise ValueError("each sample has one score, one label and one decision")
        shape = (len(self.elements), len(self.own), 4)
        if self.errors.shape != shape or self.elements.ndim != 1 or not (self.elements > 0).all():
            raise ValueError(f"errors {list(self.errors.shape)}, which must be {list(shape)}")
        if self.equal is not None and self.equal.shape != shape[:2]:
            raise ValueError(f"equal {list(self.equal.shape)}, which must be {list(shape[:2])}")
        self._require_whole_parts({name: given.get(name) for name in OF_OUTPUTS if name.startswith("part")})
        for name in given.keys() - {"labels", "groups"}:
            if given[name].dtype.kind not in "biuf" or not np.isfinite(given[name]).all():
                raise ValueError(f"{name} holds what is no finite number")
        if self.decisions is not None and (self.labels is None or self.labels.dtype.kind not in "iu"):
            raise ValueError("decisions need labels that are whole numbers")

    def _require_whole_parts(self, given: Mapping[str, Array | None]) -> None:
        """Raises ValueError where the groups of channels are not described as `parts` says."""
        found = {name: array for name, array in given.items() if array is not None}
        if not found:
            return
        count = len(found["part_of"]) if "part_of" in found and found["part_of"].ndim else 0
        rows = found["part_channels"].shape[1:2] if "part_channels" in found else ()
        wanted = {"parts": (count, len(self.own), 4), "part_of": (count, 4), "part_largest": (count,)}
        wanted["part_channels"] = (count, *rows, 2)
        shapes = {name: array.shape for name, array in found.items()}
        whole = all(found[name].dtype.kind in "iu" for name in ("part_of", "part_channels") if name in found)
        if shapes != wanted or not count or not whole or not (found["part_of"][:, 3] > 0).all():
            raise ValueError(f"groups of channels {shapes}, which must be {wanted}")


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
    rows = len(reference), -1
    difference, expected = fidelity.difference_of(own.reshape(rows), reference.reshape(rows))
    columns = (np.abs(difference).max(axis=1), np.abs(difference).sum(axis=1))
    return np.stack([*columns, (difference**2).sum(axis=1), (expected**2).sum(axis=1)], axis=1)


def _equal(outputs: Sequence[Array], source: Sequence[Array]) -> Array | None:
    """As Scored.equal; None where no output holds whole numbers."""
    shares = [
        (a == b).reshape(len(b), -1).mean(axis=1) if fidelity.is_whole(b) else np.full(len(b), -1.0)
        for a, b in zip(outputs, source, strict=True)
    ]
    return np.stack(shares) if any(map(fidelity.is_whole, source)) else None


def _parts(outputs: Sequence[Array], source: Sequence[Array]) -> dict[str, Array]:
    """Scored.parts and what belongs to it, by name; empty where there are no groups."""
    found = [(number, group) for number, array in enumerate(source) for group in fidelity.groups(array)]
    if not found:
        return {}
    rows = [group.ranges() for _, group in found]
    channels = np.full((len(rows), max(map(len, rows)), 2), -1)
    for place, row in enumerate(rows):
        channels[place, : len(row)] = row
    sizes = [(number, group.axis, len(group.channels), group.of(source[number][:1]).size) for number, group in found]
    return {
        "parts": np.stack([_errors(group.of(outputs[number]), group.of(source[number])) for number, group in found]),
        "part_of": np.array(sizes),
        "part_channels": channels,
        "part_largest": np.array([group.largest for _, group in found]),
    }


def output_errors(scored: Scored) -> list[dict[str, Any]]:
    """Per output: greatest and mean absolute error, and signal over quantization noise in decibels; of whole numbers
    "equal_share" in its place; where its channels differ in size by orders, the same of each of its "groups"."""
    found: list[dict[str, Any]] = []
    for number, (errors, elements) in enumerate(zip(scored.errors, scored.elements.tolist(), strict=True)):
        own = _figures(errors, elements)
        if scored.equal is not None and (scored.equal[number] >= 0).all():
            own |= {"sqnr_db": None, "equal_share": float(scored.equal[number].mean())}
        if groups := _groups(scored, number):
            own["groups"] = groups
        found.append(own)
    return found


def lost(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of output_errors: the outputs, or groups of their channels, that are below the floor (floor.py), in words."""
    told = []
    for number, error in enumerate(errors):
        for own in error.get("groups") or [error]:
            part = {"output": number, "channels": None, "equal_share": None, **own}
            if fidelity.is_lost(part):
                place = fidelity.where(part, len(errors)) or "the output"
                told.append(f"{place} is noise beside the source model's: {fidelity.figure(part)}")
    return told


def _figures(errors: Array, elements: int) -> dict[str, Any]:
    """errors: (n, 4), as Scored.errors of one output."""
    greatest = float(errors[:, 0].max())
    return {
        "max": greatest,
        "mean": float(errors[:, 1].sum() / (len(errors) * elements)),
        "sqnr_db": fidelity.decibels(float(errors[:, 2].sum()), float(errors[:, 3].sum()), greatest),
    }


def _groups(scored: Scored, output: int) -> list[dict[str, Any]]:
    if scored.parts is None or scored.part_of is None or scored.part_channels is None or scored.part_largest is None:
        return []
    rows = zip(scored.parts, scored.part_of.tolist(), scored.part_channels.tolist(), scored.part_largest, strict=True)
    return [
        {"axis": axis, "channels": [row for row in channels if row[0] >= 0], "count": count, "largest": float(largest)}
        | _figures(errors, elements)
        for errors, (number, axis, count, elements), channels, largest in rows
        if number == output
    ]


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
    arrays.write(path, columns)


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
        "baseline_latency": comparison.latency(0)["p50_s"] if index else None,
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
    arrays.write(path, columns)


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
