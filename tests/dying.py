"""What a child process of edgeopt.lower.child runs in tests: it looks functions up by module and name."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(artifact: Path, progress: Any) -> str:
    """Loads a .tflite as a board does."""
    from ai_edge_litert.interpreter import Interpreter

    progress("loading")
    print("its last words go to stdout")
    Interpreter(model_path=str(artifact), num_threads=1).allocate_tensors()
    return "loaded"


def fail(number: int, progress: Any) -> None:
    progress("failing", number, 2)
    raise ValueError(f"number {number}")
