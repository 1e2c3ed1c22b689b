"""Float and int8, layer by layer: which ranges and weights are wrong, and where most is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from ..task import Array
from . import compare, ranges, words
from .graph import Graph, Layer, Weights

ROUNDING = 0.51  # steps; bias correction and the like leave weights alone
SPARE_STEPS = 1.0  # 7-bit and other schemes round anew
FEW_LAYERS = 0.3  # of the layers may have other weights; above, the reference is another model
SHOWN = 3
WORTH_SAYING_DB = 6.0
LEAST_LOSS_DB = 3.0  # of a layer whose range is wrong
HIGHEST_DB = 36.0  # of what goes into a layer, for its loss: rounding alone leaves no more

Document = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """The float model and what each of its layers gave."""

    path: Path
    graph: Graph
    values: Sequence[Array]


def judge(
    graph: Graph,
    found: Sequence[Array],
    inputs: Sequence[Array],
    reference: Reference | None,
    table: list[Document],
    is_far: bool,
) -> list[Document]:
    """Findings; fills "float_int8", "loss_db" and "range" of the table's rows.

    found: what each layer gave. inputs: what the model was given, against which its first rounding is compared.
    is_far: the answers are known to be far from the source model's; only then can stored numbers alone prove a fault.
    Raises ModelError for a reference that is another model.
    """
    findings = _weights(graph, reference, table) if reference is not None else []
    pairs = _pairs(graph, inputs, reference)
    told: list[dict[str, Any] | None] = []
    for number, layer in enumerate(graph.layers):
        true, values = pairs.get(number), layer.values(found[number])
        fits = true is not None and true.shape == values.shape
        told.append(compare.error(values, true) if fits and true is not None else None)
        table[number]["float_int8"] = told[-1]
    _losses(graph, told, table)
    for number, layer in enumerate(graph.layers):
        row = table[number]
        own = ranges.seen(layer, found[number])
        row["range"] = own.document() if own else None
        is_own = row["loss_db"] is None or row["loss_db"] >= LEAST_LOSS_DB  # else it was handed an error
        if own is not None and is_own:
            findings += _of_range(layer, row, own, layer.values(found[number]), pairs.get(number), is_far)
    named = {one["evidence"].get("layer") for one in findings}
    lossy = [row for row in table if (row["loss_db"] or 0) >= WORTH_SAYING_DB and row["number"] not in named]
    if reference is not None and lossy:
        findings.append(words.costly(sorted(lossy, key=_loss)[:SHOWN]))
    return sorted(findings, key=lambda one: not one["is_fault"])


def summary(table: Sequence[Document]) -> str:
    known = [row for row in table if row["float_int8"] is not None]
    if not known:
        return "no layer of the reference has the name of one here"
    return f"{len(known)} layers compared; the last is {words.decibels(known[-1]['float_int8'])} from float"


def _loss(row: Document) -> float:
    return -float(row["loss_db"])


def _pairs(graph: Graph, inputs: Sequence[Array], reference: Reference | None) -> dict[int, Array]:
    """The float values of each layer's tensor, where known."""
    found = {}
    known: dict[str, Array] = {}
    if reference is not None:
        own = reference.graph.layers
        known = {layer.match: layer.values(array) for layer, array in zip(own, reference.values, strict=True)}
    for number, layer in enumerate(graph.layers):
        true = known.get(layer.match)
        if true is None and layer.sources == (-1,) and len(inputs) == 1 and layer.kind in ("input", "QUANTIZE"):
            true = inputs[0].astype(np.float64)
        if true is not None:
            found[number] = true
    if reference is not None:
        for own_place, place in zip(graph.outputs, reference.graph.outputs, strict=False):
            if own_place is not None and place is not None:
                found.setdefault(own_place, reference.values[place].astype(np.float64))
    return found


def _of_range(
    layer: Layer, row: Document, seen: ranges.Range, values: Array, true: Array | None, is_far: bool
) -> list[Document]:
    own = layer.quantization
    if own is None:
        return []
    if true is None or true.shape != values.shape:
        fits = ranges.shifted_alone(layer, seen)
        if fits is None:
            return []
        is_proven = is_far and ranges.is_strong(seen, len(values))
        return [words.zero_point(row, fits, None) if is_proven else words.perhaps_zero_point(row, fits)]
    told = ranges.against(own, values, true)
    if told is None:
        return []
    if told["fault"] == "zero-point":
        return [words.zero_point(row, told["fits"], told["share"])]
    return [words.narrow_range(row, told["fits"], told["share"])]


def _losses(graph: Graph, told: Sequence[dict[str, Any] | None], table: list[Document]) -> None:
    """How much more noise a layer's tensor has than what it was computed from."""
    for number, layer in enumerate(graph.layers):
        if told[number] is None:
            continue
        before = [told[source] for source in layer.sources if source >= 0]
        known = [compare.decibels(one) for one in before if one is not None]
        if known or not before:
            table[number]["loss_db"] = round(
                min([*known, HIGHEST_DB]) - min(compare.decibels(told[number]), HIGHEST_DB), 2
            )


def _weights(graph: Graph, reference: Reference, table: list[Document]) -> list[Document]:
    """Layers whose weights are not the reference's, rounded."""
    own, true = _weighted(graph), _weighted(reference.graph)
    by_name = {weights.name: weights for _, weights in true}
    if any(weights.name not in by_name for _, weights in own) and len(own) == len(true):
        by_name = {weights.name: other for (_, weights), (_, other) in zip(own, true, strict=True)}
    found = []
    for number, weights in own:
        other = by_name.get(weights.name)
        if other is None or weights.step is None:
            continue
        if other.values.shape != weights.values.shape:
            shapes = list(other.values.shape), list(weights.values.shape)
            raise _other_model(
                reference, f"{words.layer(table[number])} has weights {shapes[0]} there, {shapes[1]} here"
            )
        steps = np.abs(weights.values - other.values) / weights.step
        wrong = steps > ROUNDING + SPARE_STEPS
        if wrong.any():
            axis = int(np.argmax(weights.step.shape)) if weights.step.size > 1 else 0
            rest = tuple(place for place in range(wrong.ndim) if place != axis)
            channels = np.flatnonzero(wrong.any(axis=rest)).tolist()
            worst = float(np.abs(weights.values - other.values).max())
            found.append(words.weights(table[number], int(wrong.sum()), wrong.size, channels, worst))
    if len(found) > max(1, FEW_LAYERS * len(own)):
        raise _other_model(reference, f"the weights of {len(found)} of {len(own)} layers differ by more than rounding")
    return found


def _other_model(reference: Reference, what: str) -> ModelError:
    return ModelError(
        f"--reference {reference.path}: another model: {what}; give the float model that this one was made from "
        "(pruned and retrained candidates have their own)"
    )


def _weighted(graph: Graph) -> list[tuple[int, Weights]]:
    """(layer, weights) in order, each weights once."""
    found: dict[str, tuple[int, Weights]] = {}
    for number, layer in enumerate(graph.layers):
        if layer.weights is not None:
            found.setdefault(layer.weights.name, (number, layer.weights))
    return list(found.values())
