"""The model that a bundle's model was made from, run here, so that validate's drop is the loss against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import preprocess as operations
from edgeopt_agent.wire import RemoteError

from edgeopt import determinism, formats, onnx_model, stats
from edgeopt.binding import Takes, bind
from edgeopt.cache import sha256_file
from edgeopt.errors import ConfigError, MissingDependency, ModelError
from edgeopt.task import Array

from .source import Given, unfit

OWN = "its own outputs"
MOST_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Reference:
    """What the source model answered here. outputs: each (n, ...); steps_done: whether it took prepared samples."""

    path: Path
    outputs: tuple[Array, ...]
    steps_done: bool

    def entry(self) -> dict[str, Any]:
        """Which model it was, for the bundle's lineage."""
        first, *others = onnx_model.files(self.path)
        return {
            "file": first.name,
            "sha256": sha256_file(first),
            "external_data": {path.name: sha256_file(path) for path in others},
            "samples": "after the preprocess steps" if self.steps_done else "as given",
        }

    def matching(self, model: Path, outputs: Sequence[Array]) -> tuple[Array, ...]:
        """Its outputs in the shapes of the bundled model's, which may differ by axes of size 1 only.

        Raises ModelError.
        """
        ours = [list(output.shape) for output in self.outputs]
        theirs = [list(output.shape) for output in outputs]
        if [[size for size in shape[1:] if size != 1] for shape in ours] != [
            [size for size in shape[1:] if size != 1] for shape in theirs
        ]:
            raise ModelError(
                f"--reference {self.path} gives outputs {_told(ours)}, and {model} gives {_told(theirs)}, the sample "
                "first: they cannot be compared; name the model that it was made from"
            )
        return tuple(own.reshape(other.shape) for own, other in zip(self.outputs, outputs, strict=True))


def run(path: Path, given: Given, names: Sequence[str], steps: Sequence[Sequence[dict[str, Any]]]) -> Reference:
    """The .onnx file's answers to the samples as they are, or, where only these fit, to those after `steps`.

    names: of the samples' inputs; a reference of several takes them by these, in its own order.
    Raises ConfigError, ModelError, MissingDependency.
    """
    if path.suffix != ".onnx":
        raise ConfigError(f"--reference {path}: an .onnx file is needed; export the source model as one")
    contents = formats.read(path)
    wanted = tuple(port.name for port in contents.inputs)
    binding = bind(Takes(wanted, wanted), names, f"--reference {path}")
    order = [names.index(name) for name in binding.arrays]
    raw = tuple(given.arrays[index] for index in order)
    problems, steps_done = unfit(contents, raw), False
    if problems and any(steps):
        prepared = _prepared(raw, [steps[index] for index in order])
        if not unfit(contents, prepared):
            raw, problems, steps_done = prepared, [], True
    if problems:
        raise ModelError(f"--reference {path}: {problems[0]}")
    try:
        determinism.check(path, raw)
        outputs = onnx_model.run(path, raw, lambda _done, _total: None)
    except MissingDependency as error:
        raise MissingDependency(str(error).replace("[model] onnx", "--reference")) from error
    except ModelError as error:
        raise ModelError(f"--reference {error}") from error
    for index, output in enumerate(outputs):
        if not np.isfinite(output.astype(np.float64)).all():
            raise ModelError(f"--reference {path}: output {index} is NaN or infinite on these samples; mend the model")
    return Reference(path, outputs, steps_done)


def needed_samples(scores: Array, floor_drop: float) -> int | None:
    """Least count with which equal answers show a drop within `floor_drop`; scores: (n,), the reference's.

    None: no count does.
    """

    def shows(count: int) -> bool:
        repeated = np.resize(scores, count)
        drop = stats.paired_drop(repeated, repeated)
        return stats.verdict(drop["drop"], drop["drop_interval"], floor_drop, count)[0] == "pass"

    low, high = 0, 1
    while not shows(high):
        low, high = high, 2 * high
        if high > MOST_SAMPLES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def _prepared(arrays: Sequence[Array], steps: Sequence[Sequence[dict[str, Any]]]) -> tuple[Array, ...]:
    try:
        return tuple(operations.apply(list(own), array) for own, array in zip(steps, arrays, strict=True))
    except RemoteError as error:
        raise ConfigError(f"--preprocess: {error}") from error


def _told(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
