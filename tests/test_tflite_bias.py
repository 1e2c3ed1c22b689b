"""Bias correction of int8 TFLite artifacts, with the real converter, quantizer and runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgeopt.lower import child, tflite_bias
from edgeopt.lower import tflite as lowering

if any(importlib.util.find_spec(name) is None for name in ("torch", "litert_torch", "ai_edge_quantizer")):
    pytest.skip("needs edgeopt[torch,tflite]", allow_module_level=True)

import torch
from torch import nn

torch.set_num_threads(1)

LAYERS = {
    "convolution": lambda: nn.Conv2d(8, 12, 3),
    "depthwise": lambda: nn.Conv2d(8, 16, 3, groups=8),
    "groups": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "pointwise": lambda: nn.Conv2d(8, 12, 1),
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 6, 12), nn.Unflatten(1, (12, 1, 1))),
}


def silent(_what: str, _done: int = 0, _total: int = 0) -> None:
    pass


def samples(n: int = 40) -> np.ndarray:
    """(n, 8, 6, 6), each channel with a mean of its own, far from zero."""
    random = np.random.default_rng(0)
    return (random.normal(size=(n, 8, 6, 6)) * 0.3 + np.linspace(1, 4, 8)[:, None, None]).astype(np.float32)


def coarse(kind: str) -> nn.Module:
    """A layer with one large weight per output channel, so that the others are rounded coarsely."""
    torch.manual_seed(0)
    net = nn.Sequential(LAYERS[kind]()).eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                layer.weight.flatten(1)[:, 0] = 20.0
    return net


def shifts(net: nn.Module, folder: Path) -> np.ndarray:
    """How far the mean of each output channel is from the source's."""
    folder.mkdir()
    data = samples()
    made = lowering.lower(net, "int8", (data,), (data,), folder, silent)
    with torch.no_grad():
        true = net(torch.from_numpy(data)).numpy()
    found = lowering._artifact_outputs(made.paths[0], (data,), made.adapters, "int8")[0]
    if found.shape != true.shape:
        found = found.transpose(0, 3, 1, 2)
    return np.asarray((found - true).mean(axis=(0, 2, 3)))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_mean_of_every_channel_comes_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = coarse(kind)
    corrected = shifts(net, tmp_path / "corrected")
    monkeypatch.setattr(child, "run", lambda _what, make, *given, progress: make(*given, progress))
    monkeypatch.setattr(tflite_bias, "correct", lambda _plain, rounded, _samples, _tell: (rounded, 0, {}))
    plain = shifts(net, tmp_path / "plain")
    assert np.abs(corrected).mean() < 0.35 * np.abs(plain).mean(), (corrected, plain)


def test_what_was_corrected_is_noted(tmp_path: Path) -> None:
    data, told = samples(), []
    made = lowering.lower(coarse("groups"), "int8", (data,), (data,), tmp_path, lambda what, *_: told.append(what))
    assert made.notes["bias_corrections"] == 1
    assert "correcting biases" in told


def test_a_model_without_such_layers_stays_as_it_is(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(image, 2) * 0.5

    data = samples()
    made = lowering.lower(Sum().eval(), "int8", (data,), (data,), tmp_path, silent)
    assert made.notes["bias_corrections"] == 0
