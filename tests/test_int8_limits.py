"""What eight bits cannot hold: masks of -infinity, biases beside tiny weights, dead layers; and how a library's death
is told. With the real converters, quantizers and runtimes."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import dying
import numpy as np
import pytest

from edgeopt import parity
from edgeopt.errors import LoweringFault
from edgeopt.lower import Lowered, abilities, child, ranges
from edgeopt.lower import tflite as to_tflite

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from torch import nn

torch.set_num_threads(1)
NEGATIVE = float("-inf")
LEAST = float(np.finfo(np.float32).min)


class Attention(nn.Module):
    """(n, 6, 16) -> (n, 6, 16), each place sees those before it; `how` the others are hidden."""

    def __init__(self, how: str, value: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.value = how, value
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        with torch.no_grad():
            self.q.weight.mul_(4)
            self.k.weight.mul_(4)
            self.v.weight.mul_(3)
        hidden = torch.ones(6, 6).triu(1).bool()
        self.register_buffer("hidden", hidden)
        self.register_buffer("mask", torch.zeros(6, 6).masked_fill(hidden, value))

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4
        if self.how == "add":
            scores = scores + self.mask
        elif self.how == "fill":
            scores = scores.masked_fill(self.hidden, self.value)
        elif self.how == "given":
            scores = scores + ((1 - seen) * self.value)[:, None, :]
        else:
            scores = torch.where(self.hidden, torch.tensor(self.value), scores)
        if self.how == "least":
            return torch.where(self.hidden, torch.tensor(-self.value), scores).min(-1).values
        return self.o(torch.softmax(scores, -1) @ self.v(x))


def words(n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """(samples of Attention, which places of them are seen)."""
    seen = np.ones((n, 6), np.float32)
    seen[::3, 4:] = 0
    seen[1::3, 3:] = 0
    return np.random.default_rng(0).normal(size=(n, 6, 16)).astype(np.float32), seen


def silent(_what: str, _done: int = 0, _total: int = 0) -> None:
    pass


def lowered(runtime: str, source: Any, samples: tuple[np.ndarray, ...], folder: Path, scheme: str = "int8") -> Lowered:
    missing = [name for name in abilities()[runtime].modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    lowering = importlib.import_module(f"edgeopt.lower.{runtime}")
    made: Lowered = lowering.lower(source, scheme, samples, samples, folder, silent)
    return made


def signal_to_noise(made: Lowered) -> float:
    found = made.notes["parity"][-1]["sqnr_db"]
    return 200.0 if found is None else float(found)


@pytest.mark.parametrize(
    ("runtime", "how", "value", "told"),
    [
        ("tflite", "add", NEGATIVE, "3.4e+38"),
        ("tflite", "fill", -1e9, "1e+09 beside values up to"),
        ("tflite", "given", -1e4, "1e+04 beside values up to"),
        ("tflite", "least", -1e30, "1e+30"),
        ("onnxruntime", "add", NEGATIVE, "-infinity"),
        ("onnxruntime", "where", LEAST, "3.4e+38"),
        ("onnxruntime", "given", -1e4, "1e+04 beside values up to"),
        ("openvino", "add", NEGATIVE, None),
        ("openvino", "where", -1e4, None),
    ],
)
def test_scores_keep_their_range_beside_a_mask(
    runtime: str, how: str, value: float, told: str | None, tmp_path: Path
) -> None:
    samples = words() if how == "given" else words()[:1]
    made = lowered(runtime, Attention(how, value).eval(), samples, tmp_path)
    assert signal_to_noise(made) > 25
    assert [path.name for path in tmp_path.iterdir() if path not in made.paths] == []
    if told is None:  # nncf leaves such operators in float by itself
        return
    kept = {own["operator"].lower(): own for own in made.notes["out_of_range"]}
    assert any(told in own["reason"] for own in kept.values()), kept
    assert ("reduce_min" if how == "least" else "softmax") in kept
    assert all(own["name"] for own in kept.values())
    assert not {"matmul", "gemm", "fully_connected", "batch_matmul"} & set(kept)


def test_ordinary_values_are_none_that_int8_cannot_hold() -> None:
    rng = np.random.default_rng(0)
    for values in (
        np.maximum(rng.normal(size=1000) * 5000, 0),  # large, and every size below
        np.exp(rng.normal(size=1000) * 20 - 90),  # small: a softmax
        np.zeros(4),
        np.array([0.0, -1e9]),  # a mask alone
        np.arange(256.0),
    ):
        assert ranges.unfit(values.astype(np.float32)) is None
    assert ranges.unfit(np.array([7, 10**9])) is None
    assert "NaN" in str(ranges.unfit(np.array([0, np.nan], np.float32)))
    assert "1e+09 beside values up to 3" in str(ranges.unfit(np.array([3.0, -1e9, 0], np.float32)))


def test_a_library_that_dies_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TFLite aborts where the range of a tensor is not finite."""
    from edgeopt.lower import tflite_int8

    samples = words()[:1]
    plain = to_tflite._convert(Attention("add", NEGATIVE).eval(), samples, [])
    monkeypatch.setattr(ranges, "out_of_range", lambda *_: [])
    artifact = tmp_path / "m.tflite"
    artifact.write_bytes(tflite_int8.quantize(plain, samples, [], silent)[0])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("PYTHONPATH", str(Path(dying.__file__).parent))
    with pytest.raises(
        LoweringFault, match=r"^trying it: .*SIGABRT.* while loading; its last words: its last words go"
    ):
        child.run("trying it", dying.load, artifact, progress=silent)
    told: list[Any] = []
    with pytest.raises(ValueError, match="number 1"):
        child.run("failing", dying.fail, 1, progress=lambda *what: told.append(what))
    assert told == [("failing", 1, 2)]
    assert list(scratch.iterdir()) == []


class Sparse(nn.Module):
    """Half its channels have next to no weights and an ordinary bias, as sparsity training leaves them."""

    def __init__(self, kind: str, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {
            "convolution": lambda: nn.Conv2d(4, 8, 3),
            "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
            "one channel": lambda: nn.Conv2d(4, 1, 3),
            "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Unflatten(1, (8, 1, 1))),
        }
        self.first = layers[kind]()
        layer = self.first[1] if isinstance(self.first, nn.Sequential) else self.first
        with torch.no_grad():
            layer.weight[::2] *= size
            layer.bias[::2] = torch.linspace(1, 4, len(layer.bias[::2]))
        self.last = nn.Conv2d(len(layer.bias), 6, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(image))).mean((2, 3))


def images(n: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 4, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("runtime", "kind", "size"),
    [
        ("tflite", "convolution", 1e-9),
        ("tflite", "convolution", 0.0),
        ("tflite", "depthwise", 1e-7),
        ("tflite", "one channel", 1e-8),
        ("tflite", "dense", 0.0),
        ("onnxruntime", "dense", 1e-9),
        ("onnxruntime", "depthwise", 0.0),
        ("openvino", "dense", 0.0),
    ],
)
def test_a_bias_beside_tiny_weights_is_kept(runtime: str, kind: str, size: float, tmp_path: Path) -> None:
    made = lowered(runtime, Sparse(kind, size).eval(), (images(),), tmp_path)
    assert signal_to_noise(made) > 30
    if runtime == "tflite":
        assert any("ordinary bias" in why for why in made.notes["widened"].values())


class Dead(nn.Module):
    """A branch that is zero for every sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dead, self.alive, self.head = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3), nn.Linear(8, 4)
        with torch.no_grad():
            self.dead.bias.fill_(-100)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head((torch.relu(self.dead(image)) + self.alive(image)).mean((2, 3)))


@pytest.mark.parametrize("runtime", ["tflite", "onnxruntime"])
def test_a_dead_layer_is_no_obstacle(runtime: str, tmp_path: Path) -> None:
    made = lowered(runtime, Dead().eval(), (images(),), tmp_path)
    assert signal_to_noise(made) > 30
    if runtime == "tflite":
        assert any("dead" in why for why in made.notes["widened"].values())


def onnx_file(path: Path, nodes: list[Any], output: list[Any], opset: int, constants: dict[str, np.ndarray]) -> Path:
    """A model of one input x (1, 3, 7, 7)."""
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 7, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), str(path))
    return path


def resizing(path: Path, opset: int, kind: str, mode: str, scales: tuple[float, float]) -> Path:
    from onnx import helper

    sizes = [int(7 * scale) for scale in scales]
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node(kind, ["c", "s"], ["y"], "up", mode=mode),
    ]
    return onnx_file(path, nodes, [1, 4, *sizes], opset, {"w": weights, "s": np.array([1, 1, *scales], np.float32)})


def squares(n: int = 12) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3, 7, 7)).astype(np.float32)


needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs edgeopt[onnx]")


@needs_onnx
@pytest.mark.parametrize(
    ("opset", "kind", "mode", "scale"),
    [
        (10, "Resize", "linear", 2.0),
        (9, "Upsample", "linear", 1.5),
        (10, "Resize", "nearest", 2.6),
        (10, "Resize", "nearest", 0.6),
    ],
)
def test_resizing_means_the_same_in_a_newer_opset(
    opset: int, kind: str, mode: str, scale: float, tmp_path: Path
) -> None:
    source = resizing(tmp_path / "m.onnx", opset, kind, mode, (scale, scale))
    (tmp_path / "made").mkdir()
    made = lowered("onnxruntime", source, (squares(),), tmp_path / "made")
    stages = {stage["stage"]: stage for stage in made.notes["parity"]}
    assert list(stages) == ["conversion to ONNX", "upgrade to opset 13", "pre-processing", "int8 quantization"]
    assert stages["upgrade to opset 13"]["max_abs_error"] < 1e-4
    assert signal_to_noise(made) > 25


@needs_onnx
def test_an_upgrade_that_changes_the_answers_is_refused(tmp_path: Path) -> None:
    """Made taller and narrower at once, no rounding of opset 11 and later is the old one's."""
    source = resizing(tmp_path / "m.onnx", 10, "Resize", "nearest", (2.6, 0.6))
    with pytest.raises(LoweringFault, match="after the stage 'upgrade to opset 13'"):
        lowered("onnxruntime", source, (squares(),), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@needs_onnx
@pytest.mark.parametrize("bias", [np.float32(0.3), np.full(1, 0.7, np.float32), np.full((1, 4), 0.5, np.float32)])
def test_a_gemm_keeps_its_bias_and_beta(bias: np.ndarray, tmp_path: Path) -> None:
    from onnx import helper

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1, alpha=0.5, beta=4.0),
    ]
    constants = {"w": rng.normal(size=(4, 147)).astype(np.float32) * 0.1, "b": np.asarray(bias)}
    source = onnx_file(tmp_path / "m.onnx", nodes, [1, 4], 17, constants)
    (tmp_path / "made").mkdir()
    assert signal_to_noise(lowered("onnxruntime", source, (squares(),), tmp_path / "made")) > 30


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tflite"])
def test_a_transposed_convolution_in_groups_becomes_int8(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=4))
    assert signal_to_noise(lowered(runtime, net.eval(), (images(),), tmp_path)) > 25


def test_the_reference_is_finite_though_the_mask_is_not() -> None:
    """What these tests rest on."""
    for array in parity.source_outputs(Attention("add", NEGATIVE).eval(), words()[:1]):
        assert np.isfinite(array).all()
