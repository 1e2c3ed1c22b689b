"""Lowering to TFLite with the real converter, quantizer and runtime, on models small enough to convert in a second."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import parity
from edgeopt.errors import MissingDependency, ModelError, PlanError
from edgeopt.lower import Lowered, quiet
from edgeopt.lower import tflite as lowering

if any(importlib.util.find_spec(name) is None for name in ("torch", "litert_torch", "ai_edge_quantizer")):
    pytest.skip("needs edgeopt[torch,tflite]", allow_module_level=True)

import torch
from edgeopt_agent.preprocess import apply
from torch import nn

torch.set_num_threads(1)


class Small(nn.Module):
    """(n, 3, 8, 12) -> (n, 4)"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(self.features(image).relu(), 1), 1))


class Applied(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def silent(_what: str, _done: int = 0, _total: int = 0) -> None:
    pass


def images(n: int = 64) -> np.ndarray:
    """Most samples are small; one reaches far, which a moving average would clip."""
    data = np.random.default_rng(1).normal(size=(n, 3, 8, 12)).astype(np.float32)
    data[n // 2] *= 8
    return data


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lowered")


@pytest.fixture(scope="module")
def fp32(folder: Path) -> Lowered:
    return lowering.lower(Small(), "fp32", (images(),), (), made(folder / "fp32"), silent)


@pytest.fixture(scope="module")
def int8(folder: Path) -> Lowered:
    return lowering.lower(Small(), "int8", (images(),), (images(),), made(folder / "int8"), silent)


def run(lowered: Lowered, sample: np.ndarray) -> np.ndarray:
    """What the board does: adapters, set, invoke, get. sample: (1, ...) in the source's layout."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        interpreter = Interpreter(model_path=str(lowered.paths[0]), num_threads=1)
        interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], apply(lowered.adapters[0], sample))
    interpreter.invoke()
    result: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return result


def activations(path: Path) -> dict[str, tuple[float, int]]:
    """operator -> (scale, zero point) of the int8 tensor that it writes, the first of each kind."""
    found: dict[str, tuple[float, int]] = {}
    for name, _, outs in lowering._operators(path):
        if outs[0].quantization is not None and outs[0].quantization.scale is not None:
            scale, zero = outs[0].quantization.scale[0], outs[0].quantization.zeroPoint[0]
            found.setdefault(name, (float(scale), int(zero)))
    return found


def test_fp32_agrees_with_the_source(fp32: Lowered) -> None:
    assert [stage["stage"] for stage in fp32.notes["parity"]] == ["conversion to TFLite"]
    assert fp32.notes["parity"][0]["max_abs_error"] < 1e-4
    assert fp32.outputs[0].shape == (1, 4)
    assert fp32.outputs[0].dtype == "float32"
    assert fp32.notes["int8_mac_share"] == 0.0


def test_image_inputs_become_channel_last_without_a_transpose_inside(fp32: Lowered, int8: Lowered) -> None:
    for lowered in (fp32, int8):
        assert lowered.inputs[0].shape == (1, 8, 12, 3)
        assert lowered.adapters == (({"op": "transpose", "axes": [0, 2, 3, 1]},),)
        assert "TRANSPOSE" not in lowering.executed_ops(lowered.paths[0])
    with torch.no_grad():
        expected = Small().eval()(torch.from_numpy(images()[5:6])).numpy()
    np.testing.assert_allclose(run(fp32, images()[5:6]), expected, atol=1e-5)


def test_int8_holds_the_true_ranges(int8: Lowered) -> None:
    data = images()
    with torch.no_grad():
        hidden = Small().eval().features[:2](torch.from_numpy(data)).numpy()
    found = activations(int8.paths[0])
    scale, zero = found["QUANTIZE"]
    assert scale == pytest.approx((data.max() - data.min()) / 255, rel=1e-5)
    assert zero == round(-128 - data.min() / scale)
    scale, zero = found["CONV_2D"]
    assert scale == pytest.approx(hidden.max() / 255, rel=1e-4)
    assert zero == -128


def test_int8_agrees_with_fp32_and_computes_in_int8(fp32: Lowered, int8: Lowered) -> None:
    rows = [(run(fp32, row[None])[0], run(int8, row[None])[0]) for row in images()[:32]]
    exact, approximate = (np.stack(column) for column in zip(*rows, strict=True))
    assert 10 * np.log10((exact**2).sum() / ((exact - approximate) ** 2).sum()) > 20
    assert int8.notes["int8_mac_share"] == 1.0
    assert int8.notes["float_ops"] == []
    assert int8.inputs[0].dtype == "float32"
    assert int8.paths[0].stat().st_size < fp32.paths[0].stat().st_size
    first, second = int8.notes["parity"]
    assert (first["stage"], second["stage"]) == ("conversion to TFLite", "int8 quantization")
    assert first["max_abs_error"] < second["max_abs_error"]


def test_fp16_halves_the_weights_and_computes_in_float(fp32: Lowered, folder: Path) -> None:
    fp16 = lowering.lower(Small(), "fp16", (images(),), (), made(folder / "fp16"), silent)
    assert fp16.paths[0].stat().st_size < 0.75 * fp32.paths[0].stat().st_size
    assert fp16.notes["parity"][1]["stage"] == "float16 weights"
    assert fp16.notes["parity"][1]["max_abs_error"] > fp16.notes["parity"][0]["max_abs_error"]
    assert fp16.notes["ops"]["DEQUANTIZE"] > 0
    np.testing.assert_allclose(run(fp16, images()[:1]), run(fp32, images()[:1]), rtol=0.03, atol=0.01)


def test_same_input_gives_the_same_bytes(int8: Lowered, tmp_path: Path) -> None:
    again = lowering.lower(Small(), "int8", (images(),), (images(),), tmp_path, silent)
    assert again.paths[0].read_bytes() == int8.paths[0].read_bytes()


def test_64_bit_inputs_are_cast_and_order_is_kept(tmp_path: Path) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 6)

        def forward(self, gain: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.table(tokens).sum(1) * gain, gain + 1

    gain, tokens = np.ones((3, 1), np.float32), np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 1, 2]], np.int64)
    lowered = lowering.lower(Lookup().eval(), "fp32", (gain, tokens), (), tmp_path, silent)
    assert [spec.dtype for spec in lowered.inputs] == ["float32", "int32"]
    assert lowered.adapters == ((), ({"op": "cast", "dtype": "int32"},))
    assert [spec.shape for spec in lowered.outputs] == [(1, 6), (1, 1)]


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: torch.linalg.svdvals(x), ["operator 'aten._linalg_svd.default'", "node '_linalg_svd'", 'py", line']),
        (lambda x: x if x.sum() > 0 else -x, ['test_lower_tflite.py", line']),
    ],
)
def test_what_cannot_be_converted_is_named(function: Any, named: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        lowering.lower(Applied(function).eval(), "fp32", (np.ones((1, 4, 4), np.float32),), (), tmp_path, silent)
    for words in named:
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_name_the_node(tmp_path: Path) -> None:
    model = Small().eval()
    with torch.no_grad():
        model.features[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or infinite for sample 0 \(first in node 'features\.2', Conv2d\)"):
        lowering.lower(model, "fp32", (images(),), (), tmp_path, silent)


def test_bad_calibration_is_refused_before_any_work(tmp_path: Path) -> None:
    for empty in ((), (images()[:0],)):
        with pytest.raises(PlanError, match="calibration samples and there are none"):
            lowering.lower(Small(), "int8", (images(),), empty, tmp_path, silent)
    broken = images()
    broken[7, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match=r"input 0 holds NaN or infinity in 1 of 64 samples \(first: sample 7\)"):
        lowering.lower(Small(), "int8", (images(),), (broken,), tmp_path, silent)
    with pytest.raises(PlanError, match="no scheme 'int4'; allowed: fp32, fp16, int8"):
        lowering.lower(Small(), "int4", (images(),), (), tmp_path, silent)


def test_the_stage_at_fault_is_named(fp32: Lowered) -> None:
    reference = [np.ones((2, 4), np.float32)]
    with pytest.raises(ModelError, match=r"output 0 is off by 0\.01 after the stage 'conversion to TFLite'"):
        parity.compare([reference[0] + 0.01], reference, "conversion to TFLite", 1e-3)
    with pytest.raises(ModelError, match=r"output 0 is NaN or infinite after the stage 'int8 quantization'"):
        parity.compare([reference[0] * np.nan], reference, "int8 quantization", None)
    with pytest.raises(ModelError, match=r"still computes in float: CONV_2D"):
        lowering._contents(fp32.paths[0], "int8")


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def say(what: str, _done: int = 0, _total: int = 0) -> None:
        lines.append(what)

    lowering.lower(Small(), "int8", (images(8),), (images(8),), tmp_path, say)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert lines[0] == "converting to TFLite"
    assert "quantizing to int8" in lines


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(MissingDependency, match=r"pip install 'edgeopt\[torch,tflite\]'"):
        lowering.lower(Small(), "fp32", (images(),), (), tmp_path, silent)


def test_quiet_holds_back_its_own_thread_only(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet() as kept:
        print("mine")
        other = threading.Thread(target=lambda: print("theirs", file=sys.stderr, flush=True))
        other.start()
        other.join()
        handler = logging.StreamHandler()
        kept.seek(0)
        assert kept.read() == b"mine\n"
    handler.emit(logging.LogRecord("late", logging.INFO, "", 0, "late", None, None))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.split() == ["theirs", "late"]
