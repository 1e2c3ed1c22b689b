"""What is read from model files without a framework, and what a board's runtime is known not to take."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import model_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt import formats
from edgeopt.errors import ConfigError, EdgeoptError, ModelError

pytest.importorskip("onnx")
pytest.importorskip("ai_edge_litert")
MAKERS = {".onnx": model_files.conv_onnx, ".tflite": model_files.tflite, ".xml": model_files.ir}


def on(package: str, version: str) -> dict[str, Any]:
    """The board's runtimes, as the agent's facts tell them."""
    runtime = {"onnxruntime": "onnxruntime", "openvino": "openvino"}.get(package, "tflite")
    return {"tflite": None, "openvino": None, "onnxruntime": None, runtime: {"package": package, "version": version}}


def refusal(path: Path, package: str, version: str) -> str:
    with pytest.raises(ModelError) as error:
        formats.check(formats.read(path), on(package, version), "pi")
    return str(error.value)


@pytest.mark.parametrize(
    ("suffix", "runtime", "port", "operators"),
    [
        (".onnx", "onnxruntime", "'image' float32 [?, 3, 8, 8]", ["Conv", "Relu", "GlobalAveragePool"]),
        (".tflite", "tflite", "'x' float32 [1, 4]", ["9"]),
        (".xml", "openvino", "'x' float32 [1, 4]", ["MatMul"]),
    ],
)
def test_what_a_file_holds(tmp_path: Path, suffix: str, runtime: str, port: str, operators: list[str]) -> None:
    found = formats.read(MAKERS[suffix](tmp_path / f"m{suffix}"))
    assert found.runtime == runtime
    assert [str(own) for own in found.inputs] == [port]
    assert [operator.kind for operator in found.operators] == operators


@pytest.mark.parametrize("suffix", MAKERS)
def test_the_runtime_reads_the_same(tmp_path: Path, suffix: str) -> None:
    """The files of these tests are real ones: their runtimes load them, and see the inputs that are read here."""
    from edgeopt_agent import runtimes

    found = formats.read(MAKERS[suffix](tmp_path / f"m{suffix}"))
    pytest.importorskip({"tflite": "ai_edge_litert"}.get(found.runtime, found.runtime))
    session = runtimes.load(found.runtime).load(str(found.path), 1, {})
    seen = [(tensor["name"], [size if size >= 0 else None for size in tensor["shape"]]) for tensor in session.inputs]
    assert seen == [(port.name, list(port.shape)) for port in found.inputs]
    assert [tensor["dtype"] for tensor in session.inputs] == [port.dtype for port in found.inputs]


def outcome(path: Path, board: dict[str, Any] | None = None) -> formats.Contents | EdgeoptError:
    try:
        contents = formats.read(path)
        formats.check(contents, board or on("onnxruntime", "1.20.0"), "pi")
    except EdgeoptError as error:
        return error
    return contents


@pytest.mark.parametrize("suffix", MAKERS)
def test_every_file_that_was_cut_short_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = MAKERS[suffix](tmp_path / f"m{suffix}")
    whole = path.read_bytes().rstrip()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found = outcome(path)
        if isinstance(found, formats.Contents):  # an .onnx may end with what nothing depends on
            assert suffix == ".onnx"
            assert [operator.kind for operator in found.operators] == ["Conv", "Relu", "GlobalAveragePool"]
            assert size > len(whole) - 16
        else:
            assert isinstance(found, ModelError)
            assert str(path) in str(found)
            assert "get it again" in str(found)


@pytest.mark.parametrize("suffix", MAKERS)
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_bytes_end_in_a_model_error(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: Any) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = MAKERS[suffix](folder / f"m{suffix}")
    whole = bytearray(path.read_bytes())
    places = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(places, min_size=1, max_size=8)):
        whole[at] = value
    path.write_bytes(bytes(whole))
    found = outcome(path)
    assert isinstance(found, formats.Contents | ModelError)
    assert isinstance(found, formats.Contents) or str(path.parent) in str(found)


def test_one_graph_that_is_listed_again_and_again_is_not_followed(tmp_path: Path) -> None:
    """A few bytes more in the list of graphs would otherwise cost a whole graph's reading each."""
    path = model_files.tflite(tmp_path / "m.tflite")
    whole = path.read_bytes()
    root = struct.unpack_from("<I", whole)[0]
    vtable = root - struct.unpack_from("<i", whole, root)[0]

    def vector(field: int) -> int:
        at = int(root + struct.unpack_from("<H", whole, vtable + 4 + 2 * field)[0])
        return int(at + struct.unpack_from("<I", whole, at)[0])

    count = 4000
    table, graphs = 24, 40  # a new root: its table of fields, its list of graphs
    moved = graphs + 4 + 4 * count - 8
    graph = vector(2) + 4 + struct.unpack_from("<I", whole, vector(2) + 4)[0] + moved
    front = struct.pack("<I4s", table, b"TFL3") + struct.pack("<8H", 14, 16, 0, 4, 8, 0, 12, 0)
    front += struct.pack(
        "<iIII", table - 8, *(to + moved - table - 4 * n for n, to in ((1, vector(1)), (2, 0), (3, vector(4))))
    )
    front = front[:32] + struct.pack("<I", graphs - 32) + front[36:]
    front += struct.pack("<I", count) + b"".join(struct.pack("<I", graph - graphs - 4 - 4 * n) for n in range(count))
    path.write_bytes(front + whole[8:])
    with pytest.raises(ModelError, match="its tables refer to one another without end"):
        formats.read(path)


def test_every_runtime_of_a_profile_has_its_format() -> None:
    import pkgutil

    from edgeopt.profile import RUNTIMES

    files = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    assert sorted(files) == sorted(formats.RUNTIME_OF.values()) == sorted(RUNTIMES)
    assert sorted(MAKERS) == sorted(formats.RUNTIME_OF)


def test_files_that_are_not_there_and_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        formats.read(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=r"m\.pt: not a model; a model file ends in \.tflite, \.xml, \.onnx"):
        formats.read(tmp_path / "m.pt")
    for suffix, kind in ((".tflite", "TFLite model"), (".onnx", "ONNX model"), (".xml", "OpenVINO model")):
        for content in (b"", b"PK\x03\x04" * 10, b"<html></html>", b"\0" * 64, b"\xff" * 64):
            (tmp_path / f"m{suffix}").write_bytes(content)
            with pytest.raises(ModelError, match=rf"m{suffix} is not a whole {kind} \("):
                formats.read(tmp_path / f"m{suffix}")


def test_a_document_type_is_refused(tmp_path: Path) -> None:
    path = model_files.ir(tmp_path / "m.xml")
    path.write_text(path.read_text().replace("<net", '<!DOCTYPE net [<!ENTITY a "aaaa">]>\n<net', 1))
    with pytest.raises(ModelError, match="declares a document type"):
        formats.read(path)


def test_openvino_weights_must_be_whole(tmp_path: Path) -> None:
    path = model_files.ir(tmp_path / "m.xml")
    assert [file.name for file in formats.read(path).paths] == ["m.xml", "m.bin"]
    path.with_suffix(".bin").write_bytes(b"\0" * 40)
    with pytest.raises(ModelError, match=r"its constants end at byte 48 of m\.bin, which has 40"):
        formats.read(path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=r"m\.bin are not beside it"):
        formats.read(path)


def test_external_data_of_onnx(tmp_path: Path) -> None:
    path = model_files.conv_onnx(tmp_path / "m.onnx", external=True)
    weights = tmp_path / "m.weights"
    assert formats.read(path).paths == (path, weights)
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"its tensor 'w' ends at byte 864 of 'm\.weights', which has 860"):
        formats.read(path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"its tensor 'w' is in 'm\.weights', which is not beside it; put that file"):
        formats.read(path)


@pytest.mark.parametrize("place", ["/etc/m.weights", "../m.weights", "sub/m.weights"])
def test_external_data_elsewhere_is_not_followed(tmp_path: Path, place: str) -> None:
    path = model_files.conv_onnx(tmp_path / "m.onnx", external=True)
    from onnx import load, save

    model = load(str(path), load_external_data=False)
    model.graph.initializer[0].external_data[0].value = place
    save(model, str(path))
    with pytest.raises(ModelError, match="not in a file beside it"):
        formats.read(path)


@pytest.mark.parametrize(
    ("release", "opset", "ir", "words"),
    [
        ("1.16.3", 20, 9, "it has opset 20, that release takes 19 at most; export it with opset_version=19"),
        ("1.22.1", 17, 11, "it has IR version 11, that release takes 10 at most; export it with ir_version=10"),
    ],
)
def test_an_onnx_file_newer_than_the_boards_runtime(
    tmp_path: Path, release: str, opset: int, ir: int, words: str
) -> None:
    path = model_files.conv_onnx(tmp_path / "m.onnx", opset=opset, ir=ir)
    assert words in refusal(path, "onnxruntime", release)
    formats.check(formats.read(path), on("onnxruntime", "1.24.1"), "pi")
    formats.check(formats.read(path), on("openvino", "2020.1"), "pi")


def test_the_table_is_what_this_machines_runtime_says(tmp_path: Path) -> None:
    """Opset and IR version, one below and one above what the installed release is said to take, tried with it."""
    from importlib import metadata

    onnxruntime = pytest.importorskip("onnxruntime")
    from edgeopt.formats import latest
    from edgeopt.formats import onnxruntime as known

    version = metadata.version("onnxruntime")
    opset, ir = (latest(table, version, known.NEWEST_KNOWN) for table in (known.OPSETS, known.FORMATS))
    if opset is None or ir is None:
        pytest.skip(f"nothing is known of onnxruntime {version}")
    path = model_files.conv_onnx(tmp_path / "a.onnx", opset=opset, ir=ir)
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    formats.check(formats.read(path), on("onnxruntime", version), "here")
    for path in (
        model_files.conv_onnx(tmp_path / "b.onnx", opset=opset + 1),
        model_files.conv_onnx(tmp_path / "c.onnx", ir=ir + 1),
    ):
        with pytest.raises(Exception, match=r"(?i)opset|ir version"):
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        refusal(path, "onnxruntime", version)


def test_a_release_that_is_not_known_is_not_judged(tmp_path: Path) -> None:
    path = model_files.conv_onnx(tmp_path / "m.onnx", opset=40)
    formats.check(formats.read(path), on("onnxruntime", "2.0.0"), "pi")
    formats.check(formats.read(path), on("onnxruntime", "0.1"), "pi")
    formats.check(formats.read(path), {"onnxruntime": None}, "pi")


def test_operators_of_other_libraries(tmp_path: Path) -> None:
    from onnx import helper

    foreign = [helper.make_node("Teleport", ["c"], ["m"], name="beam", domain="starfleet")]
    path = model_files.conv_onnx(tmp_path / "m.onnx", middle=foreign, domains=["starfleet"])
    said = refusal(path, "onnxruntime", "1.31.1")
    assert "operator 'Teleport' of domain 'starfleet' (node 'beam') is in no release of ONNX Runtime" in said
    assert "onnxruntime 1.31.1 at pi cannot take it" in said
    fused = [helper.make_node("Gelu", ["c"], ["m"], name="g", domain="com.microsoft")]
    path = model_files.conv_onnx(tmp_path / "fused.onnx", middle=fused, domains=["com.microsoft"])
    formats.check(formats.read(path), on("onnxruntime", "1.31.1"), "pi")


@pytest.mark.parametrize(
    ("custom", "words"),
    [
        ("FlexErf", "operator 'FlexErf' (operator 0 of the graph) is TensorFlow's own and needs its Flex delegate"),
        ("edgetpu-custom-op", "custom operator 'edgetpu-custom-op' (operator 0 of the graph) is in no runtime"),
    ],
)
def test_custom_operators_of_tflite(tmp_path: Path, custom: str, words: str) -> None:
    path = model_files.tflite(tmp_path / "m.tflite", custom=custom)
    for package, version in (("ai-edge-litert", "2.3.0"), ("tflite-runtime", "2.14.0")):
        assert words in refusal(path, package, version)
    known = model_files.tflite(tmp_path / "k.tflite", custom="TFLite_Detection_PostProcess")
    formats.check(formats.read(known), on("ai-edge-litert", "2.3.0"), "pi")


def test_a_tflite_file_that_needs_a_newer_runtime(tmp_path: Path) -> None:
    path = model_files.tflite(tmp_path / "m.tflite", needs="2.11.0")
    assert "it needs the runtime of TensorFlow 2.11.0 or later" in refusal(path, "tflite-runtime", "2.5.0")
    formats.check(formats.read(path), on("tflite-runtime", "2.14.0"), "pi")
    formats.check(formats.read(path), on("ai-edge-litert", "1.0.1"), "pi")


def test_built_in_operators_that_a_release_does_not_have(tmp_path: Path) -> None:
    """What is said of ai-edge-litert is what the one that is installed here says itself, for every number."""
    from importlib import metadata

    from ai_edge_litert.interpreter import Interpreter

    from edgeopt.formats import tflite

    version = metadata.version("ai-edge-litert")
    for number in range(150, 215):
        path = model_files.tflite(tmp_path / "n.tflite", code=number)
        try:
            Interpreter(model_path=str(path))
            is_there = True
        except (ValueError, RuntimeError) as error:
            is_there = "find op" not in str(error) and "out of range" not in str(error)
        if formats.release(version) <= tflite.NEWEST_KNOWN:
            said = outcome(path, on("ai-edge-litert", version))
            assert isinstance(said, formats.Contents if is_there else ModelError), number
    assert "built-in operator number 214 (operator 0 of the graph) is not in that release" in refusal(
        path, "ai-edge-litert", "2.3.0"
    )
    assert "ai-edge-litert for tflite-runtime" in refusal(path, "tflite-runtime", "2.14.0")
    formats.check(formats.read(path), on("ai-edge-litert", "9.0"), "pi")


@pytest.mark.parametrize(
    ("how", "release", "words"),
    [
        ({"opset": "opset14"}, "2023.3.0", "operator 'MatMul' (node 'dense') is of opset14, that release has opset13"),
        ({"opset": "extension"}, "2026.4.0", "operator 'MatMul' (node 'dense') is of 'extension', not of OpenVINO"),
        ({"version": 7}, "2026.4.0", "it has IR version 7, that release takes 10 to 11"),
        ({"version": 11}, "2021.4.0", "it has IR version 11, that release takes 10 to 10"),
    ],
)
def test_an_openvino_model_that_the_release_does_not_know(
    tmp_path: Path, how: dict[str, Any], release: str, words: str
) -> None:
    assert words in refusal(model_files.ir(tmp_path / "m.xml", **how), "openvino", release)
    formats.check(
        formats.read(model_files.ir(tmp_path / "n.xml")),
        on("openvino", release if how != {"version": 11} else "2022.1"),
        "pi",
    )
