"""An .onnx file made int8 by ONNX Runtime's quantizer (static, per channel, QDQ), stage by stage: each writes a file of
its own, so that the driver can compare every one with the source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.lower import ranges
from edgeopt.lower.ranges import Operator

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]

PER_CHANNEL_OPSET = 13  # the first in which DequantizeLinear takes a scale per channel
TOLD_OPSET = 11  # the first in which Resize tells which coordinates it means
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"}
# The name of what the quantizer adds for the tensor `of`, or of its copy of the constant `copied`.
MADE_NAME = re.compile(
    r"(?P<of>.+?)(_quantized|_scale|_zero_point|_QuantizeLinear|_DequantizeLinear).*|(?P<copied>.+?)\d+"
)
TAKE_THE_LARGEST = {"MaxPool", "GlobalMaxPool", "ReduceMax"}  # padding with -infinity before them is saturated rightly


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators; 1 where the file does not say."""
    return int(max((own.version for own in model.opset_import if own.domain in ("", "ai.onnx")), default=1))


def raise_opset(path: Path) -> bool:
    """To the first opset that can say what per-channel int8 is, in place; False where it is that or newer already."""
    import onnx
    from onnx import version_converter

    model = onnx.load(str(path))
    before = opset_of(model)
    if before >= PER_CHANNEL_OPSET:
        return False
    raised = version_converter.convert_version(model, PER_CHANNEL_OPSET)
    if before < TOLD_OPSET:
        _tell_coordinates(raised.graph)
    onnx.save(raised, str(path))
    return True


def _tell_coordinates(graph: Any) -> None:
    """Before opset 11 Resize and Upsample mean asymmetric coordinates, rounded down, or up where they make smaller;
    onnx's converter leaves newer opsets' default instead, which is another."""
    import onnx

    constants = _constants(graph)
    for node in graph.node:
        if node.op_type != "Resize":
            continue
        scales = constants.get(node.input[2], np.ones(1)) if len(node.input) > 2 else np.ones(1)
        told = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if scales.min() < 1 else "floor"}
        kept = [own for own in node.attribute if own.name not in told]
        del node.attribute[:]
        node.attribute.extend([*kept, *(onnx.helper.make_attribute(name, value) for name, value in told.items())])


def prepare(plain: Path, ready: Path) -> None:
    """ONNX Runtime's own pre-processing, and what its quantizer stumbles over in other words; every node has a name."""
    import onnx
    from onnxruntime.quantization import shape_inference

    shape_inference.quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    model = onnx.load(str(ready))
    graph = model.graph
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}_of_{node.output[0]}"
    constants = _constants(graph)
    nodes = [new for node in graph.node for new in _plain_bias(graph, node, constants)]
    del graph.node[:]
    graph.node.extend(nodes)
    _free_names(graph)
    onnx.save(model, str(ready))


def _free_names(graph: Any) -> None:
    """The quantizer calls what it adds after the tensor that it is for, and does not ask whether that name is taken:
    inner tensors that have such a name get another one, but not where graphs within nodes may speak of them."""
    if any(held.HasField("g") or held.graphs for node in graph.node for held in node.attribute):
        return
    kept = {port.name for port in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    taken = kept | constants | {name for node in graph.node for name in (*node.input, *node.output)}
    renamed = {}
    for name in sorted(taken - kept - {""}):
        if (made := MADE_NAME.fullmatch(name)) and (made["of"] in taken or made["copied"] in constants):
            fresh = f"{name}_of_the_model"
            while fresh in taken:
                fresh += "_"
            renamed[name] = fresh
    for own in (*graph.initializer, *graph.value_info):
        own.name = renamed.get(own.name, own.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]


def _plain_bias(graph: Any, node: Any, constants: dict[str, Array]) -> list[Any]:
    """The node; where the quantizer takes its bias for one of another shape, with one that it knows, or with the bias
    added by a node of its own."""
    bias = constants.get(node.input[2]) if len(node.input) > 2 else None
    weights = constants.get(node.input[1]) if len(node.input) > 1 else None
    if bias is None or weights is None:
        return [node]
    own = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Gemm":
        wide = weights.shape[0 if "transB" in own and own["transB"].i else 1]
        beta = own["beta"].f if "beta" in own else 1.0
        if bias.shape == (wide,) and beta == 1:
            return [node]
        bias = bias * np.asarray(beta, dtype=bias.dtype)  # the quantizer forgets beta
        if bias.size not in (1, wide):
            return _apart(graph, node, bias)
        node.input[2] = _held(graph, f"{node.name}_bias", np.broadcast_to(bias.reshape(-1), (wide,)).copy())
        if beta != 1:
            node.attribute.remove(own["beta"])
    if node.op_type == "ConvTranspose" and "group" in own and own["group"].i > 1:
        return _apart(graph, node, bias.reshape(1, -1, *(1,) * (weights.ndim - 2)))
    return [node]


def _apart(graph: Any, node: Any, bias: Array) -> list[Any]:
    """The node without its bias, and one that adds it."""
    import onnx

    inner = f"{node.output[0]}_without_bias"
    added = onnx.helper.make_node(
        "Add", [inner, _held(graph, f"{node.name}_bias", bias)], [node.output[0]], f"{node.name}_add"
    )
    del node.input[2]
    node.output[0] = inner
    return [node, added]


def _held(graph: Any, name: str, values: Array) -> str:
    import onnx

    graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return name


def _constants(graph: Any) -> dict[str, Array]:
    """Initializers and what Constant nodes hold, by the tensor's name."""
    import onnx

    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for held in node.attribute if node.op_type == "Constant" else ():
            if held.name == "value":
                found[node.output[0]] = onnx.numpy_helper.to_array(held.t)
    return found


def out_of_range(ready: Path, samples: Arrays) -> list[dict[str, str]]:
    """The nodes that the quantizer would take, and that read or write what int8 cannot hold; samples: (n, ...)."""
    import onnx
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    graph = onnx.load(str(ready)).graph
    constants = _constants(graph)
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    operators = []
    for node in graph.node:
        if node.op_type not in QDQRegistry and node.op_type not in QLinearOpsRegistry:
            continue
        outputs = tuple(name for name in node.output if name)
        operands = {name: constants[name] for name in node.input if name in constants and node.op_type not in WEIGHTED}
        saturates = node.op_type == "Pad" and readers.get(outputs[0], set()) <= TAKE_THE_LARGEST
        inputs = tuple(name for name in node.input if name and name not in constants)
        operators.append(Operator(node.op_type, node.name, inputs, outputs, operands, saturates))
    return ranges.out_of_range(operators, _runs(ready, samples))


def _runs(path: Path, samples: Arrays) -> Iterator[Callable[[Any], Array | None]]:
    """For each of the first samples, a function from a tensor's name to its values."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    given = {port.name for port in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in given]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shown = [port.name for port in session.get_outputs()]
    for row in ranges.rows(samples):
        feed = {port.name: array for port, array in zip(session.get_inputs(), row, strict=True)}
        values = {**feed, **dict(zip(shown, session.run(None, feed), strict=True))}
        yield lambda name, values=values: own if isinstance(own := values.get(name), np.ndarray) else None  # type: ignore[misc]


def quantize(ready: Path, out: Path, names: Sequence[str], calibration: Arrays, in_float: Sequence[str]) -> None:
    """names: of the inputs; in_float: of the nodes that are not quantized."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(range(len(calibration[0])))

        def get_next(self) -> dict[str, Array] | None:
            row = next(self._rows, None)
            if row is None:
                return None
            return {name: array[row : row + 1] for name, array in zip(names, calibration, strict=True)}

    quantization.quantize_static(
        str(ready),
        str(out),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=list(in_float),
    )
