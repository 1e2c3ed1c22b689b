"""Operators run where and as the runtime says; a fall-back that was not allowed ends with exit 6 and their names."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import placement_models as models
import pytest
from conftest import run_quick
from edgeopt_agent import runtimes

from edgeopt import placement
from edgeopt.artifact import Artifact
from edgeopt.placement import Demand

MADE: dict[str, Callable[[Path, tuple[bool, bool]], Path]] = {
    "onnxruntime": models.mixed_onnx,
    "openvino": models.mixed_ir,
}
SUFFIX = {"onnxruntime": "onnx", "openvino": "xml"}


def made(runtime: str, folder: Path, quantized: tuple[bool, bool]) -> Path:
    for name in (runtime, "onnx"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    return MADE[runtime](folder / f"mixed.{SUFFIX[runtime]}", quantized)


def session(runtime: str, path: Path, **options: Any) -> Any:
    loaded = runtimes.load(runtime).load(str(path), 1, options)
    loaded.set_inputs([np.ones(tensor["shape"], tensor["dtype"]) for tensor in loaded.inputs])
    loaded.invoke()
    return loaded


def tflite(folder: Path, scheme: str) -> Path:
    path = folder / f"{scheme}.tflite"
    path.write_bytes(models.small_tflite()[scheme])
    return path


def bench(folder: Path, model: Path, *more: object) -> Any:
    return run_quick("bench", model, "--random", "--root", folder / "board", *more, "--json")


@pytest.mark.parametrize("runtime", MADE)
@pytest.mark.parametrize("quantized", [(True, True), (True, False), (False, False)])
def test_macs_are_counted_by_type_as_they_are_executed(
    runtime: str, quantized: tuple[bool, bool], tmp_path: Path
) -> None:
    macs = session(runtime, made(runtime, tmp_path, quantized)).executed()["macs"]
    first = 32 * 8 * 8 * 9 * 3
    assert sum(macs.values()) == models.MACS
    assert macs.get("int8", 0) == quantized[0] * first + quantized[1] * (models.MACS - first)


@pytest.mark.parametrize("runtime", MADE)
def test_every_operator_has_its_time_in_a_session_of_its_own(runtime: str, tmp_path: Path) -> None:
    loaded = session(runtime, made(runtime, tmp_path, (True, False)))
    before = loaded.get_outputs()[0].copy()
    found = loaded.operators(5)
    assert all(set(one) == {"op", "name", "place", "type", "macs", "seconds"} for one in found)
    multiplying = [one for one in found if one["macs"]]
    assert [one["type"] == "int8" for one in multiplying] == [True, False]
    assert all(one["seconds"] > 0 for one in multiplying)
    assert [one["seconds"] for one in loaded.operators(0)] == [None] * len(found)
    assert np.array_equal(before, loaded.get_outputs()[0])
    json.dumps(found, allow_nan=False)


def test_tflite_tells_what_its_delegate_left_to_the_cpu(tmp_path: Path) -> None:
    for scheme, kind in (("fp32", "float32"), ("int8", "int8")):
        found = session("tflite", tflite(tmp_path, scheme)).operators(3)
        assert [one["op"] for one in found if one["place"] == "CPU"] == ["CUMSUM"]
        assert [one["type"] for one in found if one["macs"]] == [kind] * 3
        assert [one["macs"] for one in found if one["macs"]] == [16 * 96 * 27, 16 * 96 * 144, 64]
        assert {one["seconds"] for one in found} == {None}  # not told, and not zero


@pytest.mark.parametrize("runtime", MADE)
def test_a_float_operator_in_an_int8_model_is_named(runtime: str, tmp_path: Path) -> None:
    path = made(runtime, tmp_path, (True, False))
    refused = bench(tmp_path, path, "--require-int8", 0.95)
    assert refused.returncode == 6, refused.stderr
    assert "62.8% of its multiply-accumulates are computed in int8, 95.0% are required" in refused.stderr
    assert refused.stderr.count("Conv") == 1
    assert placement.refusal(session(runtime, path).operators(0), artifact(), Demand(0.6)) is None


@pytest.mark.parametrize(
    ("runtime", "option", "says"),
    [
        ("onnxruntime", "provider=XnnpackExecutionProvider", "has no XnnpackExecutionProvider (it has: "),
        ("openvino", "device=NPU", "finds no NPU here (it finds: CPU"),
    ],
)
def test_an_accelerator_that_is_not_there_is_an_error_with_the_operators(
    runtime: str, option: str, says: str, tmp_path: Path
) -> None:
    done = bench(tmp_path, made(runtime, tmp_path, (False, False)), "--option", option)
    assert done.returncode == 6, done.stderr
    assert says in done.stderr
    assert "so all of the model would run on the CPU: its 2 operators (Conv" in done.stderr


def test_a_delegate_that_is_not_there_is_an_error_with_the_operators(tmp_path: Path) -> None:
    done = bench(tmp_path, tflite(tmp_path, "int8"), "--option", "delegate=/usr/lib/libnone.so")
    assert done.returncode == 6, done.stderr
    assert "the delegate /usr/lib/libnone.so is not on this board" in done.stderr
    assert "its 9 operators (CONV_2D, CUMSUM, DEQUANTIZE, FULLY_CONNECTED, MEAN, QUANTIZE)" in done.stderr
    wrong = tmp_path / "libwrong.so"
    wrong.write_bytes(b"no library")
    done = bench(tmp_path, tflite(tmp_path, "int8"), "--option", f"delegate={wrong}")
    assert done.returncode == 6, done.stderr
    assert f"the delegate {wrong} cannot be loaded" in done.stderr


def test_operators_that_a_delegate_refuses_are_an_error_with_their_names(tmp_path: Path) -> None:
    delegate, model = models.refusing_delegate(tmp_path), tflite(tmp_path, "int8")
    refused = bench(tmp_path, model, "--option", f"delegate={delegate}")
    assert refused.returncode == 6, refused.stderr
    assert (
        "5 of 9 operators do not run on librefusing_delegate.so, 100.0% of its multiply-accumulates" in refused.stderr
    )
    assert "CUMSUM" in refused.stderr
    assert "(CPU)" in refused.stderr
    assert "(XNNPACK)" in refused.stderr
    some = bench(tmp_path, model, "--option", f"delegate={delegate}", *("--allow-fallback", "CUMSUM"))
    assert some.returncode == 6, some.stderr
    assert "4 of 9 operators" in some.stderr
    asked = ["--option", f"delegate={delegate}", "--allow-fallback", "any", "--operators"]
    allowed = run_quick("bench", model, "--random", "--root", tmp_path / "board", *asked)
    assert allowed.returncode == 0, allowed.stderr
    assert "XNNPACK 8, CPU 1 (CUMSUM, 0.0 % of the MACs)" in allowed.stdout
    assert "this runtime times no operator; conversions: 2 QUANTIZE, 2 DEQUANTIZE" in allowed.stdout


def artifact(runtime: str = "tflite", **options: str) -> Artifact:
    return Artifact("net", (Path("net.tflite"),), ("0" * 64,), 1, runtime, 1, [], dict(options))


def ran(op: str, place: str, kind: str = "int8", macs: int | None = None) -> dict[str, Any]:
    return {"op": op, "name": f"node of {op}", "place": place, "type": kind, "macs": macs, "seconds": None}


def test_what_is_demanded_decides() -> None:
    on_npu, left = ran("ethos-u", "libx.so"), ran("SOFTMAX", "CPU", "float32")
    edges = [ran("QUANTIZE", "CPU", "float32"), ran("DEQUANTIZE", "CPU")]
    npu = artifact(delegate="/usr/lib/libx.so")
    assert placement.refusal([on_npu, *edges], npu, Demand()) is None
    assert "1 of 4 operators do not run on libx.so: SOFTMAX" in str(
        placement.refusal([on_npu, *edges, left], npu, Demand())
    )
    assert placement.refusal([on_npu, *edges, left], npu, Demand(allowed=("SOFTMAX",))) is None
    assert placement.refusal([left], artifact(), Demand()) is None  # nothing was asked for: it is reported
    half = [ran("CONV_2D", "XNNPACK", "int8", 50), ran("CONV_2D", "XNNPACK", "int8 x float32", 50)]
    assert placement.refusal(half, artifact(), Demand(0.5)) is None
    assert "CONV_2D 'node of CONV_2D' (int8 x float32)" in str(placement.refusal(half, artifact(), Demand(0.51)))
    assert "cannot be shown" in str(placement.refusal([left], artifact(), Demand(0.5)))


def test_an_accelerator_must_show_that_it_computes_in_int8() -> None:
    """An Ethos-U has no float; all others may have, and a vendor's delegate does not tell what its nodes compute in."""
    ethosu = artifact(delegate="/usr/lib/libethosu_delegate.so")
    assert (
        placement.refusal([ran("ethos-u", "libethosu_delegate.so"), ran("QUANTIZE", "CPU")], ethosu, Demand(1)) is None
    )
    left = [ran("ethos-u", "libethosu_delegate.so"), ran("CONV_2D", "CPU", "float32", 10)]
    assert "0.0% of its" in str(placement.refusal(left, ethosu, Demand(0.9, ("CONV_2D",))))
    gpu, cuda = artifact(delegate="/usr/lib/libgpu.so"), artifact("onnxruntime", provider="CUDAExecutionProvider")
    for one, operators in (
        (gpu, [ran("custom", "libgpu.so")]),
        (gpu, [ran("CONV_2D", "libgpu.so", "int8", 100)]),
        (cuda, [ran("Fused", "CUDAExecutionProvider")]),
        (artifact("openvino", device="GPU"), [ran("Subgraph", "GPU")]),
    ):
        assert placement.refusal(operators, one, Demand()) is None
        assert "cannot be shown" in str(placement.refusal(operators, one, Demand(0.5)))
    assert (
        placement.refusal([ran("Convolution", "GPU", "int8", 9)], artifact("openvino", device="GPU"), Demand(1)) is None
    )


@pytest.mark.parametrize(
    "op",
    ["UNIDIRECTIONAL_SEQUENCE_LSTM", "GRU", "RNN", "SVDF", "MultiHeadAttention", "Einsum", "Deconvolution", "MatMul"],
)
def test_what_multiplies_uncounted_leaves_the_share_unknown(op: str) -> None:
    counted = [ran("CONV_2D", "CPU", "int8", 100), ran("Convert", "CPU", "float32"), ran("CONCATENATION", "CPU")]
    assert placement.refusal(counted, artifact(), Demand(1.0)) is None
    refused = placement.refusal([*counted, ran(op, "CPU", "float32")], artifact(), Demand(0.5))
    assert f"of 1 operators cannot be counted, so a share of int8 cannot be shown: {op} 'node of" in str(refused)


def test_a_recurrent_model_does_not_pass_as_int8(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    refused = bench(tmp_path, models.recurrent_onnx(tmp_path / "net.onnx"), "--require-int8", 0.5)
    assert refused.returncode == 6, refused.stderr
    assert "cannot be shown: LSTM 'memory' (float32)" in refused.stderr


@pytest.mark.parametrize(("runtime", "suffix"), [("onnxruntime", "onnx"), ("openvino", "xml"), ("tflite", "tflite")])
def test_transposed_convolutions_are_counted(runtime: str, suffix: str, tmp_path: Path) -> None:
    for name in ("torch", runtime if runtime != "tflite" else "litert_torch", "onnx"):
        pytest.importorskip(name)
    made_of = session(runtime, models.transposed(runtime, tmp_path / f"net.{suffix}"))
    assert made_of.executed()["macs"] == {"f32" if runtime == "openvino" else "float32": 3 * 8 * 8 * 5 * 4 * 4}


def test_a_measurement_tells_when_the_operators_must_be_asked() -> None:
    npu = artifact(delegate="/usr/lib/libx.so")
    for operators in (
        [ran("ethos-u", "libx.so"), ran("QUANTIZE", "CPU")],
        [ran("ethos-u", "libx.so"), ran("SOFTMAX", "CPU")],
        [ran("CONV_2D", "XNNPACK", "int8", 90), ran("CONV_2D", "CPU", "float32", 10), ran("SVDF", "CPU")],
    ):
        executed = {**runtimes.summary(operators), "threads": 1}
        for one in (npu, artifact()):
            for demand in (Demand(), Demand(0.8), Demand(0.95), Demand(None, ("SOFTMAX", "CONV_2D"))):
                refused = placement.refusal(operators, one, demand) is not None
                asked = placement.may_be_refused(executed, one, demand)
                assert asked or not refused
                assert asked == refused or demand.int8_share is not None


def test_an_option_that_is_no_pair_is_refused(tmp_path: Path) -> None:
    done = bench(tmp_path, tflite(tmp_path, "fp32"), "--option", "delegate")
    assert done.returncode == 2
    assert "'delegate' is not KEY=VALUE" in done.stderr
    done = bench(tmp_path, tflite(tmp_path, "fp32"), "--option", "delegate=relative.so")
    assert done.returncode == 4
    assert "delegate = 'relative.so': an absolute path" in done.stderr
