"""OpenVINO's layers, read and changed in the IR's own XML and constants; see graph.py.

In a quantized model the activations' FakeQuantize operators are watched: what lies between two of them is computed in
one kernel, which a further output elsewhere would take apart.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import mapped
from ..formats.openvino import TYPES
from ..task import Array
from .graph import WEIGHTED, Graph, Layer, Origins, Quantization, Weights, weighted_above

PASSES = {"Reshape", "Squeeze", "Unsqueeze", "Transpose", "Convert"}
ENDS = {"FakeQuantize", "Parameter", "Const"}
FOLDED = {"Const", "Convert", "Multiply", "Subtract", "Reshape", "Unsqueeze", "Squeeze"}
STORED = {"i8": "int8", "u8": "uint8"}
ANONYMOUS = re.compile(r"[A-Za-z]+_\d+")  # names that a transformation gave
SHAPES = {"ShapeOf", "Const", "Parameter", "Result"}


@dataclasses.dataclass(frozen=True)
class _Node:
    """inputs: (layer id, port) of what each input is given by, in order; outputs: its ports."""

    id: str
    name: str
    kind: str
    element: Any
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]

    def data(self) -> dict[str, str]:
        found = self.element.find("data")
        return dict(found.attrib) if found is not None else {}

    def dtype(self) -> str:
        port = self.element.find("output/port")
        told = (port.get("precision", "") if port is not None else "").lower()
        return TYPES.get({"fp32": "f32", "fp16": "f16"}.get(told, told), told)

    def sizes(self) -> list[int]:
        port = self.element.find("output/port")
        return [int(dim.text) for dim in port.iterfind("dim")] if port is not None else []


class _Model:
    def __init__(self, path: Path) -> None:
        self.tree = ElementTree.parse(path)
        net = self.tree.getroot()
        self.layers, self.edges = _child(net, "layers"), _child(net, "edges")
        into: dict[str, list[tuple[int, str, str]]] = {}
        for edge in self.edges:
            place = int(edge.attrib["to-port"])
            into.setdefault(edge.attrib["to-layer"], []).append(
                (place, edge.attrib["from-layer"], edge.attrib["from-port"])
            )
        self.nodes: dict[str, _Node] = {}
        for layer in self.layers:
            own = layer.attrib["id"]
            inputs = tuple((node, port) for _, node, port in sorted(into.get(own, [])))
            outputs = tuple(port.attrib["id"] for port in layer.iterfind("output/port"))
            self.nodes[own] = _Node(own, layer.attrib["name"], layer.attrib["type"], layer, inputs, outputs)

    def source(self, node: _Node, place: int) -> _Node:
        return self.nodes[node.inputs[place][0]]

    def ordered(self) -> list[_Node]:
        """Each after what it is computed from. Raises ValueError for one that is computed from itself."""
        found: dict[str, _Node] = {}
        opened: set[str] = set()
        for last in self.nodes.values():
            pending = [last]
            while pending:
                node = pending[-1]
                before = [self.nodes[name] for name, _ in node.inputs if name not in found]
                if before:
                    if node.id in opened:
                        raise ValueError(f"layer {node.id} '{node.name}' is computed from itself")
                    opened.add(node.id)
                    pending += before
                else:
                    found.setdefault(pending.pop().id, node)
        return list(found.values())


def _child(net: Any, name: str) -> Any:
    found = net.find(name)
    if found is None:
        raise ValueError(f"it has no <{name}>")
    return found


def read(path: Path) -> Graph:
    model = _Model(path)
    nodes = model.ordered()
    origins = Origins((node.id, port) for node in nodes if node.kind == "Parameter" for port in node.outputs)
    is_quantized = any(node.kind == "FakeQuantize" for node in nodes)
    ends = {node.inputs[0][0] for node in nodes if node.kind == "Result"}
    layers: list[Layer] = []
    with mapped(path.with_suffix(".bin")) as content:
        for node in nodes:
            sources = origins.of(node.inputs)
            outputs = [(node.id, port) for port in node.outputs]
            if node.kind != "Parameter":
                origins.passed_on(outputs, node.inputs)
            if sources and node.outputs and _is_watched(node, is_quantized, node.id in ends):
                origins.watch(outputs[0], len(layers))
                layers.append(_layer(model, node, sources, is_quantized, content))
    numbers = {layer.tensor: number for number, layer in enumerate(layers)}
    results = [node for node in model.nodes.values() if node.kind == "Result"]
    return Graph("openvino", tuple(layers), tuple(numbers.get(node.inputs[0]) for node in results), rounds=is_quantized)


def _is_watched(node: _Node, is_quantized: bool, is_end: bool) -> bool:
    if node.kind in SHAPES or not node.dtype().startswith("float"):
        return False
    return is_end or node.kind == "FakeQuantize" or not is_quantized


def _layer(model: _Model, node: _Node, sources: tuple[int, ...], is_quantized: bool, content: mmap.mmap) -> Layer:
    """The part of the graph that ends in `node`, called after its node with weights, else after its last one."""
    made = model.source(node, 0) if node.kind == "FakeQuantize" else node
    weighted = _weighted(model, made) if is_quantized else made if made.kind in WEIGHTED else None
    main = weighted or made
    kind = "input" if made.kind == "Parameter" else main.kind
    name = made.name if ANONYMOUS.fullmatch(main.name) else main.name
    return Layer(
        (node.id, node.outputs[0]),
        node.name,
        name,
        kind,
        made.name,
        sources,
        _quantization(model, node, content) if node.kind == "FakeQuantize" else None,
        weights=_weights(model, weighted, content) if weighted is not None else None,
    )


def _weighted(model: _Model, node: _Node) -> _Node | None:
    return weighted_above(node, lambda own: [model.nodes[name] for name, _ in own.inputs], ENDS)


def _through(model: _Model, node: _Node) -> _Node:
    while node.kind in PASSES and node.inputs:
        node = model.source(node, 0)
    return node


def _quantization(model: _Model, node: _Node, content: mmap.mmap) -> Quantization | None:
    """Of a FakeQuantize with one range: what it stores, 8 bits from its output range on."""
    ends = [_constant(model, model.source(node, place), content) for place in range(1, 5)]
    if any(end is None or end.size != 1 for end in ends):
        return None
    low, high = (float(end.reshape(-1)[0]) for end in ends[2:4] if end is not None)
    steps = int(node.data().get("levels", 256)) - 1
    if high <= low:
        return None
    scale = (high - low) / steps
    zero = int(np.rint(-low / scale))
    return Quantization(scale, zero, 0, steps)


def _weights(model: _Model, node: _Node, content: mmap.mmap) -> Weights | None:
    source = model.source(node, 1)
    values = _constant(model, source, content)
    if values is None:
        return None
    stored = _stored(model, source)
    step = None
    if stored is not None and stored.data().get("element_type") in STORED:
        scale = _scale_of(model, source, stored)
        step = _constant(model, scale, content) if scale is not None else None
        if step is not None and step.ndim != values.ndim:
            step = step.reshape([*step.shape, *([1] * (values.ndim - step.ndim))])
    return Weights(node.name, values, step, stored.data().get("element_type", "?") if stored else "?")


def _chain(model: _Model, node: _Node) -> list[_Node]:
    """From the weights' last operator to the constant."""
    found = [node]
    while found[-1].kind != "Const" and found[-1].inputs:
        found.append(model.source(found[-1], 0))
    return found


def _stored(model: _Model, node: _Node) -> _Node | None:
    last = _chain(model, node)[-1]
    return last if last.kind == "Const" else None


def _scale_of(model: _Model, node: _Node, stored: _Node) -> _Node | None:
    """The constant that the stored weights are multiplied by."""
    products = [own for own in _chain(model, node) if own.kind == "Multiply"]
    scale = _through(model, model.source(products[0], 1)) if products else None
    return scale if scale is not None and scale.kind == "Const" and scale.id != stored.id else None


def _constant(
    model: _Model, node: _Node, content: mmap.mmap, known: dict[str, Array | None] | None = None
) -> Array | None:
    """The value of what is computed from constants alone, float64; None for operators that weights never have.

    known: what was found on the way, by layer id; each is looked at once.
    """
    known = {} if known is None else known
    if node.id not in known:
        known[node.id] = None
        known[node.id] = _made(model, node, content, known) if node.kind in FOLDED else None
    return known[node.id]


def _made(model: _Model, node: _Node, content: mmap.mmap, known: dict[str, Array | None]) -> Array | None:
    if node.kind == "Const":
        return _stored_array(node, content)
    values = []
    for name, _ in node.inputs:
        value = _constant(model, model.nodes[name], content, known)
        if value is None:
            return None
        values.append(value)
    if not values or node.kind == "Convert":
        return values[0] if values else None
    if node.kind not in ("Multiply", "Subtract"):
        return values[0].reshape(node.sizes())
    # Two small constants could span more than the file holds.
    if len(values) != 2 or math.prod(np.broadcast_shapes(values[0].shape, values[1].shape)) > len(content):
        return None
    return np.asarray(values[0] * values[1] if node.kind == "Multiply" else values[0] - values[1])


def _stored_array(node: _Node, content: mmap.mmap) -> Array | None:
    told = node.data()
    kind = TYPES.get(told["element_type"])
    if kind in (None, "bfloat16"):
        return None
    first, size = int(told["offset"]), int(told["size"])
    shape = [int(word) for word in told["shape"].split(",") if word.strip()]
    return np.frombuffer(content[first : first + size], kind).reshape(shape).astype(np.float64)


def watched(path: Path, graph: Graph, extra: Sequence[Layer], folder: Path) -> list[Path]:  # noqa: ARG001
    """With a Result behind each layer."""
    model = _Model(path)
    number = max(int(name) for name in model.nodes) + 1
    for place, layer in enumerate(extra):
        node, port = layer.tensor
        given = next(own for own in model.nodes[node].element.iterfind("output/port") if own.get("id") == port)
        told = {"id": str(number + place), "name": f"edgeopt-watch-{place}", "type": "Result", "version": "opset1"}
        result = ElementTree.SubElement(model.layers, "layer", told)
        taken = ElementTree.SubElement(ElementTree.SubElement(result, "input"), "port", {"id": "0"})
        taken.set("precision", given.get("precision", "FP32"))
        for dim in given.iterfind("dim"):
            ElementTree.SubElement(taken, "dim").text = dim.text
        ends = {"from-layer": node, "from-port": port, "to-layer": told["id"], "to-port": "0"}
        ElementTree.SubElement(model.edges, "edge", ends)
    return _write(model, path, folder, path.with_suffix(".bin").read_bytes())


def halved(path: Path, graph: Graph, folder: Path) -> list[Path] | None:  # noqa: ARG001
    """Each int8 constant halved, its scale doubled; both are written behind the others, as constants are shared."""
    model = _Model(path)
    content = bytearray(path.with_suffix(".bin").read_bytes())
    done = 0
    for node in list(model.nodes.values()):
        if node.kind not in WEIGHTED or len(node.inputs) < 2:
            continue
        source = model.source(node, 1)
        stored = _stored(model, source)
        scale = _scale_of(model, source, stored) if stored is not None else None
        if stored is None or scale is None or stored.data().get("element_type") != "i8":
            continue
        for own, factor in ((stored, 0.5), (scale, 2.0)):
            _rescale(own, factor, content)
        done += 1
    return _write(model, path, folder, bytes(content)) if done else None


def _rescale(node: _Node, factor: float, content: bytearray) -> None:
    told = node.element.find("data")
    kind, first, size = TYPES[told.get("element_type")], int(told.get("offset")), int(told.get("size"))
    values = np.frombuffer(bytes(content[first : first + size]), kind).astype(np.float64) * factor
    content += b"\0" * (-len(content) % 64)
    told.set("offset", str(len(content)))
    content += (np.rint(values) if kind == "int8" else values).astype(kind).tobytes()


def _write(model: _Model, path: Path, folder: Path, content: bytes) -> list[Path]:
    out = folder / path.name
    model.tree.write(out, encoding="utf-8", xml_declaration=True)
    out.with_suffix(".bin").write_bytes(content)
    return [out, out.with_suffix(".bin")]
