"""Every runtime file keeps the contract of edgeopt_agent/runtimes, and the facts of recorded boards are read right."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import (
    dense_tflite,
    fake_model,
)
from edgeopt_agent import facts, runtimes, wire

RECORDED = Path(__file__).parent / "recorded"

ALL_RUNTIMES = sorted(module.name for module in pkgutil.iter_modules(runtimes.__path__))


def onnx_model(batch: int | str = 1) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3) - 5, "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, n]) for name, n in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def openvino_model() -> dict[str, bytes]:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m.onnx").write_bytes(onnx_model())
        openvino.save_model(openvino.convert_model(f"{folder}/m.onnx"), f"{folder}/model.xml", compress_to_fp16=False)
        return {name: (Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin")}


# Each takes (1, 4) float32; the first file is loaded.
MODELS: dict[str, Callable[[], dict[str, bytes]]] = {
    "fake": lambda: {"model": fake_model(gain=2.0)},
    "tflite": lambda: {"model": dense_tflite()},
    "onnxruntime": lambda: {"model.onnx": onnx_model()},
    "openvino": openvino_model,
}


def written(name: str, folder: Path) -> Path:
    """The runtime's model in `folder`; the file to load."""
    files = MODELS[name]()
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return folder / next(iter(files))


@pytest.mark.parametrize("name", ALL_RUNTIMES)
def test_a_runtime_keeps_the_contract(name: str, tmp_path: Path) -> None:
    adapter = runtimes.load(name)
    assert isinstance(adapter.PACKAGES, tuple)
    assert all(isinstance(package, str) for package in adapter.PACKAGES)
    found = adapter.available()
    if found is None:
        with pytest.raises(wire.RemoteError, match=name) as caught:
            adapter.require()
        assert caught.value.kind == "missing-runtime"
        pytest.skip(f"none of {adapter.PACKAGES} is installed")
    assert set(found) == {"package", "version"}
    assert name == "fake" or found["package"] in adapter.PACKAGES
    adapter.require()
    assert name in MODELS, f"add a small model for runtime '{name}' to MODELS"
    path = written(name, tmp_path)
    session = adapter.load(str(path), 1, {})
    for tensor in (*session.inputs, *session.outputs):
        assert set(tensor) == {"name", "shape", "dtype"}
        assert isinstance(tensor["name"], str)
        assert all(isinstance(size, int) for size in tensor["shape"])
        assert np.dtype(tensor["dtype"]).name == tensor["dtype"]
    given = np.array([[1, 2, 3, 4]], dtype=np.float32)
    session.set_inputs([given])
    given[:] = 0  # set_inputs copies
    session.invoke()
    first = session.get_outputs()
    before = [output.copy() for output in first]
    session.set_inputs([np.ones((1, 4), np.float32)])
    session.invoke()
    for kept, copy, tensor in zip(first, before, session.outputs, strict=True):
        np.testing.assert_array_equal(kept, copy)  # get_outputs returns copies
        assert copy.any()
        assert list(copy.shape) == tensor["shape"]
        assert copy.dtype.name == tensor["dtype"]
    executed = session.executed()
    assert set(executed) == {"threads", "ops", "delegate_nodes", "precision", "macs", "places", "macs_at"}
    assert executed["threads"] == 1
    assert executed["ops"]
    assert executed["macs"] is None or list(executed["macs"].values()) == [12]
    json.dumps([executed, session.inputs, session.outputs], allow_nan=False)


@pytest.mark.parametrize("name", ALL_RUNTIMES)
def test_a_runtime_answers_several_samples_at_once_as_it_answers_each(name: str, tmp_path: Path) -> None:
    adapter = runtimes.load(name)
    if adapter.available() is None:
        pytest.skip("nothing to load with")
    path = written(name, tmp_path)
    if name == "onnxruntime":
        with pytest.raises(wire.RemoteError, match=r"input 'x' \[1, 4\] has no free batch axis"):
            adapter.load(str(path), 1, {}, 3)
        path.write_bytes(onnx_model("n"))
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    answers = []
    for batch in (1, 3):
        session = adapter.load(str(path), 1, {}, batch)
        assert [tensor["shape"][1:] for tensor in session.inputs] == [[4]]
        assert batch == 1 or session.inputs[0]["shape"][0] == 3
        rows = []
        for first in range(0, 3, batch):
            session.set_inputs([given[first : first + batch]])
            session.invoke()
            rows.append(session.get_outputs()[0])
        answers.append(np.concatenate(rows))
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-6)


@pytest.mark.parametrize("name", ALL_RUNTIMES)
def test_a_runtime_refuses_options_that_it_does_not_know(name: str, tmp_path: Path) -> None:
    with pytest.raises(wire.RemoteError, match=f"runtime '{name}' does not take colour = 'red'"):
        runtimes.load(name).load(str(tmp_path), 1, {"colour": "red"})


def test_openvino_computes_in_float32_unless_told_otherwise(tmp_path: Path) -> None:
    adapter = runtimes.load("openvino")
    if adapter.available() is None:
        pytest.skip("needs openvino")
    path = str(written("openvino", tmp_path))
    assert adapter.load(path, 1, {}).executed()["precision"] == "f32"
    assert adapter.load(path, 1, {"precision": "f32"}).executed()["macs"] == {"f32": 12}


@pytest.mark.parametrize("name", ALL_RUNTIMES)
def test_a_runtime_says_what_is_wrong_with_a_model(name: str, tmp_path: Path) -> None:
    if name == "fake" or runtimes.load(name).available() is None:
        pytest.skip("nothing to load with")
    path = written(name, tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(wire.RemoteError, match=f"{name} cannot load the model"):
        runtimes.load(name).load(str(path), 1, {})


def test_looking_for_runtimes_imports_none() -> None:
    code = "import sys; from edgeopt_agent import facts; facts.collect(); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "edgeopt_agent.runtimes.tflite" in loaded
    assert not {"numpy", "ai_edge_litert", "tflite_runtime"} & set(loaded)


# Facts: parsers over texts recorded from real boards


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "cpuinfo-raspberry-pi-4-64bit.txt",
            {
                "cpu_model": "Cortex-A72",
                "cpu_features": ["asimd"],
                "board_model": "Raspberry Pi 4 Model B Rev 1.4",
                "serial": "10000000abcdef01",
            },
        ),
        (
            "cpuinfo-raspberry-pi-4-32bit.txt",
            {
                "cpu_model": "Cortex-A72",
                "cpu_features": ["neon"],
                "board_model": "Raspberry Pi 4 Model B Rev 1.1",
                "serial": "10000000abcdef01",
            },
        ),
        (
            "cpuinfo-x86-64-server.txt",
            {
                "cpu_model": "Intel(R) Xeon(R) Processor",
                "cpu_features": ["amx_int8", "avx2", "avx512_vnni", "avx_vnni"],
                "board_model": None,
                "serial": None,
            },
        ),
    ],
)
def test_cpuinfo(name: str, expected: dict[str, Any]) -> None:
    assert facts.parse_cpuinfo(recorded(name)) == expected


def test_cpuinfo_of_nothing_is_unknown() -> None:
    assert facts.parse_cpuinfo("") == {"cpu_model": None, "cpu_features": [], "board_model": None, "serial": None}


def test_meminfo() -> None:
    found = facts.parse_meminfo(recorded("meminfo-x86-64-server.txt"))
    assert found == {"MemTotal": 24684096 * 1024, "MemAvailable": 23819868 * 1024}
    assert facts.parse_meminfo("") == {}


@pytest.mark.parametrize(
    ("text", "now"),
    [
        ("0", (False, False, False)),
        ("50005\n", (True, False, True)),
        ("throttled=0x50000", (False, False, False)),
        ("0x80006", (False, True, True)),
    ],
)
def test_throttled(text: str, now: tuple[bool, bool, bool]) -> None:
    found = facts.parse_throttled(text)
    assert found is not None
    assert (found["undervoltage"], found["frequency_capped"], found["throttled"]) == now


def test_throttled_nonsense_is_unknown() -> None:
    assert facts.parse_throttled("VCHI initialization failed") is None


def test_oom_kills() -> None:
    assert facts.parse_oom_kills("pgfault 12\noom_kill 3\nnuma_hit 4\n") == 3
    assert facts.parse_oom_kills("pgfault 12\n") is None
