"""What an application's preparation did otherwise: every explanation is tried on the golden arrays, and the one that
leaves least is told with what it leaves.

An explanation is a geometry (how a file became pixels), an arrangement of the array, an order of its channels, and a
scale and offset per channel, which are fitted. Arrays are (n, ...) with channels last.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ..task import Array

GOOD = 0.01  # of the values' own spread: less is another decoder's rounding
CLEARLY = 0.5  # a stranger explanation must leave so much less than a plainer one
EXPLAINED = 0.15  # more than this left is no explanation
SHIFTS = 8
PLACES = 20_000
SAME_SCALE = 0.02
MOST_AXES = 6


@dataclasses.dataclass(frozen=True)
class Expected:
    """Another way in which the files may have become arrays (n, ..., c)."""

    arrays: Array
    words: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """residual: root mean square of what is left, over the found values' spread. by, offset: per channel, (c,).

    faults: kind and words of each thing that is otherwise; values are judged by the caller.
    """

    residual: float
    faults: tuple[tuple[str, str], ...]
    by: Array
    offset: Array


def explain(found: Array, right: Array, others: Callable[[], Iterable[Expected]]) -> Explanation:
    """The best explanation of `found`; right: what should have been; others: made only where they are needed.

    Raises ValueError when no shape fits.
    """
    views = list(_arrangements(found, right.shape))
    if not views:
        raise ValueError(f"its shape is {list(found.shape)}")
    best = _plainest([_fitted(view, right, arranged) for view, arranged in views])
    if best.residual <= GOOD:
        return best
    moved = [
        _fitted(view, arrays, [*arranged, ("moved", told)])
        for view, arranged in views
        for arrays, told in _moves(right)
    ]
    resized = [
        _fitted(view, other.arrays, [*arranged, ("resize", other.words)])
        for other in others()
        for view, arranged in views
    ]
    return _plainest([best, *moved, *resized])


def _plainest(candidates: Sequence[Explanation]) -> Explanation:
    """Of equally good ones that with the fewest faults; a stranger one must be clearly better."""
    best: Explanation | None = None
    for count in sorted({len(one.faults) for one in candidates}):
        own = min((one for one in candidates if len(one.faults) == count), key=lambda one: one.residual)
        if best is None or (best.residual > GOOD and own.residual < CLEARLY * best.residual):
            best = own
    assert best is not None
    return best


def _arrangements(found: Array, shape: tuple[int, ...]) -> Iterator[tuple[Array, list[tuple[str, str]]]]:
    """Views of `found` with the expected shape, and what had to be done for it."""
    if found.shape == shape:
        yield found, []
    axes = range(1, found.ndim)
    for order in itertools.permutations(axes) if found.ndim == len(shape) <= MOST_AXES else ():
        if list(order) != list(axes) and tuple(found.shape[axis] for axis in order) == shape[1:]:
            told = f"its axes are ordered otherwise: {list(found.shape[1:])} where {list(shape[1:])} is expected"
            yield np.transpose(found, (0, *order)), [("layout", f"{told}{_layout(found.shape, shape)}")]
    if found.size == int(np.prod(shape)):
        if found.shape != shape:
            told = (
                f"the array's shape is {list(found.shape[1:])}, but its numbers lie in the order of {list(shape[1:])}"
            )
            yield found.reshape(shape), [("layout", told)]
        elif found.ndim == 4:  # the right shape, filled in another layout's order
            n, height, width, channels = shape
            planes = found.reshape(n, channels, height, width).transpose(0, 2, 3, 1)
            yield planes, [("layout", "the shape is right, but the numbers lie plane by plane (NCHW in an NHWC array)")]


def _layout(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and found[1] == shape[3] and found[2:] == shape[1:3]:
        return " (NCHW instead of NHWC)"
    return ""


def _moves(right: Array) -> Iterator[tuple[Array, str]]:
    if right.ndim == 4:
        yield right[:, :, ::-1], "mirrored left to right"
        yield right[:, ::-1], "upside down"
        yield right[:, ::-1, ::-1], "turned by 180 degrees"
        if right.shape[1] == right.shape[2]:
            yield right.transpose(0, 2, 1, 3), "rows and columns are swapped"
    names = {4: ("rows", "columns")}.get(right.ndim, ("places",) * (right.ndim - 1))
    for axis, name in enumerate(names, 1):
        if right.shape[axis] > 2 * SHIFTS:
            for shift in itertools.chain(range(1, SHIFTS + 1), range(-SHIFTS, 0)):
                yield np.roll(right, shift, axis), f"shifted by {shift} {name}"
    if right.ndim == 3:
        yield right[:, ::-1], "in reverse order"


def _fitted(found: Array, expected: Array, faults: list[tuple[str, str]]) -> Explanation:
    """With channels in the order that correlates best, each scaled and moved by least squares; judged by a sample of
    the places, as there are many explanations."""
    channels = found.shape[-1] if found.ndim > 2 else 1
    flat = found.reshape(-1, channels)
    rows = np.random.default_rng(0).integers(len(flat), size=PLACES) if len(flat) > PLACES else slice(None)
    own = flat[rows].astype(np.float64)
    true = expected.reshape(-1, channels)[rows].astype(np.float64)
    plain = list(range(channels))
    order = _order(own, true)
    if order != plain and _left(own, true[:, order])[0] >= CLEARLY * _left(own, true)[0]:
        order = plain
    if order != plain:
        told = "red and blue are swapped (BGR for RGB)" if order == [2, 1, 0] else f"channels are in the order {order}"
        faults = [*faults, ("channels", told)]
    residual, by, offset = _left(own, true[:, order])
    back = np.argsort(order)
    return Explanation(residual, tuple(faults), by[back], offset[back])


def _left(own: Array, true: Array) -> tuple[float, Array, Array]:
    """(what is left over the found values' spread, scale and offset per channel) of (places, channels)."""
    mean_own, mean_true = own.mean(axis=0), true.mean(axis=0)
    spread = ((true - mean_true) ** 2).mean(axis=0)
    by = ((own - mean_own) * (true - mean_true)).mean(axis=0) / np.where(spread == 0, 1, spread)
    offset = mean_own - by * mean_true
    left = own - (by * true + offset)
    total = float(np.sqrt(((own - mean_own) ** 2).mean())) or 1.0
    return float(np.sqrt((left**2).mean())) / total, by, offset


def _order(own: Array, true: Array) -> list[int]:
    """Which expected channel each found one is; as they are, where the channels are too alike to tell."""
    count = own.shape[1]
    plain = list(range(count))
    if not 1 < count <= 64:
        return plain
    spreads = own.std(axis=0), true.std(axis=0)
    if min(spreads[0].min(), spreads[1].min()) == 0:
        return plain
    a, b = ((array - array.mean(axis=0)) / spread for array, spread in zip((own, true), spreads, strict=True))
    alike = np.abs(a.T @ b) / len(own)
    order = [int(place) for place in alike.argmax(axis=1)]
    if sorted(order) != plain or alike[plain, order].sum() <= alike[plain, plain].sum():
        return plain
    return order


# Scale and offset of a pixel (0 to 255), as applications have them; the last ones per channel.
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SCALINGS = (
    ("0 … 255, not scaled", 1.0, 0.0),
    ("0 … 1 (divided by 255)", 1 / 255, 0.0),
    ("−1 … 1 (divided by 127.5, less 1)", 1 / 127.5, -1.0),
    ("−1 … 1 (less 127, divided by 128)", 1 / 128, -127 / 128),
    ("−128 … 127 (less 128)", 1.0, -128.0),
    ("0 … 1, less ImageNet's mean, divided by its deviation", 1 / (255 * _STD), -_MEAN / _STD),
    ("0 … 255, less ImageNet's mean", 1.0, -255 * _MEAN),
)


def same_scale(by: Array, offset: Array, wanted_by: Array, wanted_offset: Array, span: float) -> bool:
    """Whether both give nearly the same of values that span so much."""
    size = np.abs(wanted_by * span) * SAME_SCALE
    return bool(np.all(np.abs(by - wanted_by) * span <= size) and np.all(np.abs(offset - wanted_offset) <= size))


def scaling(by: Array, offset: Array, is_picture: bool) -> str:
    known = []
    for words, own_by, own_offset in SCALINGS if is_picture else ():
        wanted = [np.broadcast_to(own, by.shape) for own in (own_by, own_offset) if np.size(own) in (1, len(by))]
        if len(wanted) == 2 and same_scale(by, offset, wanted[0], wanted[1], 255.0):
            known.append((float(np.abs(by - wanted[0]).sum() * 255 + np.abs(offset - wanted[1]).sum()), words))
    if known:
        return min(known)[1]
    if np.ptp(by) <= SAME_SCALE * np.abs(by).max() and np.ptp(offset) <= SAME_SCALE * (np.abs(offset).max() + 1e-12):
        return f"{by.mean():.4g} times, plus {offset.mean():.4g}"
    shown = ", ".join(f"{a:.4g} times plus {b:.4g}" for a, b in list(zip(by, offset, strict=True))[:4])
    return f"per channel {shown}{', …' if len(by) > 4 else ''}"


def fitted(found: Array, expected: Array) -> tuple[Array, Array]:
    """Scale and offset per channel, (c,) each, by which `found` comes from `expected` of the same layout."""
    if found.shape != expected.shape:
        found = found.reshape(expected.shape)
    best = _fitted(found, expected, [])
    return best.by, best.offset
