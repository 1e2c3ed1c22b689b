"""EfficientNet-Lite0 with its trained weights, from its packages, as files of a runtime, for benchmarks."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "efficientnet-lite0"))
from lite0 import SHAPE, load


def artifact(runtime: str, scheme: str, folder: Path) -> Path:
    """The model lowered to a runtime. Ranges come from noise: latency does not depend on them, accuracy would."""
    images = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    folder.mkdir(parents=True)
    lowering = importlib.import_module(f"edgeopt.lower.{runtime}")
    path: Path = lowering.lower(load(), scheme, (images[:2],), (images,), folder, lambda *_: None).paths[0]
    return path
