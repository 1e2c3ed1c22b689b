"""Standard torch modules convert on every runtime; where a converter cannot, its error names the layer or operator."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import ModelError
from edgeopt.lower import abilities

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs edgeopt[torch]", allow_module_level=True)

import torch
from torch import nn

torch.set_num_threads(1)
RUNTIMES = [name for name, ability in abilities().items() if "torch" in ability.sources]


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*self.layers, *inputs)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)


def causal(encoder: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(6), is_causal=True)


def encoder() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)


VECTOR, SEQUENCE, IMAGE = (floats(16),), (floats(6, 16),), (floats(4, 8, 8),)
TOKENS = (np.arange(12).reshape(2, 6),)
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[np.ndarray, ...]]] = {
    "Linear": (lambda: nn.Linear(16, 8), VECTOR),
    "Conv2d in groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, padding_mode="circular", padding=1), IMAGE),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 8, 4, 2, 1, groups=2), IMAGE),
    "BatchNorm2d": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4)), IMAGE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "LayerNorm": (lambda: nn.Sequential(nn.LayerNorm(16), nn.GELU(), nn.RMSNorm(16)), SEQUENCE),
    "LSTM": (lambda: Applied(lambda own, x: own(x)[0], nn.LSTM(16, 8, bidirectional=True, batch_first=True)), SEQUENCE),
    "GRU": (lambda: Applied(lambda own, x: own(x)[0], nn.GRU(16, 8, batch_first=True)), SEQUENCE),
    "MultiheadAttention": (
        lambda: Applied(lambda own, x: own(x, x, x), nn.MultiheadAttention(16, 4, batch_first=True)),
        SEQUENCE,
    ),
    "TransformerEncoder": (encoder, SEQUENCE),
    "TransformerEncoder, causal": (lambda: Applied(causal, encoder()), SEQUENCE),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(16, 4, 32, batch_first=True),
        (floats(6, 16), floats(5, 16)),
    ),
    "Embedding": (lambda: Applied(lambda own, x: own(x).mean(1), nn.Embedding(20, 16)), TOKENS),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(20, 16), TOKENS),
    "MaxPool2d": (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(3)), IMAGE),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "Upsample": (lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelUnshuffle(2)), IMAGE),
    "Softmax": (lambda: nn.Sequential(nn.SiLU(), nn.Hardswish(), nn.LogSoftmax(-1)), VECTOR),
    "CosineSimilarity": (lambda: nn.CosineSimilarity(), (floats(16), floats(16) + 1)),
    "Bilinear": (lambda: nn.Bilinear(16, 16, 4), (floats(16), floats(16) + 1)),
}
# What a converter cannot do, and the words that name it.
CANNOT = {
    ("tflite", "EmbeddingBag"): "layer EmbeddingBag",
    ("tflite", "Bilinear"): "layer Bilinear",
    ("openvino", "Bilinear"): "operator aten::bilinear",
}
# What libraries say of themselves, in place of a reason.
THEIR_OWN = re.compile(r"prim::|Graph diff|Traceback|TorchScript module that you|unconverted_ops_report")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_standard_modules_convert(runtime: str, tmp_path: Path) -> None:
    missing = [name for name in abilities()[runtime].modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    lowering = importlib.import_module(f"edgeopt.lower.{runtime}")
    told: dict[str, str] = {}
    for name, (build, samples) in MODULES.items():
        torch.manual_seed(0)
        folder = tmp_path / name
        folder.mkdir()
        try:
            lowering.lower(build().eval(), "fp32", samples, (), folder, lambda *_: None)
        except ModelError as error:
            told[name] = str(error)
    expected = {name: words for (own, name), words in CANNOT.items() if own == runtime}
    assert told.keys() == expected.keys(), told
    for name, words in expected.items():
        assert words in told[name], told[name]
        assert not THEIR_OWN.search(told[name])


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs edgeopt[openvino]")
def test_the_fast_path_of_attention_is_as_it_was(tmp_path: Path) -> None:
    from edgeopt.lower import openvino as lowering

    before = torch.backends.mha.get_fastpath_enabled()
    made = lowering.lower(encoder().eval(), "int8", SEQUENCE, SEQUENCE, tmp_path, lambda *_: None)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert made.notes["parity"][-1]["sqnr_db"] > 25
    assert made.notes["int8_mac_share"] > 0.5
