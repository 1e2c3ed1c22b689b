"""optimize of an ONNX file through the installed CLI, for the runtimes that take one; flashed and validated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_quick

from edgeopt import bundle as bundles

RUN_FILE = """
name = "small"

[model]
onnx = "small.onnx"

[task]
arrays = "data.npz"
inputs = ["x"]
labels = "y"
metric = "top1"

[splits]
calibration = {{ count = 40 }}
selection = {{ count = 60 }}
final = {{ count = 100 }}

[device]
profile = "generic-x86-64"

[ladder]
rungs = ["fp32", "int8", "threads"]
floor_drop = 0.2
{runtime}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    if importlib.util.find_spec("onnx") is None:
        pytest.skip("needs edgeopt[onnx]")
    return write(tmp_path / "project")


def write(folder: Path) -> Path:
    """A convolutional classifier as a file with external data, and samples that it labels itself, in a new folder."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 5)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) * 0.3, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["y"], name="head"),
    ]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5]),
    ]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir()
    save(model, folder / "small.onnx", save_as_external_data=True, location="small.data", size_threshold=0)
    x = rng.normal(size=(200, 3, 16, 16)).astype(np.float32)
    from edgeopt import onnx_model
    from edgeopt.model import untold

    y = onnx_model.run(folder / "small.onnx", (x,), untold)[0].argmax(axis=1)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_onnx_file_becomes_a_release(project: Path, tmp_path: Path, runtime: str) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"needs edgeopt[{runtime}]")
    asked = "" if runtime == "openvino" else f'runtime = "{runtime}"'  # openvino is the profile's first that fits
    (project / "edgeopt.toml").write_text(RUN_FILE.format(runtime=asked))
    where = ["--root", tmp_path / "board"]
    run = ["--cache", tmp_path / "cache", "--out", tmp_path / "run", "--json", "--allow-undecided"]
    done = run_quick("optimize", project, *where, *run)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"]["runtime"] == runtime
    names = [trial["name"] for trial in found["trials"]]
    assert names[:2] == ["fp32", "int8"]
    fp32, int8 = found["trials"][:2]
    assert fp32["score"]["value"] == 1.0
    assert sorted(fp32["artifact"]["files"]) == (
        ["model.bin", "model.xml"] if runtime == "openvino" else ["model.onnx"]
    )
    assert int8["notes"]["parity"][0]["stage"].startswith("conversion to")
    if runtime == "openvino":
        assert int8["executed"]["precision"] == "f32"
        assert int8["executed"]["macs"]["int8"] > 0.95 * sum(int8["executed"]["macs"].values())
        assert set(fp32["executed"]["macs"]) == {"f32"}
    else:
        assert any(name.startswith("QLinearConv") for name in int8["executed"]["ops"])
    bundle = tmp_path / "run" / "small.edgeopt"
    manifest = bundles.read(bundle).manifest
    assert manifest.artifact.runtime == runtime
    flashed = run_quick("flash", bundle, *where)
    assert flashed.returncode == 0, flashed.stderr
    release = tmp_path / "board" / "current" / "release"
    assert {path.name for path in release.iterdir()} >= set(manifest.files)
    judged = run_quick("validate", bundle, *where, "--json", "--allow-undecided")
    assert judged.returncode == 0, judged.stderr
    back = run_quick("bench", bundle, *where, "--json")
    assert back.returncode == 0, back.stderr


def test_int8_whose_other_output_is_noise_is_a_failed_trial(project: Path, tmp_path: Path) -> None:
    """The score is of the first output; on the way to the second, each channel is larger than the one before."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("needs edgeopt[onnx]")
    from onnx import TensorProto, helper, load, numpy_helper, save

    model = load(str(project / "small.onnx"))
    up = np.geomspace(1, 1e6, 32, dtype=np.float32)[None]
    weights = [numpy_helper.from_array(own, name) for name, own in (("up", up), ("down", 1 / up))]
    model.graph.initializer.extend(weights)
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["e", "up"], ["f"], name="grow"),
            helper.make_node("Relu", ["f"], ["g"]),
            helper.make_node("Mul", ["g", "down"], ["h"], name="shrink"),
            helper.make_node("MatMul", ["h", "w3"], ["z"], name="other"),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 5]))
    save(model, str(project / "small.onnx"))
    text = RUN_FILE.format(runtime='runtime = "onnxruntime"').replace(', "threads"', "")
    (project / "edgeopt.toml").write_text(text)
    run = ["--cache", tmp_path / "cache", "--out", tmp_path / "run", "--json", "--allow-undecided"]
    done = run_quick("optimize", project, "--root", tmp_path / "board", *run)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    fp32, int8 = found["trials"]
    assert int8["verdict"] == "failed"
    for words in ("int8 quantization", "output 1", "signal to noise", "the floor is 10 dB"):
        assert words in int8["reason"]
    assert found["chosen"] == "fp32"
    assert [own["output"] for own in fp32["notes"]["parity"][0]["outputs"]] == [0, 1]


def test_a_changed_weight_is_another_model(project: Path, tmp_path: Path) -> None:
    """The weights are in a second file, which no trace of Python code sees being read."""
    (project / "edgeopt.toml").write_text(RUN_FILE.format(runtime="").replace(', "int8", "threads"', ""))
    run = ["--root", tmp_path / "board", "--cache", tmp_path / "cache", "--out", tmp_path / "run", "--allow-undecided"]
    assert run_quick("optimize", project, *run).returncode == 0
    again = run_quick("optimize", project, *run)
    assert "converting" not in again.stderr
    data = bytearray((project / "small.data").read_bytes())
    data[3] ^= 0x80  # the sign of the first weight
    (project / "small.data").write_bytes(data)
    other = run_quick("optimize", project, *run)
    assert other.returncode == 0, other.stderr
    assert "converting to OpenVINO" in other.stderr
