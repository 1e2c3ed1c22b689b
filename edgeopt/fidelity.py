"""How far answers are from their reference: the error of every output, and of its worst group of channels.

One figure over unlike numbers tells only of the largest: where a detector's head joins boxes up to 640 with scores up
to 1, scores that are all lost still leave 50 dB. So channels whose sizes differ by orders are groups of their own.
Whole numbers and booleans, such as an argmax inside the model, are right or wrong: their figure is the share of equal
values. What an artifact must reach to count as an answer is in floor.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .floor import FEW_EQUAL, FLOOR_DB, LARGE_ERROR_DB, LEAST_EQUAL
from .task import Array

LOST_DB = -200.0  # of an answer where the reference is all zero
ZERO = 1e-6  # such an answer that is no greater is zero too, to a float's rounding

# A group spans values up to 32 times its smallest channel's, as one step of int8 is then a tenth of that channel, and
# ends at a gap of 8 times, as channels of one kind differ by less from the next. Without a gap it ends at 128 times:
# int8 has two steps for such a channel beside the largest one.
SPAN, GAP, FAR = 32.0, 8.0, 128.0
LEAST_VALUES = 8  # of a channel: fewer may all be near zero by chance
NEVER_SEEN = 1e-6  # of the largest: what a float's rounding leaves of zero
MASK, MASK_GULF = 9e3, 1e3  # the least of a mask's constants, and how far it is above all answers
MOST_RANGES, TOLD_RANGES = 16, 4  # of channels: in figures, in words

Figures = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Channels of one output along `axis` (axis 0 is the sample) whose greatest values are of one size, `largest`."""

    axis: int
    channels: tuple[int, ...]
    largest: float

    def of(self, array: Array) -> Array:
        """Its part of the output, (n, ...)."""
        return np.take(array, self.channels, axis=self.axis)

    def ranges(self) -> list[list[int]]:
        """The channels as [first, last] of each unbroken row; of the first MOST_RANGES."""
        found: list[list[int]] = []
        for channel in sorted(self.channels):
            if found and found[-1][1] == channel - 1:
                found[-1][1] = channel
            else:
                found.append([channel, channel])
        return found[:MOST_RANGES]

    def figures(self) -> Figures:
        """{"axis", "channels" (as ranges), "count" (how many), "largest"}."""
        return {"axis": self.axis, "channels": self.ranges(), "count": len(self.channels), "largest": self.largest}


def is_whole(reference: Array) -> bool:
    """Whether the output holds whole numbers or booleans."""
    return reference.dtype.kind in "biu"


def groups(reference: Array) -> tuple[Group, ...]:
    """The groups of channels of an output (n, ...), the largest first; none where all are of one size.

    Of several axes the one whose groups differ most. Channels that are always zero join the smallest group. Scores that
    all lie in 0…1 are one group, however rare a class is: they are compared with one another.
    """
    if is_whole(reference) or not reference.size or (reference.min() >= 0 and reference.max() <= 1):
        return ()
    size = np.abs(reference)
    by_axis = [_along(size, axis) for axis in range(1, reference.ndim)]
    return max((own for own in by_axis if len(own) > 1), key=lambda own: own[0].largest / own[-1].largest, default=())


def _along(size: Array, axis: int) -> tuple[Group, ...]:
    """size: absolute values, (n, ...)."""
    if size.size < LEAST_VALUES * size.shape[axis]:
        return ()
    largest = size.max(axis=tuple(place for place in range(size.ndim) if place != axis)).astype(np.float64)
    seen = [int(channel) for channel in np.argsort(-largest, kind="stable") if largest[channel] > 0]
    seen = [channel for channel in seen if largest[channel] > NEVER_SEEN * largest[seen[0]]]
    if not seen:
        return ()
    parts = [[seen[0]]]
    for before, channel in itertools.pairwise(seen):
        smaller, gap = largest[parts[-1][0]] / largest[channel], largest[before] / largest[channel]
        if smaller > FAR or (smaller > SPAN and gap >= GAP):
            parts.append([])
        parts[-1].append(channel)
    parts[-1] += sorted(set(range(len(largest))) - set(seen))
    return tuple(Group(axis, tuple(part), float(largest[part[0]])) for part in parts)


def errors(found: Sequence[Array], reference: Sequence[Array]) -> list[Figures]:
    """Of each output, both (n, ...) of one shape and finite:

    {"output", "largest" (of the reference), "max_abs_error", "sqnr_db" (None where equal, and of whole numbers),
    "equal_share" (of whole numbers, else None), "groups": [{"axis", "channels", "count", "largest",
    "max_abs_error", "sqnr_db"}], empty where all channels are of one size}.
    """
    told = []
    for number, (ours, theirs) in enumerate(zip(found, reference, strict=True)):
        own: Figures = {"output": number, "largest": float(np.abs(theirs.astype(np.float64)).max(initial=0.0))}
        own |= _error(ours, theirs) | {"equal_share": None}
        if is_whole(theirs):
            own |= {"sqnr_db": None, "equal_share": float(np.equal(ours, theirs).mean()) if theirs.size else 1.0}
        own["groups"] = [group.figures() | _error(group.of(ours), group.of(theirs)) for group in groups(theirs)]
        told.append(own)
    return told


def difference_of(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """(ours less theirs, theirs) as float64. Both are 0 where a mask hides what is answered: -1e9 in place of a logit
    is orders above every answer, and is right as soon as it is out of their reach."""
    true = theirs.astype(np.float64)
    difference = ours.astype(np.float64) - true
    size = np.abs(true)
    hidden = size >= MASK
    rest = size[~hidden]
    if rest.size and hidden.any() and 0 < rest.max() * MASK_GULF <= size[hidden].min():
        hidden &= ours * np.sign(true) >= size / 2
        true, difference = np.where(hidden, 0.0, true), np.where(hidden, 0.0, difference)
    return difference, true


def _error(ours: Array, theirs: Array) -> Figures:
    difference, true = difference_of(ours, theirs)
    difference = np.abs(difference)
    noise, signal = float((difference**2).sum()), float((true**2).sum())
    greatest = float(difference.max(initial=0.0))
    return {"max_abs_error": greatest, "sqnr_db": decibels(noise, signal, greatest)}


def decibels(noise: float, signal: float, greatest: float) -> float | None:
    """Signal over noise of sums of squares; None where they are equal, LOST_DB where there is no signal.

    greatest: of the errors, by which an answer to a reference of zero is told from a float's rounding.
    """
    if noise == 0 or (signal == 0 and greatest <= ZERO):
        return None
    return max(LOST_DB, 10 * float(np.log10(signal / noise))) if signal else LOST_DB


def parts(outputs: Sequence[Mapping[str, Any]]) -> list[Figures]:
    """What is judged: each output, or its groups in its place, as {"output", "axis", "channels", "largest", "sqnr_db",
    "equal_share", …}; axis and channels are None of a whole output."""
    found: list[Figures] = []
    for own in outputs:
        one = {"output": own["output"], "axis": None, "channels": None, "equal_share": own["equal_share"]}
        whole = one | {key: own[key] for key in ("largest", "max_abs_error", "sqnr_db")}
        found += [one | group for group in own["groups"]] or [whole]
    return found


def worst(outputs: Sequence[Mapping[str, Any]]) -> Figures | None:
    """The part with the largest error; None where there is no output."""
    return min(parts(outputs), key=rank, default=None)


def rank(part: Mapping[str, Any]) -> float:
    """In one order: decibels, and shares of equal values between the same two limits."""
    share = part["equal_share"]
    if share is not None:
        steepness = (LARGE_ERROR_DB - FLOOR_DB) / (FEW_EQUAL - LEAST_EQUAL)
        return float("inf") if share == 1 else FLOOR_DB + (share - LEAST_EQUAL) * steepness
    return float("inf") if part["sqnr_db"] is None else float(part["sqnr_db"])


def is_lost(part: Mapping[str, Any] | None) -> bool:
    """Whether its error is too large to be an answer."""
    return part is not None and rank(part) < FLOOR_DB


def is_large(part: Mapping[str, Any] | None) -> bool:
    """Whether its error needs a warning."""
    return part is not None and rank(part) < LARGE_ERROR_DB


def where(part: Mapping[str, Any], of: int) -> str:
    """Which part it is: "output 1, channels 4-6 of axis 1 (values to 0.88)"; "" for the only output as a whole."""
    ranges = part["channels"]
    output = f"output {part['output']}" if of > 1 or ranges else ""
    if not ranges:
        return output
    return f"{output}, {channels(part)}"


def channels(group: Mapping[str, Any]) -> str:
    """Which they are, in words: "channels 4-6 of axis 1 (values to 0.88)"."""
    ranges, told = group["channels"], group["channels"][:TOLD_RANGES]
    rows = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in told)
    more = f" … ({group['count']} in all)" if len(ranges) > len(told) else ""
    return f"channels {rows}{more} of axis {group['axis']} (values to {group['largest']:.3g})"


def figure(part: Mapping[str, Any]) -> str:
    """Its error in words: "signal to noise 36.5 dB", "98.2 % of values equal"."""
    share, sqnr_db = part["equal_share"], part["sqnr_db"]
    if share is not None:
        return "equal" if share == 1 else f"{100 * share:.1f} % of values equal"
    if sqnr_db is None:
        return "equal"
    if sqnr_db == LOST_DB:
        return "not zero, as the source model's is"
    return f"signal to noise {sqnr_db:.1f} dB" + (": MORE NOISE THAN SIGNAL" if sqnr_db < 0 else "")


def refusal(outputs: Sequence[Mapping[str, Any]]) -> str | None:
    """Why these are no answers, in words; None where every part reaches the floor."""
    part = worst(outputs)
    if part is None or not is_lost(part):
        return None
    place = where(part, len(outputs))
    limit = f"{LEAST_EQUAL:.0%}" if part["equal_share"] is not None else f"{FLOOR_DB:g} dB"
    return f"{place}{': ' if place else ''}{figure(part)}, and the floor is {limit}"
