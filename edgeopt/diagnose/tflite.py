"""TFLite's layers, read and changed in the flatbuffer itself; see graph.py."""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import mapped
from ..formats.tflite import (
    CUSTOM,
    GRAPH_INPUTS,
    GRAPH_OPERATORS,
    GRAPH_OUTPUTS,
    GRAPH_TENSORS,
    MODEL_BUFFERS,
    MODEL_GRAPHS,
    MODEL_OPCODES,
    NAMES,
    TYPES,
    Table,
)
from ..task import Array
from .graph import WEIGHTED, Graph, Layer, Origins, Quantization, Weights

SHARED = 4  # times the file's size that weights may have, those counted twice that two tensors share
NUMPY = {"float32", "float16", "int32", "uint8", "int64", "bool", "int16", "int8", "float64"}


class _Tensor:
    """quantization: SCALE, ZERO and AXIS are the schema's field numbers."""

    SCALE, ZERO, AXIS = 2, 3, 6

    def __init__(self, data: Any, table: Table, buffers: list[Table], copied: list[int]) -> None:
        """copied: how many bytes of weights may be copied yet, of all tensors together."""
        self._data, self._copied = data, copied
        self.name, self.shape = table.text(3), table.numbers(0)
        kind = table.number(1, "<b")
        self.dtype = TYPES[kind] if 0 <= kind < len(TYPES) else "?"
        buffer = buffers[table.number(2, "<I")]
        self._first, self._count = buffer.vector(0, 1)
        self.is_constant = self._count > 0
        self.scales, self.zeros, self.axis = self._quantization(table.table(4))

    def _quantization(self, told: Table | None) -> tuple[list[float], list[int], int]:
        if told is None:
            return [], [], 0
        return told.items(self.SCALE, "f"), told.items(self.ZERO, "q"), told.number(self.AXIS, "<i")

    @property
    def quantization(self) -> Quantization | None:
        """Of a tensor with one scale; weights have one per channel."""
        if len(self.scales) != 1 or self.dtype not in ("int8", "uint8", "int16"):
            return None
        limits = np.iinfo(self.dtype)
        return Quantization(self.scales[0], self.zeros[0] if self.zeros else 0, int(limits.min), int(limits.max))

    @functools.cached_property
    def weights(self) -> Weights | None:
        """Copied when they are asked for, as most constants never are."""
        if not self.is_constant or self.dtype not in NUMPY:
            return None
        self._copied[0] -= self._count
        if self._copied[0] < 0:
            raise ValueError("its tensors share their data more often than a model's do")
        content = bytes(self._data[self._first : self._first + self._count])
        stored: Array = np.frombuffer(content, self.dtype).reshape(self.shape)
        if not self.scales:
            return Weights(self.name, stored.astype(np.float64), None, self.dtype)
        shape = [1] * stored.ndim
        if len(self.scales) > 1:
            shape[self.axis] = len(self.scales)
        step = np.asarray(self.scales, np.float64).reshape(shape)
        zero = np.asarray(self.zeros or [0], np.float64).reshape(shape if len(self.zeros) > 1 else [1] * stored.ndim)
        return Weights(self.name, (stored - zero) * step, step, self.dtype)


def read(path: Path) -> Graph:
    with mapped(path) as data:
        model = Table(data, struct.unpack_from("<I", data)[0], [len(data)])
        buffers = list(model.tables(MODEL_BUFFERS))
        kinds = [_kind(code) for code in model.tables(MODEL_OPCODES)]
        graph = next(model.tables(MODEL_GRAPHS))
        copied = [SHARED * len(data)]
        tensors = [_Tensor(data, table, buffers, copied) for table in graph.tables(GRAPH_TENSORS)]
        layers = _layers(graph, kinds, tensors)
        numbers = {layer.tensor: number for number, layer in enumerate(layers)}
        inputs = tuple(tensors[index].quantization for index in graph.numbers(GRAPH_INPUTS))
        outputs = tuple(numbers.get(index) for index in graph.numbers(GRAPH_OUTPUTS))
        return Graph("tflite", tuple(layers), outputs, inputs)


def _layers(graph: Table, kinds: list[str], tensors: list[_Tensor]) -> list[Layer]:
    origins, found = Origins(graph.numbers(GRAPH_INPUTS)), list[Layer]()
    for operator in graph.tables(GRAPH_OPERATORS):
        kind = kinds[operator.number(0, "<I")]
        taken = [index for index in operator.numbers(1) if index >= 0]
        given = operator.numbers(2)
        sources = origins.of(taken)
        origins.passed_on(given, taken)
        for index in given:
            own = tensors[index]
            if sources and own.shape and own.dtype in NUMPY:
                origins.watch(index, len(found))
                weights = tensors[taken[1]].weights if kind in WEIGHTED and len(taken) > 1 else None
                found.append(
                    Layer(
                        index, own.name, own.name, kind, own.name, sources, own.quantization,
                        own.quantization is not None, weights,
                    )
                )  # fmt: skip
    return found


def _kind(code: Table) -> str:
    number = max(code.number(0, "<b"), code.number(3, "<i"))
    if number == CUSTOM:
        return code.text(1) or "CUSTOM"
    return NAMES.get(number, f"operator {number}")


def watched(path: Path, graph: Graph, extra: list[Layer], folder: Path) -> list[Path]:  # noqa: ARG001
    """The list of outputs is written again behind the file's end, and the graph told to find it there."""
    content = bytearray(path.read_bytes())
    root = Table(content, struct.unpack_from("<I", content)[0], [len(content)])
    table = next(root.tables(MODEL_GRAPHS))
    place = table.place(GRAPH_OUTPUTS)
    outputs = [*table.numbers(GRAPH_OUTPUTS), *(int(layer.tensor) for layer in extra)]
    content += b"\0" * (-len(content) % 16)
    struct.pack_into("<I", content, place, len(content) - place)
    content += struct.pack(f"<I{len(outputs)}i", len(outputs), *outputs)
    content += b"\0" * (-len(content) % 16)
    out = folder / path.name
    out.write_bytes(content)
    return [out]


def halved(path: Path, graph: Graph, folder: Path) -> None:  # noqa: ARG001
    """No kernel of TFLite adds products in 16 bits."""
    return None
