"""Models of which some operators fall back: real ones, made once for the tests of placement and of the NPU."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

# A delegate that takes no operator, for TFLite's plug-in interface (tensorflow/lite/delegates/external).
REFUSING_DELEGATE = """
#include <stdint.h>
#include <stdlib.h>
typedef struct Delegate {
  void *data; int (*prepare)(void *, struct Delegate *); void *from; void *to; void *release; int64_t flags; void *more;
} Delegate;
static int prepare(void *context, Delegate *self) { return 0; }
Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  Delegate *made = calloc(1, sizeof(Delegate));
  made->prepare = prepare;
  return made;
}
void tflite_plugin_destroy_delegate(Delegate *made) { free(made); }
"""
MACS = 32 * 8 * 8 * 9 * 3 + 16 * 8 * 8 * 32  # of the two convolutions of mixed_onnx


@functools.cache
def small_tflite() -> dict[str, bytes]:
    """{"fp32", "int8"}: (1, 8, 12, 3) float32 through two convolutions, MEAN, CUMSUM and FULLY_CONNECTED to (1, 4).

    XNNPACK has no CUMSUM, nor has an Ethos-U; in the int8 one it stays in float between DEQUANTIZE and QUANTIZE.
    """
    for name in ("torch", "litert_torch", "ai_edge_quantizer"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    import torch
    from torch import nn

    from edgeopt.lower import tflite

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            found = self.second(self.first(image).relu()).relu()
            flat = torch.flatten(nn.functional.adaptive_avg_pool2d(found, 1), 1)
            return self.head(torch.cumsum(flat, 1))

    images = np.random.default_rng(1).normal(size=(16, 3, 8, 12)).astype(np.float32)
    made = {}
    for scheme in ("fp32", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            lowered = tflite.lower(Small().eval(), scheme, (images,), (images,), Path(folder), lambda *_: None)
            made[scheme] = lowered.paths[0].read_bytes()
    return made


def mixed_onnx(path: Path, quantized: tuple[bool, bool]) -> Path:
    """(1, 3, 8, 8) float32 through convolutions 'first' (32, 3, 3, 3) and 'second' (16, 32, 1, 1), each with int8
    weights and inputs, or in float."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def quantize(name: str, source: str) -> str:
        scale, zero = constant(f"{name}_s", np.float32(0.05)), constant(f"{name}_z", np.int8(0))
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_q"], name=f"{name}_q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_d"], name=f"{name}_d"))
        return f"{name}_d"

    value = "x"
    for name, shape, is_quantized in (("first", (32, 3, 3, 3), quantized[0]), ("second", (16, 32, 1, 1), quantized[1])):
        if is_quantized:
            value = quantize(f"{name}_in", value)
            stored = constant(f"{name}_w", rng.integers(-100, 100, shape).astype(np.int8))
            scale, zero = constant(f"{name}_ws", np.float32(0.01)), constant(f"{name}_wz", np.int8(0))
            nodes.append(helper.make_node("DequantizeLinear", [stored, scale, zero], [f"{name}_wd"], name=f"{name}_wd"))
            kernel = f"{name}_wd"
        else:
            kernel = constant(f"{name}_w", rng.normal(size=shape).astype(np.float32))
        out = "y" if name == "second" and not is_quantized else f"{name}_y"
        nodes.append(helper.make_node("Conv", [value, kernel], [out], name=name, pads=[shape[2] // 2] * 4))
        value = quantize(f"{name}_out", out) if is_quantized else out
    if value != "y":
        nodes.append(helper.make_node("Identity", [value], ["y"], name="last"))
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8]),
    ]
    graph = helper.make_graph(nodes, "mixed", ports[:1], ports[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def mixed_ir(path: Path, quantized: tuple[bool, bool]) -> Path:
    """The same as an OpenVINO .xml."""
    import openvino

    source = mixed_onnx(path.with_suffix(".onnx"), quantized)
    openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
    return path


def transposed(runtime: str, path: Path) -> Path:
    """(1, 3, 8, 8) float32 through one transposed convolution of 5 filters, 4 x 4, that doubles the sides."""
    import torch

    net = torch.nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1, bias=False).eval()
    if runtime == "tflite":
        import litert_torch

        litert_torch.convert(net, (torch.zeros(1, 3, 8, 8),)).export(str(path))
        return path
    from onnx import TensorProto, helper, numpy_helper, save

    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1] * 4)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, sizes[0], sizes[1], sizes[1]])
        for name, sizes in (("x", (3, 8)), ("y", (5, 16)))
    ]
    weights = [numpy_helper.from_array(net.weight.detach().numpy(), "w")]
    graph = helper.make_graph([node], "transposed", ports[:1], ports[1:], weights)
    onnx = path.with_suffix(".onnx")
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), onnx)
    if runtime == "openvino":
        import openvino

        openvino.save_model(openvino.convert_model(onnx), path, compress_to_fp16=False)
    return path


def recurrent_onnx(path: Path) -> Path:
    """(4, 1, 8) float32 through an LSTM, whose multiply-accumulates no runtime tells."""
    from onnx import TensorProto, helper, numpy_helper, save

    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="memory", hidden_size=3)
    weights = [numpy_helper.from_array(np.ones((1, 12, n), np.float32), name) for name, n in (("w", 8), ("r", 3))]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
        for name, sizes in (("x", [4, 1, 8]), ("y", [4, 1, 1, 3]))
    ]
    graph = helper.make_graph([node], "recurrent", ports[:1], ports[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def refusing_delegate(folder: Path) -> Path:
    """A library for TFLite that takes no operator."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, made = folder / "refusing.c", folder / "librefusing_delegate.so"
    source.write_text(REFUSING_DELEGATE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source], check=True)
    return made
