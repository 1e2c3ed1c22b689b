"""When a sensor stood still: one and the same figure, told more often in a row than chance has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .stats import Floats

LEAST_READINGS = 20
BEYOND_CHANCE = 1e-9  # that a sensor at work tells one figure so often in a row


class Stretch(NamedTuple):
    """From when to when the figure stayed, and over how many readings."""

    began_s: float
    ended_s: float
    n: int


def stretches_of(times_s: Floats, values: Floats, runs: Sequence[tuple[float, float]]) -> list[Stretch]:
    """The stretches beyond chance of which some lies at work. runs: from when to when the board worked.

    A reading that failed is NaN.

    How often a figure follows itself by chance is what the readings outside a stretch say, so a coarse sensor is not
    mistaken for a frozen one. A figure that is the same at rest and at work, from the first reading to the last, says
    nothing about either.
    """
    whole = np.isfinite(values)
    times, values = times_s[whole], values[whole]
    same = values[1:] == values[:-1]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    found = []
    for begin, end in edges.reshape(-1, 2):
        length, outside = int(end - begin), len(same) - int(end - begin)
        chance = (int(same.sum()) - length + 1) / (outside + 2)
        if length < LEAST_READINGS or (outside and len(same) * chance**length > BEYOND_CHANCE):
            continue
        inside = [np.searchsorted(times[begin : end + 1], run) for run in runs]
        if any(last - first >= LEAST_READINGS for first, last in inside):
            found.append(Stretch(float(times[begin]), float(times[end]), length + 1))
    return found
