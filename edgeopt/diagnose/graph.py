"""A model's layers as `diagnose` sees them: the tensors that can be watched, in executed order, and their weights.

One file per runtime, its name is the runtime's name; each reads and writes its format without any framework:

    read(path) -> Graph
    watched(path, graph, layers, folder) -> files   a copy that gives those layers' tensors as further outputs
    halved(path, graph, folder) -> files or None    a copy whose int8 weights have 7 bits
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from .. import formats
from ..errors import ModelError
from ..task import Array


class _Kind(Protocol):
    @property
    def kind(self) -> str: ...


N = TypeVar("N", bound=_Kind)
WEIGHTED = {
    *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D"),
    *("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData"),
    *("Conv", "Gemm", "ConvTranspose", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
}


# What a file that is not what it says raises somewhere in the readers, which follow its numbers and names.
DAMAGED = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, StopIteration, TypeError),
    *(ValueError, struct.error, ElementTree.ParseError),
)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """value = (stored - zero) * scale, stored between low and high."""

    scale: float
    zero: int
    low: int
    high: int

    def widen(self, stored: Array) -> Array:
        return np.asarray((stored.astype(np.float64) - self.zero) * self.scale)

    def steps(self, values: Array) -> Array:
        """Values as the nearest stored numbers, not held within the range."""
        return np.asarray(np.rint(values / self.scale) + self.zero)

    @property
    def range(self) -> tuple[float, float]:
        return (self.low - self.zero) * self.scale, (self.high - self.zero) * self.scale


@dataclasses.dataclass(frozen=True)
class Weights:
    """values: as the layer multiplies by them, float64. step: of the rounding, to be broadcast; None: not rounded."""

    name: str
    values: Array
    step: Array | None
    stored: str


@dataclasses.dataclass(frozen=True)
class Layer:
    """A tensor that can be watched, and the node that makes it.

    match: what the same tensor is called in the model before quantization. sources: the numbers of the layers that it
    is computed from, -1 for the model's inputs. quantization: of the tensor itself; is_stored: it holds the stored
    numbers, not the values.
    """

    tensor: Any
    name: str
    node: str
    kind: str
    match: str
    sources: tuple[int, ...] = ()
    quantization: Quantization | None = None
    is_stored: bool = False
    weights: Weights | None = None

    def values(self, array: Array) -> Array:
        """What the runtime gave as numbers that mean what the float model's mean, float64."""
        if self.quantization is not None and self.is_stored:
            return self.quantization.widen(array)
        return array.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Graph:
    """outputs: the numbers of the layers that are the model's own outputs, None where one cannot be watched.
    inputs: how each input is stored, None for plain numbers. rounds: it rounds what it computes with by ranges that no
    layer tells, those of each channel or of the moment."""

    runtime: str
    layers: tuple[Layer, ...]
    outputs: tuple[int | None, ...]
    inputs: tuple[Quantization | None, ...] = ()
    rounds: bool = False

    @property
    def quantized(self) -> bool:
        return self.rounds or any(
            layer.quantization is not None or (layer.weights is not None and layer.weights.step is not None)
            for layer in self.layers
        )


def read(path: Path, runtime: str) -> Graph:
    """Raises ModelError for a file that cannot be looked into."""
    if runtime not in formats.RUNTIME_OF.values():
        raise ModelError(f"{path}: `diagnose` cannot look into models of runtime '{runtime}'")
    formats.read(path, runtime)
    with _named(path, "its layers cannot be read"):
        found: Graph = _format(runtime).read(path)
    return found


def watched(path: Path, graph: Graph, folder: Path) -> list[Path]:
    """A copy of the model in `folder` whose outputs are its own, then every layer that is none of them.

    Raises ModelError."""
    extra = [layer for number, layer in enumerate(graph.layers) if number not in graph.outputs]
    with _named(path, "no copy that shows its layers can be made"):
        found: list[Path] = _format(graph.runtime).watched(path, graph, extra, folder)
    return found


def halved(path: Path, graph: Graph, folder: Path) -> list[Path] | None:
    """A copy of the model in `folder` whose int8 weights have 7 bits; None where it has none. Raises ModelError."""
    with _named(path, "no copy with 7-bit weights can be made"):
        found: list[Path] | None = _format(graph.runtime).halved(path, graph, folder)
    return found


def _format(runtime: str) -> Any:
    return importlib.import_module(f"{__package__}.{runtime}")


@contextlib.contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise ModelError(f"{path}: {what} ({error!r}); give the model as its converter wrote it") from error


def in_order(graph: Graph, outputs: Sequence[Array]) -> list[Array]:
    """Of each layer what a watched copy's `outputs` hold of it."""
    own = {layer: place for place, layer in enumerate(graph.outputs) if layer is not None}
    others = iter(range(len(graph.outputs), len(outputs)))
    places = [own[number] if number in own else next(others) for number in range(len(graph.layers))]
    return [outputs[place] for place in places]


def weighted_above(start: N, above: Callable[[N], Iterable[N | None]], ends: set[str]) -> N | None:
    """The nearest node with weights from `start` on, not beyond nodes whose kind is in `ends`; of two branches the
    first. above: what a node is computed from."""
    pending, seen = collections.deque[N | None]([start]), set[int]()
    while pending:
        own = pending.popleft()
        if own is None or id(own) in seen or own.kind in ends:
            continue
        if own.kind in WEIGHTED:
            return own
        seen.add(id(own))
        pending.extend(above(own))
    return None


class Origins:
    """Which watched layers a tensor is computed from."""

    def __init__(self, inputs: Iterable[Any]) -> None:
        self._of: dict[Any, frozenset[int]] = {name: frozenset({-1}) for name in inputs}

    def of(self, tensors: Iterable[Any]) -> tuple[int, ...]:
        """Empty for constants."""
        return tuple(sorted(set().union(*(self._of.get(tensor, frozenset()) for tensor in tensors))))

    def passed_on(self, outputs: Iterable[Any], inputs: Iterable[Any]) -> None:
        found = frozenset(self.of(inputs))
        for output in outputs:
            self._of[output] = found

    def watch(self, output: Any, number: int) -> None:
        self._of[output] = frozenset({number})
