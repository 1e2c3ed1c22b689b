"""ONNX models that quantizers stumble over: made fit, computing the same, or recognized; nodes at fault are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_cli

from edgeopt import formats, onnx_model, quantizable
from edgeopt.errors import PlanError
from edgeopt.formats import Contents, Operator
from edgeopt.model import untold
from edgeopt.tools import lowering, source
from edgeopt.tools.source import named_nodes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
PICTURES = RNG.normal(size=(16, 8, 6, 6)).astype("f4")


def numbers(*shape: int, kind: str = "f4") -> np.ndarray:
    return (RNG.normal(size=shape) * 0.2).astype(kind)


def saved(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], kind: int = 1, output: Any = None) -> Path:
    """A graph from x (n, 8, 6, 6) to y."""
    helper = onnx.helper
    ports = [helper.make_tensor_value_info("x", kind, ["n", 8, 6, 6]), helper.make_tensor_value_info("y", kind, output)]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def named(path: Path, inner: str) -> Path:
    """Two convolutions that share a bias, and a tensor inside with a name that a quantizer would give."""
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w", "b"], [inner], "c1", pads=[1] * 4),
        node("Relu", [inner], ["r"], "r1"),
        node("Conv", ["r", "v", "b"], ["c"], "c2", pads=[1] * 4),
        node("Add", ["c", inner], ["y"], "add"),
    ]
    return saved(path, nodes, {"w": numbers(8, 8, 3, 3), "v": numbers(8, 8, 3, 3), "b": numbers(8)})


def gemms(path: Path, _: str) -> Path:
    node = onnx.helper.make_node
    nodes = [
        node("Flatten", ["x"], ["f"], "flat"),
        node("Gemm", ["f", "w", "b"], ["g"], "gemm"),
        node("Relu", ["g"], ["r"], "relu"),
        node("Gemm", ["r", "v", "c"], ["y"], "gemm2", transB=1, alpha=0.5, beta=2.0),
    ]
    constants = {"w": numbers(288, 16), "b": np.array([0.7], "f4"), "v": numbers(4, 16), "c": np.array(0.3, "f4")}
    return saved(path, nodes, constants)


def port(path: Path, output: str) -> Path:
    """An output with the name that a quantizer would give to the quantized weights 'w'."""
    node = onnx.helper.make_node
    nodes = [node("Conv", ["x", "w"], ["c"], "c1", pads=[1] * 4), node("Relu", ["c"], ["y"], "r")]
    saved(path, nodes, {"w": numbers(8, 8, 3, 3)})
    proto = onnx.load(str(path))
    proto.graph.output[0].name = proto.graph.node[1].output[0] = output
    onnx.save(proto, str(path))
    return path


def products(path: Path, _: str) -> Path:
    """One number that is added to a product."""
    node = onnx.helper.make_node
    nodes = [
        node("Flatten", ["x"], ["f"], "flat"),
        node("MatMul", ["f", "w"], ["m"], "product"),
        node("Add", ["b", "m"], ["y"], "add"),
    ]
    return saved(path, nodes, {"w": numbers(288, 16), "b": np.array(0.7, "f4")})


def half(path: Path, _: str) -> Path:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        node("GlobalAveragePool", ["c"], ["g"], "pool"),
        node("Flatten", ["g"], ["f"], "flat"),
        node("MatMul", ["f", "v"], ["y"], "head"),
    ]
    constants = {"w": numbers(8, 8, 3, 3, kind="f2"), "v": numbers(8, 4, kind="f2")}
    return saved(path, nodes, constants, kind=onnx.TensorProto.FLOAT16)


def converted(path: Path, scheme: str, samples: np.ndarray) -> Path:
    """The model as `quantize` and `convert` make it for ONNX Runtime, beside it."""
    np.savez(path.with_name("samples.npz"), x=samples)
    opened = source.open_source(str(path))
    given = source.read_samples(opened, path.with_name("samples.npz"), (), None)
    out = path.with_name(f"{scheme}.onnx")
    lowering.convert(opened, given, "onnxruntime", scheme, out, path.parent, lambda _: None)
    return out


MODELS = [(named, name) for name in ("b0", "w_quantized", "x_scale", "b_quantized_scale")] + [(gemms, ""), (half, "")]
MODELS += [(port, "w_quantized"), (products, "")]


@pytest.mark.parametrize(("make", "name"), MODELS, ids=[name or make.__name__ for make, name in MODELS])
def test_what_a_quantizer_stumbles_over_is_made_fit(make: Any, name: str, tmp_path: Path) -> None:
    path = make(tmp_path / "net.onnx", name)
    kind = "f2" if make is half else "f4"
    samples = PICTURES.astype(kind)
    (expected,) = onnx_model.run(path, (samples,), untold)
    with quantizable.prepared(path) as ready:
        assert ready != path
        assert ready.name == path.name
        (found,) = onnx_model.run(ready, (samples,), untold)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 if make is half else 1e-5)
    (rounded,) = onnx_model.run(converted(path, "int8", samples), (samples[:1],), untold)
    error = rounded.astype("f8") - expected[:1]
    assert 10 * np.log10((expected[:1].astype("f8") ** 2).sum() / (error**2).sum()) > 28
    if make is half:
        weights = [
            tensor.data_type for tensor in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer if tensor.dims
        ]
        assert onnx.TensorProto.INT8 in weights


def test_one_number_added_to_a_product_becomes_a_bias(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    path = products(tmp_path / "net.onnx", "")
    np.savez(tmp_path / "x.npz", x=PICTURES)
    done = run_cli("quantize", path, "--inputs", "x.npz", "--to", "openvino", "--out", "net.xml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_int8_file_without_int8_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", [onnx.helper.make_node("Sin", ["x"], ["y"], "wave")], {})
    np.savez(tmp_path / "x.npz", x=PICTURES)
    for runtime, out in (("onnxruntime", "out.onnx"), ("openvino", "out.xml")):
        given = ["--inputs", "x.npz", "--to", runtime, "--out", out]
        done = run_cli("quantize", path, *given, cwd=tmp_path)
        assert done.returncode == 6, (runtime, done.stdout)
        assert "still computes in float" in done.stderr
        assert "Sin" in done.stderr
        assert not (tmp_path / out).exists()


def test_constants_that_are_listed_as_inputs(tmp_path: Path) -> None:
    """As files of IR version 3 have to."""
    path = named(tmp_path / "net.onnx", "inner")
    proto = onnx.load(str(path))
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims)))
    proto.opset_import[0].version = 8
    onnx.save(proto, str(path))
    for scheme in ("fp32", "int8"):
        (found,) = onnx_model.run(converted(path, scheme, PICTURES), (PICTURES[:1],), untold)
        (expected,) = onnx_model.run(path, (PICTURES[:1],), untold)
        assert abs(found - expected).max() < 0.1 * abs(expected).max()


def test_a_plain_model_is_taken_as_it_is(tmp_path: Path) -> None:
    path = named(tmp_path / "net.onnx", "inner")
    with quantizable.prepared(path) as ready:
        assert ready == path


def test_an_int8_model_is_recognized(tmp_path: Path) -> None:
    made = converted(named(tmp_path / "net.onnx", "inner"), "int8", PICTURES)
    np.savez(tmp_path / "x.npz", x=PICTURES)
    given = ["--inputs", "x.npz", "--to", "onnxruntime", "--out", "again.onnx"]
    again = run_cli("quantize", made.name, *given, cwd=tmp_path)
    assert again.returncode == 6
    for words in ("int8.onnx is int8 already", "uantizeLinear", "`edgeopt convert`"):
        assert words in again.stderr
    with pytest.raises(PlanError, match="the rung 'int8' would round it a second time: leave it out"):
        quantizable.require_float(formats.read(made), "the rung 'int8'", "leave it out")
    assert converted(made, "fp32", PICTURES).is_file()


def test_an_input_without_axes(tmp_path: Path) -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["rate"], ["r"], "cast", to=1),
        helper.make_node("Mul", ["x", "r"], ["y"], "mul"),
    ]
    ports = [helper.make_tensor_value_info("x", 1, ["n", 4]), helper.make_tensor_value_info("rate", 7, [])]
    graph = helper.make_graph(nodes, "g", ports, [helper.make_tensor_value_info("y", 1, ["n", 4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "x.npz", x=np.ones((4, 4), "f4"), rate=np.ones(4, "i8"))
    given = ["--inputs", "x.npz", "--to", "onnxruntime", "--out", "o.onnx"]
    done = run_cli("convert", "net.onnx", *given, cwd=tmp_path)
    assert done.returncode == 6
    for words in ("'rate'", "without axes", "node 'cast' (Cast)", "export the model"):
        assert words in done.stderr


CONTENTS = Contents(
    "onnxruntime",
    (Path("net.onnx"),),
    (),
    (
        Operator("Conv", "c1", takes=("x", "weight", "bias"), gives=("inner",)),
        Operator("Conv", "c2", takes=("inner", "other"), gives=("y",)),
        Operator("Relu", "r1", takes=("y",), gives=("z",)),
    ),
)


@pytest.mark.parametrize(
    ("message", "told", "not_told"),
    [
        ("Conv failed", ["Conv is one of the nodes 'c1', 'c2'"], []),
        ("Relu failed", ["Relu is node 'r1'"], []),
        ("tensor other has no range, of a Conv", ["tensor 'other' is an input of node 'c2' (Conv)"], ["c1"]),
        ("no range for 'inner'", ["'inner' is an output of node 'c1'", "an input of node 'c2'"], []),
        ("Node (c2) Op (Conv) failed", [], ["c1", "one of"]),
        ("something failed", [], ["node"]),
    ],
)
def test_a_tensor_is_traced_to_its_own_node(message: str, told: list[str], not_told: list[str]) -> None:
    found = named_nodes(message, CONTENTS)
    assert found.startswith(message)
    assert all(words in found for words in told)
    assert not any(words in found for words in not_told)
