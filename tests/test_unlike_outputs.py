"""int8 of heads whose channels differ in size by orders, and of what int8 breaks, with the real quantizers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgeopt import fidelity, lower, parity
from edgeopt.errors import ModelError

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from torch import nn

torch.set_num_threads(1)
RUNTIMES = ("onnxruntime", "openvino", "tflite")
IMAGES = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
ROWS = np.random.default_rng(0).normal(size=(24, 8, 16)).astype(np.float32)


class Joined(nn.Module):
    """Boxes to 640 and scores in 0…1, as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.box, self.score = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        box, score = torch.sigmoid(self.box(features)) * 640, torch.sigmoid(self.score(features))
        return torch.cat([box.flatten(2), score.flatten(2)], 1)


class OneLayer(Joined):
    """Both of one convolution, at two scales that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 7, 1)
        with torch.no_grad():
            self.head.weight[:4] *= 500

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        scales = (features, nn.functional.max_pool2d(features, 2))
        return torch.cat([self.head(own).flatten(2) for own in scales], 2).transpose(1, 2)


class Divides(nn.Module):
    """A sum that int8 rounds to zero divides: 0 / 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = self.layer(x) * 1e-3
        above = torch.relu(small - small.amax(-1, keepdim=True) * 0.999)
        return above / above.sum(-1, keepdim=True)


def silent(_what: str, _done: int = 0, _total: int = 0) -> None:
    pass


def require(runtime: str) -> None:
    missing = [name for name in lower.abilities()[runtime].modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.mark.parametrize("head", [Joined, OneLayer])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scores_beside_boxes_survive_int8(runtime: str, head: type[Joined], tmp_path: Path) -> None:
    require(runtime)
    made = lower.make(runtime, head().eval(), "int8", (IMAGES[:8],), (IMAGES,), tmp_path, silent)
    stage = made.notes["parity"][-1]
    assert len(stage["outputs"][0]["groups"]) == 2
    assert not fidelity.is_large(fidelity.worst(stage["outputs"])), stage
    assert made.notes["in_float"]
    share = made.notes.get("int8_mac_share")
    assert share is None or share > 0.5  # the head alone is in float


@pytest.mark.parametrize(("runtime", "operator"), [("onnxruntime", "Div"), ("openvino", "Divide"), ("tflite", "DIV")])
def test_what_int8_breaks_is_named_and_not_the_models_fault(runtime: str, operator: str, tmp_path: Path) -> None:
    require(runtime)
    with pytest.raises(ModelError) as caught:
        lower.make(runtime, Divides().eval(), "int8", (ROWS[:8],), (ROWS,), tmp_path, silent)
    said = str(caught.value)
    assert f"({operator})" in said
    assert "int8 quantization" in said
    assert "the model is not at fault: try " in said
    assert "fp32 of this one" in said
    assert "another runtime (" in said
    assert "change that part" not in said


@pytest.mark.parametrize("inner", ["b0", "w_quantized", "x_scale", "b_quantized_scale", "v_QuantizeLinear_Output"])
def test_names_that_the_quantizer_gives_may_be_taken(inner: str, tmp_path: Path) -> None:
    require("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    shapes = {"w": (8, 8, 3, 3), "v": (8, 8, 3, 3), "b": (8,)}
    constants = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) * 0.2, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], [inner], "first", pads=[1] * 4),
        helper.make_node("Relu", [inner], ["r"], "rectify"),
        helper.make_node("Conv", ["r", "v", "b"], ["c"], "second", pads=[1] * 4),
        helper.make_node("Add", ["c", inner], ["y"], "add"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 8, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx"))
    x = rng.normal(size=(16, 8, 8, 8)).astype(np.float32)
    (folder := tmp_path / "made").mkdir()
    made = lower.make("onnxruntime", tmp_path / "m.onnx", "int8", (x[:8],), (x,), folder, silent)
    assert not parity.is_large(made.notes["parity"][-1])


def test_a_source_that_is_nan_itself_is_named() -> None:
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper, save

    def file(folder: Path) -> Path:
        nodes = [
            helper.make_node("Add", ["x", "mask"], ["masked"], name="mask"),
            helper.make_node("Sub", ["masked", "masked"], ["y"], name="less"),
        ]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
        mask = numpy_helper.from_array(np.array([0, 0, 0, -np.inf], np.float32), "mask")
        graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [mask])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save(model, str(folder / "m.onnx"))
        return folder / "m.onnx"

    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.raises(ModelError) as caught:
        parity.source_outputs(file(Path(folder)), (np.ones((2, 4), np.float32),))
    said = str(caught.value)
    assert "infinity first arises in node 'mask' (Add, whose constant 'mask' holds NaN or infinity)" in said
    assert "NaN first arises in node 'less' (Sub)" in said
    assert "source model" in said


def test_a_runtime_that_answers_otherwise_with_other_threads_is_told() -> None:
    good = np.linspace(1, 2, 80).reshape(8, 10)
    one, default = (parity.compare([found], [good], "int8 quantization", None) for found in (0 * good, 1.01 * good))
    told = dict(one, threads=parity.other_threads(one, default))
    said = str(parity.refusal([told]))
    assert "one thread: signal to noise 0.0 dB" in said
    assert "default of threads: signal to noise 40.0 dB" in said
    assert "too" in parity.other_threads(one, one)
