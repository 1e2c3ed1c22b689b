"""The source model of a run: loaded, its inputs bound to [task] inputs, checked to have one answer, known by a hash."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import determinism, formats, model, onnx_model, signature
from .binding import Binding, Takes, bind
from .cache import Cache, sha256_file, source_of, versions
from .plan import Plan
from .task import Array, Samples

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")
CODE = tuple(f"edgeopt/{name}.py" for name in ("model", "onnx_model", "signature", "binding", "determinism"))


@dataclass(frozen=True)
class Known:
    """graph: the hash of graph and weights; binding: which of [task] inputs each input of the model is."""

    graph: str
    binding: Binding


def load(plan: Plan) -> tuple[torch.nn.Module | Path, Binding]:
    """(the source model, which is called by position; which of [task] inputs each of its inputs is).

    Raises MissingDependency, ConfigError, ModelError.
    """
    section, given = plan.run_file.model, plan.run_file.task.inputs
    if section.onnx is not None:
        path = plan.folder / section.onnx
        names = tuple(port.name for port in formats.read(path, "onnxruntime").inputs)
        return path, bind(Takes(names, names), given, "[task] inputs", is_ordered=True)
    module = model.load_torch(str(section.torch), plan.folder, section.arguments)
    binding = bind(signature.takes(module), given, "[task] inputs", is_ordered=True)
    return signature.by_position(module, binding.inputs), binding


def graph_hash(source: torch.nn.Module | Path, example: Sequence[Array]) -> str:
    """SHA-256 over what the source computes; example: a prepared array (n, ...) per input, in its order."""
    return onnx_model.graph_hash(source) if isinstance(source, Path) else model.graph_hash(source, example)


def known(plan: Plan, samples: Samples, cache: Cache, say: Callable[[dict[str, Any]], None]) -> Known:
    """What is known of the source; where the cache does not know it, it is loaded and must give a few of `samples` one
    answer each, whatever else is in their batch.

    Raises as load does.
    """
    few = samples.take(np.arange(min(determinism.SAMPLES, len(samples)))).prepared(plan.preprocess)
    section = plan.run_file.model

    def build(folder: Path) -> None:
        say({"event": "stage", "what": "loading and exporting the model"})
        source, binding = load(plan)
        named = dict(zip(plan.run_file.task.inputs, few, strict=True))
        ordered = tuple(named[name] for name in binding.arrays)
        determinism.check(source, ordered)
        found = {"graph": graph_hash(source, ordered), "inputs": binding.inputs, "arrays": binding.arrays}
        (folder / "source.json").write_text(json.dumps({**found, "by": binding.by}))

    files = [] if section.onnx is None else onnx_model.files(plan.folder / section.onnx)
    inputs = {
        "factory": section.named(),
        "arguments": section.arguments,
        "folder": str(plan.folder),
        "names": plan.run_file.task.inputs,
        "shapes": [[list(array.shape[1:]), str(array.dtype)] for array in few],
        "versions": versions(PACKAGES),
        "code": source_of(*CODE),
        # native code reads them, so the trace does not see them
        "files": {path.name: sha256_file(path) for path in files},
    }
    found = json.loads((cache.traced("source", inputs, build) / "source.json").read_text())
    return Known(found["graph"], Binding(tuple(found["inputs"]), tuple(found["arrays"]), (), found["by"]))
