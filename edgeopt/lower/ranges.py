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
GULF = 64.0  # all other values share two steps either side of zero then
APART = 8.0


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
    why: dict[Key, str] = {}
    sizes: dict[Key, float] = {}
    held = {key for own in operators for key in own.operands}
    harmless = {key for own in operators if own.saturates for key in own.outputs}
    watched = dict.fromkeys(key for own in operators for key in (*own.inputs, *own.outputs) if key not in held)
    for values in runs:
        for key in watched:
            array = values(key)
            if array is None or array.dtype.kind != "f" or key in why:
                continue
            if key not in harmless and (reason := unfit(array)):
                why[key] = reason
            sizes[key] = max(sizes.get(key, 0.0), _largest(array))
    told = []
    for own in operators:
        reads = [f"what it {verb} {why[key]}" for verb, keys in own.ends() for key in keys if key in why]
        beside = max((sizes.get(key, 0.0) for key in own.outputs), default=0.0)
        reads += [f"its operand {reason}" for array in own.operands.values() if (reason := _operand(array, beside))]
        if reads and not own.saturates:
            told.append({"operator": own.kind, "name": own.name, "reason": reads[0]})
    return told


def _operand(values: Array, beside: float) -> str | None:
    """Why int8 cannot hold a constant beside results up to `beside`."""
    if (reason := unfit(values)) or values.dtype.kind != "f":
        return reason
    largest = _largest(values)
    return f"reaches {largest:.3g} beside results up to {beside:.3g}" if largest > max(LARGE, GULF * beside) else None


def _largest(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def unfit(values: Array) -> str | None:
    """Why int8 cannot hold these values beside one another, in words; None where it can, and for whole numbers."""
    if values.dtype.kind != "f" or values.size == 0:
        return None
    sizes = np.abs(values.astype(np.float64, copy=False)).ravel()
    largest = float(sizes.max())
    if not np.isfinite(largest):
        told = "NaN" if np.isnan(sizes).any() else "-infinity" if (values == -np.inf).any() else "infinity"
        return f"holds {told}"
    if largest > LIMIT:
        return f"reaches {largest:.3g}"
    if largest < LARGE:
        return None
    inner = float(sizes[sizes < largest / APART].max(initial=0.0))
    return f"reaches {largest:.3g} beside values up to {inner:.3g}" if 0 < inner < largest / GULF else None


def rows(arrays: Sequence[Array]) -> Iterator[list[Array]]:
    """The first SAMPLES samples, one (1, ...) of each input at a time."""
    for index in range(min(SAMPLES, len(arrays[0]))):
        yield [np.ascontiguousarray(array[index : index + 1]) for array in arrays]
