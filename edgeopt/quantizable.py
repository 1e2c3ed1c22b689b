"""An ONNX model as quantizers take it: the same numbers, without what they stumble over.

Tensors whose names quantizers would give to tensors of their own get others; a Gemm's factors go into its constants,
and its bias of one number becomes one per output; float16 inside becomes float32, whose weights alone become int8.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import formats, onnx_model
from .errors import ModelError, PlanError

if TYPE_CHECKING:
    import onnx
    import torch

SCRATCH = ".edgeopt-"
# What ONNX Runtime's quantizer appends to a tensor's name for tensors of its own.
OWN_ENDINGS = re.compile(r"\d+|_(quantized|scale|zero_point|QuantizeLinear|DequantizeLinear|Cast|Transpose|bias)\w*")
FLOAT16_CONSTANTS = {"Cast": "to", "ConstantOfShape": "value", "EyeLike": "dtype", "RandomNormal": "dtype"}


def require_float(contents: formats.Contents, what: str, mend: str) -> None:
    """Raises PlanError for a model that is quantized already; what: what would quantize it again."""
    found = contents.int8_nodes()
    if found:
        raise PlanError(
            f"{contents.path} is int8 already: {len(found)} of its {len(contents.operators)} operators round to whole "
            f"numbers or compute with them, first node '{found[0].node}' ({found[0].kind}); {what} would round it a "
            f"second time: {mend}, or take the float model that it was made from"
        )


@contextmanager
def source_for(scheme: str, source: torch.nn.Module | Path) -> Iterator[torch.nn.Module | Path]:
    """The source as a lowering to `scheme` takes it. Raises MissingDependency, ModelError."""
    if not (isinstance(source, Path) and scheme.startswith("int8")):
        yield source
        return
    with prepared(source) as path:
        yield path


@contextmanager
def prepared(path: Path) -> Iterator[Path]:
    """The model's file, or another of its name that computes the same and can be quantized, while it is needed.

    Raises MissingDependency, ModelError.
    """
    proto = onnx_model.read(path)
    if not (_taken_names(proto) or _odd_gemms(proto) or _scalar_biases(proto) or _has_float16(proto)):
        yield path
        return
    import onnx

    with tempfile.TemporaryDirectory(prefix=SCRATCH) as text:
        whole = onnx.load(str(path))
        for name, other in _taken_names(whole).items():
            _rename(whole.graph, name, other)
        for node in _odd_gemms(whole):
            _plain_gemm(whole.graph, node)
        for place, node, width in _scalar_biases(whole):
            _widen(whole.graph, node, place, width)
        if _has_float16(whole):
            _as_float32(whole)
        made = Path(text) / path.name
        try:
            onnx.save(whole, str(made))
        except ValueError:  # a protobuf message holds 2 GB at most
            onnx.save(whole, str(made), save_as_external_data=True, location=f"{path.stem}.data")
        yield made if _loads(made) else path  # which the quantizer then judges as it is


def _loads(path: Path) -> bool:
    try:
        onnx_model.Opened(path)
    except ModelError:
        return False
    return True


def _tensors(graph: onnx.GraphProto) -> set[str]:
    ports = {port.name for port in (*graph.input, *graph.output)}
    return ports | {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}


def _taken_names(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensors inside the graph that are called as a quantizer would call its own for another, with better names."""
    names = _tensors(proto.graph)
    fixed = {port.name for port in (*proto.graph.input, *proto.graph.output)}
    if any(attribute.g.node or attribute.graphs for node in proto.graph.node for attribute in node.attribute):
        return {}  # graphs within see these names too
    found: dict[str, str] = {}
    for name in sorted(names - {""}):
        stems = [name[:cut] for cut in range(1, len(name)) if OWN_ENDINGS.fullmatch(name[cut:])]
        if not names.isdisjoint(stems):
            for taken in [name] if name not in fixed else names.intersection(stems) - fixed:  # a port keeps its name
                other = f"own:{taken}"
                while other in names:
                    other = f"own:{other}"
                found[taken] = other
    return found


def _rename(graph: onnx.GraphProto, name: str, other: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, own in enumerate(names):
                if own == name:
                    names[place] = other
    for tensor in (*graph.initializer, *graph.value_info):
        if tensor.name == name:
            tensor.name = other


def _odd_gemms(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Gemm nodes of constants with factors, or with a bias of another shape than (outputs,)."""
    constants = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type != "Gemm" or any(name and name not in constants for name in node.input[1:]):
            continue
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        is_row = bias is None or not bias or bias[:-1] in ([], [1])
        width = constants[node.input[1]][0 if _attribute(node, "transB", 0.0) else 1]
        if is_row and (_factors(node) != (1.0, 1.0) or (bias is not None and bias != [width])):
            found.append(node)
    return found


def _plain_gemm(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Its constants as it uses them, under names of their own, since other nodes may share them."""
    import numpy as np
    from onnx import numpy_helper

    alpha, beta = _factors(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = numpy_helper.to_array(constants[node.input[1]])
    made = {1: weights * np.array(alpha, weights.dtype)}
    if len(node.input) > 2 and node.input[2]:
        bias = numpy_helper.to_array(constants[node.input[2]]).reshape(-1)
        width = weights.shape[0 if _attribute(node, "transB", 0.0) else 1]
        made[2] = np.array(np.broadcast_to(bias * np.array(beta, bias.dtype), (width,)))
    for place, array in made.items():
        name = f"own:{node.output[0]}:{place}"
        graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[place] = name
    kept = [attribute for attribute in node.attribute if attribute.name not in ("alpha", "beta")]
    del node.attribute[:]
    node.attribute.extend(kept)


def _scalar_biases(proto: onnx.ModelProto) -> list[tuple[int, onnx.NodeProto, int]]:
    """(place of the number, node, how many it is for) of each Add of one constant number to a MatMul by constants, of
    which nncf makes a bias."""
    constants = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    products = {node.output[0]: node for node in proto.graph.node if node.op_type == "MatMul"}
    found = []
    for node in proto.graph.node:
        for place, name in enumerate(node.input if node.op_type == "Add" else ()):
            product = products.get(node.input[1 - place])
            weights = constants.get(product.input[1], []) if product is not None else []
            if len(weights) == 2 and name in constants and all(size == 1 for size in constants[name]):
                found.append((place, node, weights[1]))
    return found


def _widen(graph: onnx.GraphProto, node: onnx.NodeProto, place: int, width: int) -> None:
    import numpy as np
    from onnx import numpy_helper

    (value,) = (numpy_helper.to_array(own) for own in graph.initializer if own.name == node.input[place])
    name = f"own:{node.output[0]}:{place}"
    graph.initializer.append(numpy_helper.from_array(np.full((width,), value.reshape(())), name))
    node.input[place] = name


def _factors(node: onnx.NodeProto) -> tuple[float, float]:
    return _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next(
        (own.f if own.type == own.FLOAT else float(own.i) for own in node.attribute if own.name == name), default
    )


def _has_float16(proto: onnx.ModelProto) -> bool:
    from onnx import TensorProto

    if any(attribute.g.node or attribute.graphs for node in proto.graph.node for attribute in node.attribute):
        return False
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in _constants(proto.graph))


def _constants(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _as_float32(proto: onnx.ModelProto) -> None:
    """Every constant and cast inside; inputs and outputs stay what they are, with casts of their own."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    for tensor in _constants(graph):
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == FLOAT16_CONSTANTS.get(node.op_type) and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    initialized = {tensor.name for tensor in graph.initializer}
    before, after = [], []
    for port in graph.input:
        if port.type.tensor_type.elem_type == TensorProto.FLOAT16 and port.name not in initialized:
            _rename(graph, port.name, f"own:{port.name}")
            before.append(helper.make_node("Cast", [port.name], [f"own:{port.name}"], to=TensorProto.FLOAT))
    for port in graph.output:
        if port.type.tensor_type.elem_type == TensorProto.FLOAT16:
            _rename(graph, port.name, f"own:{port.name}")
            after.append(helper.make_node("Cast", [f"own:{port.name}"], [port.name], to=TensorProto.FLOAT16))
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
