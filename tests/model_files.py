"""Small real model files of every format, and damaged ones, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def conv_onnx(
    path: Path,
    *,
    opset: int = 17,
    ir: int = 8,
    shape: Sequence[int | str] = ("n", 3, 8, 8),
    middle: Iterable[Any] = (),
    domains: Iterable[str] = (),
    external: bool = False,
) -> Path:
    """Conv, `middle` nodes from "c" to "m", Relu, global pooling: image (n, 3, 8, 8) -> scores (n, 8, 1, 1) float32."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape)),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 8, 1, 1]),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="stem", pads=[1, 1, 1, 1]),
        *middle,
        helper.make_node("Relu", ["m" if middle else "c"], ["r"], name="rectify"),
        helper.make_node("GlobalAveragePool", ["r"], ["scores"], name="pool"),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(weights, "w")])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    if external:
        save(model, str(path), save_as_external_data=True, location=f"{path.stem}.weights", size_threshold=0)
    else:
        save(model, str(path))
    return path


def tflite(path: Path, custom: str | None = None, needs: str | None = None, code: int | None = None) -> Path:
    """One operator, x (1, 4) -> y (1, 3) float32; `custom` names it, `needs` is the least runtime's version."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, operator_code, operator = (
        schema.ModelT(),
        schema.SubGraphT(),
        schema.OperatorCodeT(),
        schema.OperatorT(),
    )
    number = code if code is not None else schema.BuiltinOperator.FULLY_CONNECTED
    operator_code.builtinCode = schema.BuiltinOperator.CUSTOM if custom else number
    operator_code.deprecatedBuiltinCode = min(operator_code.builtinCode, 127)
    operator_code.customCode = custom
    operator_code.version = 1
    buffers = [schema.BufferT() for _ in range(3)]
    buffers[1].data = np.frombuffer(np.ones((3, 4), "<f4").tobytes(), dtype=np.uint8)
    buffers[2].data = np.frombuffer((needs or "").encode().ljust(16, b"\0"), dtype=np.uint8)
    tensors = []
    for name, shape, buffer in (("x", [1, 4], 0), ("w", [3, 4], 1), ("y", [1, 3], 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, shape, buffer
        tensors.append(tensor)
    operator.inputs, operator.outputs = [0, 1], [2]
    if not custom and code is None:
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [2], [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [operator_code], [graph], buffers
    if needs:
        entry = schema.MetadataT()
        entry.name, entry.buffer = "min_runtime_version", 2
        model.metadata = [entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def ir(path: Path, version: int = 11, opset: str = "opset1", bytes_told: int = 48) -> Path:
    """An OpenVINO model: x (1, 4) float32 times a constant of (3, 4), as its own writer lays it out."""

    def port(number: int, *sizes: int, named: str = "") -> str:
        return f'<port id="{number}" precision="FP32"{named}>' + "".join(f"<dim>{n}</dim>" for n in sizes) + "</port>"

    def layer(number: int, name: str, kind: str, inside: str, of: str = "opset1") -> str:
        return f'<layer id="{number}" name="{name}" type="{kind}" version="{of}">{inside}</layer>'

    constant = f'<data element_type="f32" shape="3, 4" offset="0" size="{bytes_told}"/>'
    product = '<data transpose_a="false" transpose_b="true"/>'
    taken, given = port(0, 1, 4) + port(1, 3, 4), port(2, 1, 3, named=' names="y"')
    shape, tensor_name = '<data shape="1,4" element_type="f32"/>', ' names="x"'
    layers = [
        layer(0, "x", "Parameter", f"{shape}<output>{port(0, 1, 4, named=tensor_name)}</output>"),
        layer(1, "w", "Const", f"{constant}<output>{port(0, 3, 4)}</output>"),
        layer(2, "dense", "MatMul", f"{product}<input>{taken}</input><output>{given}</output>", opset),
        layer(3, "result", "Result", f"<input>{port(0, 1, 3)}</input>"),
    ]
    edges = [
        f'<edge from-layer="{a}" from-port="{b}" to-layer="{c}" to-port="{d}"/>'
        for a, b, c, d in ((0, 0, 2, 0), (1, 0, 2, 1), (2, 2, 3, 0))
    ]
    inside = f"<layers>{''.join(layers)}</layers><edges>{''.join(edges)}</edges>"
    path.write_text(f'<?xml version="1.0"?>\n<net name="dense" version="{version}">{inside}</net>\n')
    path.with_suffix(".bin").write_bytes(np.ones((3, 4), "<f4").tobytes())
    return path
