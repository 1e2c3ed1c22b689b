"""The example's model: which of seven shoulder exercises a smartwatch sees in 2.56 s of motion.

A chain of convolutions along time, written as Conv2d of height 1 because that is what TFLite has; a strided one has an
even kernel, so that torch's padding is TFLite's SAME and no Pad operator is left over. Normalisation is not in here but
in the run file's preprocess steps, where host and board find the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

EXERCISES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
CHANNELS = 6  # acceleration x, y, z; angular velocity x, y, z
LAYERS = ((64, 9, 1), (96, 6, 2), (96, 5, 1), (128, 6, 2), (128, 5, 1))  # width, kernel, stride
DROPOUT = 0.5


class WatchNet(nn.Module):
    """motion (n, 6, 128) float32, normalised -> logits (n, 7)."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width = CHANNELS
        for out, kernel, stride in LAYERS:
            pad = (kernel - stride + 1) // 2
            blocks += [
                nn.Conv2d(width, out, (1, kernel), stride=(1, stride), padding=(0, pad), bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            width = out
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(width, len(EXERCISES))

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        features = self.pool(self.features(motion.unsqueeze(2)))
        logits: torch.Tensor = self.head(self.dropout(torch.flatten(features, 1)))
        return logits


def load() -> nn.Module:
    """The trained model in eval mode, from weights.npz beside this file (float16 there, float32 here)."""
    path = Path(__file__).with_name("weights.npz")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with: python train.py")
    model = WatchNet()
    with np.load(path, allow_pickle=False) as arrays:
        state = {
            name: torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)
            for name, array in arrays.items()
        }
    model.load_state_dict(state)
    return model.eval()
