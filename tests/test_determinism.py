"""A source must have one answer to a sample, twice and whatever else is in its batch; what is at fault is named."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_cli

from edgeopt import determinism, model
from edgeopt.errors import ModelError

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from torch import nn
from torch.nn import functional

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """(n, 3, 8, 8) -> (n, 4), by `function`."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)
        self.norm, self.dropout = nn.BatchNorm2d(16), nn.Dropout()
        self.unregistered = [nn.Dropout()]
        self.calls = 0

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x).relu().mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def counting(net: Any, x: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    return net.head(net.features(x)) * net.calls


def images(n: int = 6) -> tuple[np.ndarray]:
    return (np.random.default_rng(0).normal(size=(n, 3, 8, 8)).astype("f4"),)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.head(net.dropout(net.features(x))),
        lambda net, x: net.head(net.norm(net.stem(x)).mean((2, 3))),
        lambda net, x: net.head(functional.instance_norm(net.stem(x)).relu().mean((2, 3))),
        lambda net, x: (net.head(net.features(x)) > 0).long(),
        lambda _net, x: x.view(1, -1) @ torch.ones(192, 4),  # takes one sample only
    ],
)
def test_one_answer_is_fine(function: Forward) -> None:
    determinism.check(Net(function).eval(), images())


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda net, x: net.head(functional.dropout(net.features(x))), "bernoulli_"),
        (lambda net, x: net.head(net.unregistered[0](net.features(x))), "bernoulli_"),
        (lambda net, x: net.head(net.features(x)) + 1e-3 * torch.rand(4), "rand"),
        (lambda net, x: net.head(net.features(x + torch.randn_like(x))), "randn_like"),
        (lambda net, x: net.head(net.features(x) * float(np.random.rand())), "mul"),
        (counting, "mul"),
    ],
)
def test_another_answer_each_time(function: Forward, operator: str) -> None:
    line = function.__code__.co_firstlineno + (2 if function is counting else 0)
    with pytest.raises(
        ModelError, match=rf"another answer each time.*'{operator}' \(test_determinism.py, line {line}\)"
    ):
        determinism.check(Net(function).eval(), images())


@pytest.mark.parametrize(
    ("function", "where"),
    [
        (lambda net, x: net.head(net.norm.train()(net.stem(x)).mean((2, 3))), "of layer norm (BatchNorm2d)"),
        (lambda net, x: net.head(functional.batch_norm(net.features(x), None, None, training=True)), "not one alone"),
        (lambda net, x: net.head(net.features(x) - net.features(x).mean(0)), "operator 'mean'"),
        (lambda net, x: net.head(net.features(x) / net.features(x).max()), "operator 'max'"),
        (lambda net, x: net.head(net.features(x)).softmax(0), "operator '_softmax'"),
        (lambda net, x: net.head(net.features(x)).sort(dim=0).values, "operator 'sort'"),
    ],
)
def test_an_answer_that_depends_on_the_batch(function: Forward, where: str) -> None:
    with pytest.raises(ModelError) as caught:
        determinism.check(Net(function).eval(), images())
    assert where in str(caught.value)
    assert f"test_determinism.py, line {function.__code__.co_firstlineno}" in str(caught.value)
    assert ("as in training" in str(caught.value)) == ("norm" in where or "alone" in where)


def written(path: Path, middle: list[Any], constants: dict[str, np.ndarray], batch: Any = "n") -> Path:
    """Conv x -> c, `middle` from c to d, then global pooling."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "stem"),
        *middle,
        helper.make_node("GlobalAveragePool", ["d"], ["y"], "pool"),
    ]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8, 1, 1]),
    ]
    every = {"w": rng.normal(size=(8, 3, 3, 3)).astype("f4"), **constants}
    tensors = [numpy_helper.from_array(array, name) for name, array in every.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)
    return path


def onnx_cases() -> dict[str, tuple[list[Any], dict[str, np.ndarray], str]]:
    from onnx import helper

    node = helper.make_node
    ones = {name: np.ones(8, "f4") for name in ("s", "b", "m", "v")}
    norm = node("BatchNormalization", ["c", "s", "b", "m", "v"], ["d", "rm", "rv"], "norm_it", training_mode=1)
    return {
        "dropout": (
            [node("Dropout", ["c", "half", "on"], ["d"], "drop_it")],
            {"half": np.array(0.5, "f4"), "on": np.array(True)},
            "as in training at node 'drop_it' (Dropout)",
        ),
        "norm": ([norm], ones, "as in training at node 'norm_it' (BatchNormalization)"),
        "random": (
            [node("RandomNormalLike", ["c"], ["r"], "noise"), node("Add", ["c", "r"], ["d"], "add")],
            {},
            "another answer each time that it is run: the answers part at node 'noise' (RandomNormalLike)",
        ),
        "mean": (
            [node("ReduceMean", ["c"], ["r"], "over_batch", axes=[0]), node("Sub", ["c", "r"], ["d"], "sub")],
            {},
            "what else is in its batch: the answers part at node 'over_batch' (ReduceMean)",
        ),
    }


@pytest.mark.parametrize("case", ["dropout", "norm", "random", "mean"])
def test_onnx_files_are_checked_too(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    middle, constants, words = onnx_cases()[case]
    path = written(tmp_path / "net.onnx", middle, constants)
    with pytest.raises(ModelError) as caught:
        determinism.check(path, images())
    assert words in str(caught.value)
    one = written(tmp_path / "one.onnx", middle, constants, batch=1)
    if case == "mean":  # of a batch of one, which is all that it takes
        determinism.check(one, images())
    else:
        with pytest.raises(ModelError):
            determinism.check(one, images())


def test_a_tool_refuses_before_it_converts(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    middle, constants, words = onnx_cases()["mean"]
    written(tmp_path / "net.onnx", middle, constants)
    np.savez(tmp_path / "x.npz", x=images()[0])
    out = ["--inputs", "x.npz", "--to", "onnxruntime", "--out", "o.onnx"]
    done = run_cli("convert", "net.onnx", *out, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_a_reference_of_one_sample_at_a_time() -> None:
    (outputs,) = model.run_torch(Net(lambda _net, x: x.view(1, -1) @ torch.ones(192, 4)), images(70))
    np.testing.assert_allclose(outputs, np.repeat(images(70)[0].sum((1, 2, 3))[:, None], 4, 1), rtol=1e-3, atol=1e-3)
