"""The example's model: which digit is being said, from the log-mel spectrum of a second.

A DS-CNN (Zhang et al. 2017, "Hello Edge"): a convolution, then depthwise and pointwise ones in turn. A strided one has
an even kernel, so that torch's padding is TFLite's SAME and no Pad operator is left over. Normalisation is not in here
but in the run file's preprocess steps, where host and board find the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

WIDTH = 64
STRIDES = (2, 1, 2, 1)
KERNEL = {1: 3, 2: 4}
DROPOUT = 0.3
DIGITS = 10


def convolution(width: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    pad = (kernel - stride + 1) // 2
    return [
        nn.Conv2d(width, out, kernel, stride, padding=pad, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    ]


class DigitNet(nn.Module):
    """spectrum (n, 1, 64, 40) float32, normalised -> logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        layers = convolution(1, WIDTH, 6, 2)
        for stride in STRIDES:
            layers += convolution(WIDTH, WIDTH, KERNEL[stride], stride, groups=WIDTH)
            layers += convolution(WIDTH, WIDTH, 1)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(WIDTH, DIGITS)

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        features = self.pool(self.features(spectrum))
        logits: torch.Tensor = self.head(self.dropout(torch.flatten(features, 1)))
        return logits


def load() -> nn.Module:
    """The trained model in eval mode, from weights.npz beside this file (float16 there, float32 here)."""
    path = Path(__file__).with_name("weights.npz")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with: python train.py")
    model = DigitNet()
    with np.load(path, allow_pickle=False) as arrays:
        state = {
            name: torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)
            for name, array in arrays.items()
        }
    model.load_state_dict(state)
    return model.eval()
