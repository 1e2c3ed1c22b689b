"""ONNX's layers, read and changed in the protobuf message itself; see graph.py.

In a quantized model what QuantizeLinear gives is watched: what lies between two of them is computed in one kernel,
which a further output elsewhere would take apart.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import mapped
from ..formats import read as contents
from ..formats.onnxruntime import (
    GRAPH_INITIALIZER,
    GRAPH_INPUT,
    GRAPH_NODE,
    MODEL_GRAPH,
    TENSOR_EXTERNAL,
    TENSOR_LOCATION,
    TENSOR_NAME,
    TYPES,
    Message,
)
from ..task import Array
from .graph import WEIGHTED, Graph, Layer, Origins, Quantization, Weights, weighted_above

GRAPH_OUTPUT = 12
ENDS = {"DequantizeLinear", "QuantizeLinear"}
OF_THE_MOMENT = {
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
}
QUANTIZED = {"uint8", "int8", "uint16", "int16"}
# Operators that hold their scales themselves; which of their inputs are: data, weights, their scale, the result's
# scale, its zero.
INTEGER = {"QLinearConv": (0, 3, 4, 6, 7), "QLinearMatMul": (0, 3, 4, 6, 7)}
MOST_ELEMENTS = 1 << 28


class _Node:
    def __init__(self, message: Message) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.name, self.kind, self.domain = "", "", ""
        self.value: Message | None = None
        for number, part in message.fields():
            if not isinstance(part, Message):
                continue
            if number == 1:
                self.inputs.append(part.text())
            elif number == 2:
                self.outputs.append(part.text())
            elif number in (3, 4, 7):
                setattr(self, {3: "name", 4: "kind", 7: "domain"}[number], part.text())
            elif number == 5:
                tensor = next((inner for field, inner in part.fields() if field == 5), None)
                self.value = tensor if isinstance(tensor, Message) else self.value
        self.name = self.name or (self.outputs[0] if self.outputs else "?")


class _Tensor:
    """data: where its bytes are, in the file or in another one beside it; or its numbers."""

    def __init__(self, message: Message) -> None:
        self.sizes: list[int] = []
        self.name, self.kind, self.is_external = "", 0, False
        self.raw: Message | None = None
        self.packed: dict[int, list[Any]] = {}
        self.where: dict[str, str] = {}
        for number, part in message.fields():
            if number == 1:
                self.sizes += list(_varints(part))
            elif number == 2 and isinstance(part, int):
                self.kind = part
            elif number == TENSOR_NAME and isinstance(part, Message):
                self.name = part.text()
            elif number == 9 and isinstance(part, Message):
                self.raw = part
            elif number in (4, 5, 7):
                self.packed.setdefault(number, []).append(part)
            elif number == TENSOR_LOCATION:
                self.is_external = part == 1
            elif number == TENSOR_EXTERNAL and isinstance(part, Message):
                entry = {key: value.text() for key, value in part.fields() if isinstance(value, Message)}
                self.where[entry.get(1, "")] = entry.get(2, "")

    @property
    def dtype(self) -> str:
        return TYPES.get(self.kind, "?")

    def array(self, beside: Mapping[str, Path]) -> Array | None:
        """beside: the files that external data may be in, by name."""
        if self.dtype in ("?", "string", "bfloat16") or np.prod(self.sizes, dtype=float) > MOST_ELEMENTS:
            return None
        count = int(np.prod(self.sizes))
        if self.is_external:
            first = int(self.where.get("offset") or 0)
            if first < 0:
                raise ValueError(f"the data of tensor '{self.name}' begins at byte {first}")
            with mapped(beside[self.where["location"]]) as content:
                data = bytes(content[first : first + count * np.dtype(self.dtype).itemsize])
        elif self.raw is not None:
            data = self.raw.content()
        elif 4 in self.packed:
            data = b"".join(part.content() for part in self.packed[4])
        else:
            numbers = [value for parts in self.packed.values() for part in parts for value in _varints(part)]
            if count and not numbers:  # fields of doubles and the like, which weights and scales are not in
                return None
            wide = np.asarray(numbers, np.int64)
            held = wide.astype(np.uint16).view(np.float16) if self.dtype == "float16" else wide.astype(self.dtype)
            return held.reshape(self.sizes)
        return np.frombuffer(data, self.dtype).reshape(self.sizes)


def _varints(part: Any) -> Iterator[int]:
    """The integers of a repeated field, packed or not; 64 bits with a sign."""
    numbers = [part] if isinstance(part, int) else part.numbers()
    for number in numbers:
        yield number - (1 << 64) if number >= 1 << 63 else number


class _Model:
    def __init__(self, path: Path, data: Any) -> None:
        self.beside = {other.name: other for other in contents(path, "onnxruntime").paths[1:]}
        self.nodes: list[_Node] = []
        self.tensors: dict[str, _Tensor] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        for number, graph in Message(data, 0, len(data)).fields():
            if number == MODEL_GRAPH and isinstance(graph, Message):
                for kind, part in graph.fields():
                    if isinstance(part, Message):
                        self._part(kind, part)

    def _part(self, kind: int, part: Message) -> None:
        if kind == GRAPH_NODE:
            node = _Node(part)
            self.nodes.append(node)
            if node.kind == "Constant" and node.value is not None:
                self.tensors[node.outputs[0]] = _Tensor(node.value)
        elif kind == GRAPH_INITIALIZER:
            tensor = _Tensor(part)
            self.tensors[tensor.name] = tensor
        elif kind in (GRAPH_INPUT, GRAPH_OUTPUT):
            name = next((inner.text() for field, inner in part.fields() if field == 1 and isinstance(inner, Message)))
            (self.inputs if kind == GRAPH_INPUT else self.outputs).append(name)

    def array(self, name: str) -> Array | None:
        found = self.tensors.get(name)
        return found.array(self.beside) if found is not None else None


def read(path: Path) -> Graph:
    with mapped(path) as data:
        model = _Model(path, data)
        makers = {output: node for node in model.nodes for output in node.outputs}
        origins = Origins(name for name in model.inputs if name not in model.tensors)
        is_quantized = any(node.kind == "QuantizeLinear" for node in model.nodes)
        layers: list[Layer] = []
        for node in model.nodes:
            sources = origins.of(node.inputs)
            origins.passed_on(node.outputs, node.inputs)
            if "Sequence" in node.kind or "Optional" in node.kind:  # no tensors
                continue
            ends = node.kind == "QuantizeLinear" or not is_quantized or node.outputs[0] in model.outputs
            if sources and node.outputs and ends:
                origins.watch(node.outputs[0], len(layers))
                layers.append(_layer(model, makers, node, sources, is_quantized))
    numbers = {layer.tensor: number for number, layer in enumerate(layers)}
    rounds = is_quantized or any(node.kind in OF_THE_MOMENT for node in model.nodes)
    return Graph("onnxruntime", tuple(layers), tuple(numbers.get(name) for name in model.outputs), rounds=rounds)


def _layer(model: _Model, makers: dict[str, _Node], node: _Node, sources: tuple[int, ...], is_quantized: bool) -> Layer:
    match, quantization = node.outputs[0], None
    made: _Node | None = node
    if node.kind == "QuantizeLinear":
        match = node.inputs[0]
        made = makers.get(match)
        quantization = _quantization(model, *node.inputs[1:3])
    elif node.kind in INTEGER:
        quantization = _quantization(model, *(node.inputs[place] for place in INTEGER[node.kind][3:]))
    weighted = _weighted(makers, made) if is_quantized else made if node.kind in WEIGHTED else None
    main = weighted or made
    return Layer(
        node.outputs[0],
        node.outputs[0],
        main.name if main is not None else node.name,
        main.kind if main is not None else "input",
        match.removesuffix("_QuantizeLinear_Input"),
        sources,
        quantization,
        quantization is not None,
        _weights(model, makers, weighted) if weighted is not None else None,
    )


def _weighted(makers: dict[str, _Node], node: _Node | None) -> _Node | None:
    if node is None:
        return None
    return weighted_above(node, lambda own: [makers.get(name) for name in own.inputs], ENDS)


def _quantization(model: _Model, scale: str, zero: str = "") -> Quantization | None:
    step, offset = model.array(scale), model.array(zero) if zero else np.zeros(1, np.uint8)
    if step is None or offset is None or step.size != 1 or offset.dtype.name not in QUANTIZED:
        return None
    limits = np.iinfo(offset.dtype)
    return Quantization(float(step.reshape(-1)[0]), int(offset.reshape(-1)[0]), int(limits.min), int(limits.max))


def _weights(model: _Model, makers: dict[str, _Node], node: _Node) -> Weights | None:
    if node.kind in INTEGER:
        stored, scale = INTEGER[node.kind][1:3]
        return _dequantized(model, node, node.inputs[stored], node.inputs[scale])
    if len(node.inputs) < 2:
        return None
    source = makers.get(node.inputs[1])
    if source is not None and source.kind == "DequantizeLinear":
        return _dequantized(model, node, *source.inputs[:2])
    values = model.array(node.inputs[1])
    return None if values is None else Weights(node.name, values.astype(np.float64), None, values.dtype.name)


def _dequantized(model: _Model, node: _Node, stored: str, scale: str) -> Weights | None:
    """Weights without a zero point of their own, as those of int8 are; one scale, or one per output channel."""
    numbers, step = model.array(stored), model.array(scale)
    if numbers is None or step is None:
        return None
    shape = [1] * numbers.ndim
    if step.size > 1:
        shape[0 if numbers.shape[0] == step.size else numbers.ndim - 1] = step.size
    wide = step.astype(np.float64).reshape(shape)
    return Weights(node.name, numbers.astype(np.float64) * wide, wide, numbers.dtype.name)


def watched(path: Path, graph: Graph, extra: Sequence[Layer], folder: Path) -> list[Path]:  # noqa: ARG001
    """Protobuf joins the parts of a message that comes twice: the outputs are written behind the file's end."""
    outputs = b"".join(_field(GRAPH_OUTPUT, _field(1, str(layer.tensor).encode())) for layer in extra)
    return _write(path, path.read_bytes() + _field(MODEL_GRAPH, outputs), folder)


def halved(path: Path, graph: Graph, folder: Path) -> list[Path] | None:  # noqa: ARG001
    """Each int8 weight halved and its scale doubled, in place. None where they are not in the file itself."""
    content = bytearray(path.read_bytes())
    with mapped(path) as data:
        model = _Model(path, data)
        makers = {output: node for node in model.nodes for output in node.outputs}
        names = set[tuple[str, str]]()
        for node in model.nodes:
            if node.kind in INTEGER:
                _, weights, scale, _, _ = INTEGER[node.kind]
                names.add((node.inputs[weights], node.inputs[scale]))
            source = makers.get(node.inputs[1]) if node.kind in WEIGHTED and len(node.inputs) > 1 else None
            if source is not None and source.kind == "DequantizeLinear":
                names.add((source.inputs[0], source.inputs[1]))
        pairs = [(model.tensors[a], model.tensors[b]) for a, b in names if a in model.tensors and b in model.tensors]
        pairs = [(own, scale) for own, scale in pairs if own.dtype == "int8" and scale.dtype == "float32"]
        scales = {id(scale): scale for _, scale in pairs}
        for tensor, factor in [*((own, 0.5) for own, _ in pairs), *((scale, 2.0) for scale in scales.values())]:
            places = [tensor.raw] if tensor.raw is not None else tensor.packed.get(4, [])
            if tensor.is_external or not all(isinstance(place, Message) for place in places):
                return None
            for place in places:
                values = np.frombuffer(place.content(), tensor.dtype).astype(np.float64) * factor
                values = np.rint(values) if tensor.dtype == "int8" else values
                content[place.start : place.start + len(place)] = values.astype(tensor.dtype).tobytes()
        is_any = bool(pairs)
    return _write(path, bytes(content), folder) if is_any else None


def _write(path: Path, content: bytes, folder: Path) -> list[Path]:
    out = folder / path.name
    out.write_bytes(content)
    others = contents(path, "onnxruntime").paths[1:]
    return [out, *(Path(shutil.copy(other, folder / other.name)) for other in others)]


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return found + struct.pack("B", value)
