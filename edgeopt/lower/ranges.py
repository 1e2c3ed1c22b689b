"""Which tensors have no range that eight bits can hold; the operators that read or write them stay in float.

An attention mask adds -inf, the least float32 or -1e9 to scores of a few units. Its range makes one step of int8 larger
than every score, or is no number at all: onnxruntime and ai-edge-quantizer write noise then, and TFLite aborts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Key = Any  # of a tensor: its name or its index

SAMPLES = 32  # that are looked at: what a mask does, it does in every sample, or in many
LIMIT = 1e18  # products of two such scales leave float32
LARGE = 500.0  # below, what is far from all other values is a peak that counts, as in a softmax
GULF = 5  # powers of two without any value: all below share four steps either side of zero then


@dataclass(frozen=True)
class Operator:
    """One of a graph; its tensors by any key.

    operands: constants that are quantized with one step for all, as weights are not. saturates: values that are out of
    range become the end of it without harm, as padding with -infinity does before a maximum is taken.
    """

    kind: str
    name: str
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    operands: Mapping[Key, Array] = field(default_factory=dict)
    saturates: bool = False

    def ends(self) -> tuple[tuple[str, tuple[Key, ...]], ...]:
        return ("writes", self.outputs), ("reads", self.inputs)


def out_of_range(operators: Sequence[Operator], runs: Iterable[Callable[[Key], Array | None]]) -> list[dict[str, str]]:
    """[{"operator", "name", "reason"}] of the operators that read or write what int8 cannot hold.

    runs: for each sample a function from a tensor's key to its values; None for what is not watched.
    """
    sizes: dict[Key, Sizes] = {}
    held = {key for own in operators for key in own.operands}
    harmless = {key for own in operators if own.saturates for key in own.outputs}
    watched = dict.fromkeys(key for own in operators for key in (*own.inputs, *own.outputs) if key not in held)
    for values in runs:
        for key in watched:
            if (array := values(key)) is not None:
                sizes.setdefault(key, Sizes()).add(array)
    why = {key: reason for key, own in sizes.items() if key not in harmless and (reason := own.unfit())}
    told = []
    for own in operators:
        reads = [f"what it {verb} {why[key]}" for verb, keys in own.ends() for key in keys if key in why]
        beside = max((sizes[key].largest for key in own.outputs if key in sizes), default=0.0)
        reads += [f"its operand {reason}" for array in own.operands.values() if (reason := _far(array, beside))]
        if reads and not own.saturates:
            told.append({"operator": own.kind, "name": own.name, "reason": reads[0]})
    return told


def _far(values: Array, beside: float) -> str | None:
    """Why int8 cannot hold a constant beside results up to `beside`."""
    sizes = Sizes()
    sizes.add(values)
    if sizes.unfit() is None and sizes.largest > max(LARGE, 2.0**GULF * beside):
        return f"reaches {sizes.largest:.3g} beside results up to {beside:.3g}"
    return sizes.unfit()


class Sizes:
    """The magnitudes of one tensor's values, by powers of two, over samples; whole numbers have none."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._powers: set[int] = set()  # a value is in 2**(power - 1) … 2**power
        self._not_finite: str | None = None

    def add(self, values: Array) -> None:
        if values.dtype.kind != "f":
            return
        is_finite = np.isfinite(values)
        if not is_finite.all():
            worst = values[~is_finite]
            told = "NaN" if np.isnan(worst).any() else "-infinity" if worst.min() < 0 else "infinity"
            self._not_finite = self._not_finite or told
        sizes = np.abs(values[is_finite])
        self.largest = max(self.largest, float(sizes.max(initial=0.0)))
        self._powers.update(np.unique(np.frexp(sizes[sizes > 0])[1]).tolist())

    def unfit(self) -> str | None:
        """Why int8 cannot hold these beside one another, in words; None where it can.

        Where a mask was added, some values are near the largest, and all others are far below: none is between.
        """
        if self._not_finite:
            return f"holds {self._not_finite}"
        if self.largest > LIMIT:
            return f"reaches {self.largest:.3g}"
        top = max(self._powers, default=0)
        others = max((power for power in self._powers if power < top - 1), default=None)
        if self.largest < LARGE or others is None or top - others <= GULF:
            return None
        return f"reaches {self.largest:.3g} beside values up to {2.0**others:.3g}"


def rows(arrays: Sequence[Array]) -> Iterator[list[Array]]:
    """The first SAMPLES samples, one (1, ...) of each input at a time."""
    for index in range(min(SAMPLES, len(arrays[0]))):
        yield [np.ascontiguousarray(array[index : index + 1]) for array in arrays]
