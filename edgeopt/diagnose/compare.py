"""Two runs of one model, layer by layer: where they part beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import fidelity
from ..task import Array
from .graph import Graph, Layer

# Two runs of a layer agree above so many decibels: other kernels sum in another order and round otherwise.
AGREE_FLOAT_DB, AGREE_HALF_DB, AGREE_INT8_DB = 60.0, 35.0, 30.0
STEEP_DB = 6.0  # that much worse than what it was computed from: the layer's own doing, not handed on to it
ROUNDING_STEPS = 1.5  # of the stored numbers; one is another rounding
EQUAL_DB, LOST_DB = 200.0, -200.0

Values = list[Array | None]


def error(found: Array, reference: Array) -> dict[str, Any]:
    """Greatest and mean absolute error, and signal over noise in decibels, None where they are equal; without figures
    and at LOST_DB where one is NaN or infinite and the other is not, or another one; so too, with both "shapes", where
    these differ."""
    if found.shape != reference.shape:
        shapes = [list(found.shape), list(reference.shape)]
        return {"max": None, "mean": None, "sqnr_db": LOST_DB, "shapes": shapes}
    own, true = found.astype(np.float64), reference.astype(np.float64)
    same = (own == true) | (np.isnan(own) & np.isnan(true))
    known = np.isfinite(own) & np.isfinite(true)
    if not (same | known).all():
        return {"max": None, "mean": None, "sqnr_db": LOST_DB}
    difference = np.where(known, own, 0) - np.where(known, true, 0)
    noise, signal = float((difference**2).mean()), float((true[known] ** 2).mean()) if known.any() else 0.0
    decibels = None if noise == 0 else max(LOST_DB, 10 * math.log10(max(signal, 1e-300) / noise))
    size = np.abs(difference)
    return {"max": float(size.max(initial=0)), "mean": float(size.mean()), "sqnr_db": decibels}


def answers(found: Sequence[Array], reference: Sequence[Array], by_group: bool) -> dict[str, Any]:
    """The error of the worst output, each (n, ...), with its number as "output" and what it is in words as "part", ""
    of an only one. by_group: where an output's channels differ in size by orders, of its worst group of them. Of whole
    numbers "equal_share" counts, and "sqnr_db" ranks it among the others."""
    told = []
    for number, (own, true) in enumerate(zip(found, reference, strict=False)):
        shaped = own.reshape(true.shape) if own.size == true.size else own
        whole = error(shaped, true) | {"output": number, "part": f"output {number}" if len(reference) > 1 else ""}
        told.append(whole)
        if whole["max"] is None:
            continue
        if fidelity.is_whole(true):
            share = float((shaped == true).mean())
            rank = fidelity.rank({"sqnr_db": None, "equal_share": share})
            told[-1] |= {"equal_share": share, "sqnr_db": None if share == 1 else rank}
        elif by_group:
            told += [
                error(group.of(shaped), group.of(true))
                | {"output": number, "part": f"output {number}, {fidelity.channels(group.figures())}"}
                for group in fidelity.groups(true)
            ]
    return min(told, key=decibels)


def decibels(told: dict[str, Any] | None) -> float:
    """A comparison's signal over noise as a number that can be ordered."""
    if told is None or told["sqnr_db"] is None:
        return EQUAL_DB
    return float(told["sqnr_db"])


def layers(graph: Graph, found: Sequence[Array], reference: Sequence[Array]) -> list[dict[str, Any]]:
    """Per layer the error of `found` against `reference`, each (n, ...) as the runtime gave it."""
    return [
        error(layer.values(own), layer.values(other))
        for layer, own, other in zip(graph.layers, found, reference, strict=True)
    ]


def parted(graph: Graph, told: Sequence[dict[str, Any]], agree_db: float) -> list[int]:
    """The layers that part by their own doing: what they were computed from agrees, or parts far less."""
    found = []
    for number, layer in enumerate(graph.layers):
        before = min((decibels(told[source]) for source in layer.sources if source >= 0), default=EQUAL_DB)
        own = decibels(told[number])
        if own < agree_db and own < before - STEEP_DB and not _is_rounding(layer, told[number]):
            found.append(number)
    return found


def apart_unwatched(
    graph: Graph, answers: dict[str, Any] | None, told: Sequence[dict[str, Any]], agree_db: float
) -> bool:
    """Whether the worst of the answers parts clearly, though the same tensor agrees while every layer is watched."""
    place = answers.get("output", 0) if answers is not None else 0
    watched = graph.outputs[place] if place < len(graph.outputs) else None
    if watched is None:
        return False
    own, agreed = decibels(answers), decibels(told[watched])
    return own < agree_db <= agreed and own + STEEP_DB <= agreed


def agreement_needed(graph: Graph, options: dict[str, Any]) -> float:
    """Decibels above which two runs of this model count as one."""
    if graph.quantized:
        return AGREE_INT8_DB
    return AGREE_HALF_DB if options.get("precision") == "f16" else AGREE_FLOAT_DB


def _is_rounding(layer: Layer, told: dict[str, Any]) -> bool:
    own = layer.quantization
    return own is not None and told["max"] is not None and float(told["max"]) <= ROUNDING_STEPS * own.scale
