"""What the stored numbers alone tell: a range that is shifted or too narrow leaves its mark."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..task import Array
from .graph import Layer, Quantization

SATURATED = 0.005  # share of the values at one end of the range
CLIPPED = 0.002  # share of the float model's values that the range does not hold
SHIFT_STEPS = 16  # least shift that is called a wrong zero point
CROWDED = 0.0005
UNUSED_STEPS = 48  # at the other end
STRONG = 0.02  # share at one end, over all samples, that is evidence enough for a fault
FIXED = {"LOGISTIC", "SOFTMAX", "LOG_SOFTMAX", "TANH", "Sigmoid", "SoftMax", "Softmax", "Tanh"}  # ranges of their own
WIDTH = (0.5, 1.6)  # of what the values need, over what the range holds: it has the right width


@dataclasses.dataclass(frozen=True)
class Range:
    """low, high: shares of the values that are stored as the range's ends; unused: steps at the two ends; crowded: in
    how many samples, of all, each end holds more than a sound range's."""

    low: float
    high: float
    unused: tuple[int, int]
    crowded: tuple[int, int] = (0, 0)

    def document(self) -> dict[str, Any]:
        return {"at_low_end": self.low, "at_high_end": self.high, "unused_steps": list(self.unused)}


def seen(layer: Layer, values: Array) -> Range | None:
    """values: as the runtime gave them; None for tensors without a range."""
    own = layer.quantization
    if own is None or not values.size:
        return None
    stored = values if layer.is_stored else own.steps(values)
    least, most = int(stored.min()), int(stored.max())
    rows = stored.reshape(len(stored), -1) if stored.ndim else stored.reshape(1, 1)
    lows, highs = (rows <= own.low).mean(axis=1), (rows >= own.high).mean(axis=1)
    crowded = int((lows >= SATURATED).sum()), int((highs >= SATURATED).sum())
    unused = max(0, least - own.low), max(0, own.high - most)
    return Range(float(lows.mean()), float(highs.mean()), unused, crowded)


def shifted_alone(layer: Layer, told: Range) -> int | None:
    """The zero point that would fit, where one end is crowded and the other empty; None where nothing is odd, or where
    it is meant so: symmetric ranges, and those that an operator is given by its runtime."""
    own = layer.quantization
    if own is None or layer.kind in FIXED or (own.zero == 0 and own.low < 0):
        return None
    fits = _moved(own, told)
    return fits if fits is not None and own.low <= fits <= own.high else None


def is_strong(told: Range, samples: int) -> bool:
    """Whether a range that looks shifted does so in most of several samples, and for many values."""
    at_high = told.high >= told.low
    share, crowded = (told.high, told.crowded[1]) if at_high else (told.low, told.crowded[0])
    return share >= STRONG and crowded >= max(2, samples / 2)


def _moved(own: Quantization, told: Range) -> int | None:
    """Values that are never below zero, in a range that is, tell it sooner: nobody calibrates what a ReLU gives so."""
    if told.high >= CROWDED and own.low + told.unused[0] == own.zero and told.unused[0] >= UNUSED_STEPS:
        return own.low
    if told.high >= SATURATED and told.unused[0] >= UNUSED_STEPS:
        return own.zero - told.unused[0]
    if told.low >= SATURATED and told.unused[1] >= UNUSED_STEPS and own.zero != own.low:
        return own.zero + told.unused[1]
    return None


def against(own: Quantization, values: Array, reference: Array) -> dict[str, Any] | None:
    """What is wrong with a range, judged by the float model's values of the same tensor; None: it fits.

    values: what the range made of them. {"fault": "zero-point" or "range", "share", "fits": zero point or [low, high]}
    """
    low, high = own.range
    least, most = float(reference.min()), float(reference.max())
    outside = ((reference < low - 1.5 * own.scale) | (reference > high + 1.5 * own.scale)) & (
        np.abs(values - reference) > 1.5 * own.scale
    )
    share = float(outside.mean())
    needed = max(most - least, own.scale) / (high - low)
    if share >= CLIPPED:
        fits = int(np.clip(np.rint(own.low - least / own.scale), own.low, own.high))
        if needed <= WIDTH[1] and abs(fits - own.zero) >= SHIFT_STEPS and _is_one_sided(least, most, low, high):
            return {"fault": "zero-point", "share": share, "fits": fits}
        return {"fault": "range", "share": share, "fits": [least, most]}
    offset = np.median(values - reference) / own.scale
    spread = np.median(np.abs(values - reference - offset * own.scale)) / own.scale
    moved = int(own.zero + np.rint(offset))
    if abs(offset) >= SHIFT_STEPS / 4 and spread < abs(offset) / 4 and own.low <= moved <= own.high:
        return {"fault": "zero-point", "share": 1.0, "fits": moved}
    return None


def _is_one_sided(least: float, most: float, low: float, high: float) -> bool:
    """Whether the range has room on one side for what it lacks on the other."""
    return (most > high and least > low) or (least < low and most < high)
