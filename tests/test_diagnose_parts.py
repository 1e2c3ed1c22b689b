"""What `diagnose` reads and judges, without a board: sound models have no fault, damaged ones are named."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import dense_tflite
from model_files import conv_onnx

from edgeopt.diagnose import compare, geometry, graph, hypotheses, quantized, ranges, words
from edgeopt.errors import ModelError
from edgeopt.formats import RUNTIME_OF, tflite

Array = np.ndarray[Any, np.dtype[Any]]
INT8, INT16 = (-128, 127), (-32768, 32767)


def rounded(zero: int, limits: tuple[int, int], kind: str = "CONV_2D") -> graph.Layer:
    own = graph.Quantization(0.1, zero, *limits)
    return graph.Layer(0, "t", "n", kind, "t", (-1,), own, is_stored=True)


def half_saturated(low: int, high: int, samples: int = 4) -> Array:
    """Stored numbers from `low` on, of which every other one is `high`."""
    values = np.random.default_rng(0).integers(low, high, (samples, 100))
    values[:, ::2] = high
    return values


SOUND = {
    "symmetric int16 after RELU6": (rounded(0, INT16, "RELU6"), half_saturated(0, 32767)),
    "symmetric int8": (rounded(0, INT8), half_saturated(-60, 127)),
    "saturated gates": (rounded(-100, INT8, "LOGISTIC"), half_saturated(-40, 127)),
    "nothing would fit": (rounded(-120, INT8), half_saturated(-70, 127)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_range_is_no_wrong_zero_point(name: str) -> None:
    layer, stored = SOUND[name]
    seen = ranges.seen(layer, stored)
    assert seen is not None
    assert ranges.shifted_alone(layer, seen) is None


@pytest.mark.parametrize(("samples", "is_far", "is_fault"), [(4, True, True), (4, False, False), (1, True, False)])
def test_a_range_alone_is_a_fault_only_with_strong_evidence(samples: int, is_far: bool, is_fault: bool) -> None:
    layer = rounded(100, INT8)
    own = graph.Graph("tflite", (layer,), (0,))
    row = {"number": 0, "name": "n", "operator": "CONV_2D", "zero_point": 100, "scale": 0.1, "loss_db": None}
    (found,) = quantized.judge(own, [half_saturated(100, 127, samples)], [], None, [row], is_far)
    assert found["kind"] == "zero-point"
    assert found["evidence"]["fits"] == -128
    assert found["is_fault"] == is_fault


def told(decibels: float | None) -> dict[str, Any]:
    return {"max": 1.0, "mean": 0.1, "sqnr_db": decibels}


@pytest.mark.parametrize(
    ("answers", "watched", "apart"), [(20.0, 50.0, True), (29.0, 31.0, False), (29.0, 25.0, False)]
)
def test_layers_joined_otherwise_need_a_margin(answers: float, watched: float, apart: bool) -> None:
    """The first output is layer 0; that the last layer agrees says nothing of it."""
    own = graph.Graph("tflite", (rounded(0, INT8), rounded(0, INT8)), (0,))
    assert compare.apart_unwatched(own, told(answers), [told(watched), told(None)], 30.0) == apart
    unseen = graph.Graph("tflite", (rounded(0, INT8),), (None,))
    assert not compare.apart_unwatched(unseen, told(answers), [told(watched)], 30.0)


def test_another_shape_is_told() -> None:
    own = compare.error(np.zeros((2, 3)), np.zeros((2, 4)))
    assert compare.decibels(own) == compare.LOST_DB
    assert words.decibels(own) == "shape [2, 3] for [2, 4]"
    chain = graph.Graph("tflite", (rounded(0, INT8),), (0,))
    assert compare.parted(chain, [own], 30.0) == [0]


def test_channels_that_are_nearly_alike_are_not_called_swapped() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        grey = rng.normal(size=(2, 16, 16, 1))
        right, found = (grey + 5e-3 * rng.normal(size=(2, 16, 16, 3)) for _ in range(2))
        assert hypotheses.explain(found, right, list).faults == ()


def test_an_array_of_many_axes_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="shape"):
        hypotheses.explain(np.zeros([2] * 20), np.zeros((2, 3, 4)), list)


# OpenVINO's files, written by hand.


def node(number: int, kind: str, inputs: int, data: str = "") -> str:
    ports = "".join(f'<port id="{place}"/>' for place in range(inputs))
    output = f'<output><port id="{inputs}" precision="FP32"><dim>1</dim></port></output>' if kind != "Result" else ""
    return (
        f'<layer id="{number}" name="n{number}" type="{kind}" version="opset1">{data}<input>{ports}</input>'
        f"{output}</layer>"
    )


def edge(source: int, port: int, target: int, place: int) -> str:
    return f'<edge from-layer="{source}" from-port="{port}" to-layer="{target}" to-port="{place}"/>'


def openvino(path: Path, layers: list[str], edges: list[str]) -> Path:
    path.write_text(
        f'<net name="g" version="11"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges></net>'
    )
    path.with_suffix(".bin").write_bytes(np.ones(16, np.float32).tobytes())
    return path


INPUT = '<data shape="1" element_type="f32"/>'
CONSTANT = '<data element_type="f32" offset="0" size="4" shape="1"/>'


def test_a_circle_of_layers_is_told(tmp_path: Path) -> None:
    layers = [node(0, "Parameter", 0, INPUT), node(1, "Add", 2), node(2, "Relu", 1), node(3, "Result", 1)]
    edges = [edge(0, 0, 1, 0), edge(2, 1, 1, 1), edge(1, 2, 2, 0), edge(2, 1, 3, 0)]
    with pytest.raises(ModelError, match=r"circle\.xml.*computed from itself"):
        graph.read(openvino(tmp_path / "circle.xml", layers, edges), "openvino")


@pytest.mark.parametrize("kind", ["Multiply", "Add"])
def test_constants_that_are_used_again_and_again_take_no_time(kind: str, tmp_path: Path) -> None:
    """60 operators that take the one before twice; each looked at anew would be 2^60."""
    layers, edges = [node(0, "Parameter", 0, INPUT), node(1, "Const", 0, CONSTANT)], []
    port = 0
    for number in range(2, 62):
        layers.append(node(number, kind, 2))
        edges += [edge(number - 1, port, number, place) for place in (0, 1)]
        port = 2
    layers += [node(62, "MatMul", 2), node(63, "Result", 1)]
    edges += [edge(0, 0, 62, 0), edge(61, 2, 62, 1), edge(62, 2, 63, 0)]
    (found,) = graph.read(openvino(tmp_path / "m.xml", layers, edges), "openvino").layers
    assert (found.weights is not None) == (kind == "Multiply")


def test_ranges_of_each_channel_are_quantized(tmp_path: Path) -> None:
    wide = '<data element_type="f32" offset="0" size="8" shape="2"/>'
    layers = [
        node(0, "Parameter", 0, INPUT),
        node(1, "Const", 0, wide),
        node(2, "FakeQuantize", 5),
        node(3, "Result", 1),
    ]
    edges = [edge(0, 0, 2, 0), *(edge(1, 0, 2, place) for place in range(1, 5)), edge(2, 5, 3, 0)]
    own = graph.read(openvino(tmp_path / "m.xml", layers, edges), "openvino")
    assert own.layers[0].quantization is None
    assert compare.agreement_needed(own, {}) == compare.AGREE_INT8_DB


# ONNX.


def test_ranges_of_the_moment_are_quantized(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
        helper.make_tensor_value_info("y", TensorProto.INT32, [1, 3]),
    ]
    weights = numpy_helper.from_array(np.ones((4, 3), np.int8), "w")
    made = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weights])
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "m.onnx"))
    own = graph.read(tmp_path / "m.onnx", "onnxruntime")
    assert compare.agreement_needed(own, {}) == compare.AGREE_INT8_DB
    plain = graph.read(conv_onnx(tmp_path / "float.onnx"), "onnxruntime")
    assert compare.agreement_needed(plain, {}) == compare.AGREE_FLOAT_DB


def test_half_floats_are_read_from_whole_numbers(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(conv_onnx(tmp_path / "m.onnx")))
    (weights,) = model.graph.initializer
    values = numpy_helper.to_array(weights).astype(np.float16)
    weights.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT16, values.shape, values.flatten()))
    assert weights.int32_data
    onnx.save(model, str(tmp_path / "m.onnx"))
    found = graph.read(tmp_path / "m.onnx", "onnxruntime").layers[0].weights
    assert found is not None
    np.testing.assert_array_equal(found.values, values.astype(np.float64))


@pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname"])
def test_data_elsewhere_is_not_read(place: str, tmp_path: Path) -> None:
    import onnx

    (tmp_path / "outside.bin").write_bytes(bytes(4096))
    (tmp_path / "own").mkdir()
    path = conv_onnx(tmp_path / "own" / "m.onnx", external=True)
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = place if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="not in a file beside it"):
        graph.read(path, "onnxruntime")


# TFLite.


def changed_tflite(operators: int = 1, int8: bool = False) -> bytes:
    """The dense model, with its operator so many times, each with a tensor of its own for the one buffer of weights."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    size = (64, 256) if operators > 1 else (4, 3)
    model = schema.ModelT.InitFromPackedBuf(bytearray(dense_tflite(*size)), 0)
    main = model.subgraphs[0]
    weights = main.tensors[1]
    if int8:
        weights.type = schema.TensorType.INT8
        weights.quantization = schema.QuantizationParametersT()
        weights.quantization.scale, weights.quantization.zeroPoint = [0.5], [0]
        model.buffers[1].data = model.buffers[1].data[: size[0] * size[1]]
    first = main.operators[0]
    for number in range(1, operators):
        own, shared = schema.OperatorT(), schema.TensorT()
        shared.name, shared.shape, shared.buffer, shared.type = f"w{number}", weights.shape, 1, weights.type
        main.tensors.append(shared)
        own.opcodeIndex, own.inputs, own.outputs = 0, [0, len(main.tensors) - 1, -1], first.outputs
        main.operators.append(own)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_int8_weights_alone_are_quantized(tmp_path: Path) -> None:
    for int8, needed in ((True, compare.AGREE_INT8_DB), (False, compare.AGREE_FLOAT_DB)):
        (tmp_path / "m.tflite").write_bytes(changed_tflite(int8=int8))
        assert compare.agreement_needed(graph.read(tmp_path / "m.tflite", "tflite"), {}) == needed


def test_weights_of_many_tensors_in_one_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(changed_tflite(operators=3))
    assert len(graph.read(path, "tflite").layers) == 3
    path.write_bytes(changed_tflite(operators=40))
    with pytest.raises(ModelError, match="share their data"):
        graph.read(path, "tflite")


def test_a_vector_that_tables_share_is_counted_each_time() -> None:
    """One vector of 100 floats; the budget ends its being read again and again."""
    data = bytearray(struct.pack("<HHHHiII100f", 8, 8, 4, 0, 8, 4, 100, *range(100)))
    table = tflite.Table(data, 8, [250])
    assert table.items(0, "f") == list(range(100))
    table.items(0, "f")
    with pytest.raises(ValueError, match="without end"):
        table.items(0, "f")


# Damaged files.


def is_refused_by_name(path: Path, runtime: str, folder: Path) -> bool:
    """Whether the file is refused, which must name it; anything else that is raised is a defect."""
    told = ""
    (folder / "copy").mkdir(exist_ok=True)
    try:
        own = graph.read(path, runtime)
        graph.watched(path, own, folder / "copy")
        graph.halved(path, own, folder / "copy")
    except ModelError as error:
        told = str(error)
    assert not told or str(path) in told
    return bool(told)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx", ".xml"])
def test_a_damaged_model_is_named(suffix: str, tmp_path: Path) -> None:
    """Bytes changed anywhere: the layers are found all the same, or the error names the file."""
    path = tmp_path / f"m{suffix}"
    if suffix == ".tflite":
        path.write_bytes(changed_tflite(int8=True))
    elif suffix == ".onnx":
        conv_onnx(path)
    else:
        layers = [node(0, "Parameter", 0, INPUT), node(1, "Const", 0, CONSTANT), node(2, "MatMul", 2)]
        edges = [edge(0, 0, 2, 0), edge(1, 0, 2, 1), edge(2, 2, 3, 0)]
        openvino(path, [*layers, node(3, "Result", 1)], edges)
    whole, runtime, refused = path.read_bytes(), RUNTIME_OF[suffix], 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        refused += is_refused_by_name(path, runtime, tmp_path)
    assert refused


def test_an_xml_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = openvino(tmp_path / "m.xml", [node(0, "Parameter", 0, INPUT)], [])
    path.write_text(path.read_text()[:-9])
    assert is_refused_by_name(path, "openvino", tmp_path)


# Pictures.


def test_pictures_that_cannot_be_used_are_told() -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed: pip install 'edgeopt[tasks]'")
    prepare = {"kind": "images", "mode": "RGB", "filter": "bicubic", "resize": 10, "crop": [8, 8]}
    narrow = io.BytesIO()
    image.new("RGB", (1, 3000)).save(narrow, "png")
    plain = narrow.getvalue()
    bomb = bytearray(plain)
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    for raw, told_prepare in (
        (b"no picture", prepare),
        (bytes(bomb), prepare),
        (plain[:40], prepare),
        (plain, {**prepare, "resize": 10_000}),
        (plain, {"kind": "images"}),
    ):
        with pytest.raises(geometry.UNREADABLE):
            list(geometry.others([raw], told_prepare, (1, 8, 8, 3)))
