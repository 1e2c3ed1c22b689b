"""From a torch module to a runtime's artifact: one file per framework, its name is the runtime's name.

A lowering is a module of this package (listed with pkgutil, imported on use) that has

    ABILITY     a plan.Ability: which source models, which schemes, which packages
    lower(source, scheme, example, calibration, folder, progress) -> Lowered

where `source` is a torch module in eval mode or the path of an .onnx file, `example` (a few samples, for tracing and
the parity check) and `calibration` are tuples with one preprocessed array (n, ...) per input in the source model's
layout, `folder` takes the artifact's files and `progress` is told what is done, and how far where that can be counted.
Importing a lowering loads nothing heavy. lower() raises MissingDependency (names the extra), PlanError (unknown scheme,
empty calibration) or ModelError (operator that cannot be converted, non-finite numbers, an artifact that does not agree
with its source; LoweringFault where the model is well and a stage broke it: make() then says what else there is).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from edgeopt import quantizable
from edgeopt.errors import LoweringFault, ModelError
from edgeopt.plan import Ability

if TYPE_CHECKING:
    import torch


SHARED = (
    *(f"edgeopt/{name}.py" for name in ("parity", "fidelity", "floor", "quantizable")),
    *(f"edgeopt/lower/{name}.py" for name in ("__init__", "joins", "child", "ranges")),
)


ROUND_LESS = {"int8": ("fp16", "fp32"), "fp16": ("fp32",)}  # rungs by what they are better than


def abilities() -> dict[str, Ability]:
    """What each file of this package can do, by runtime."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module.ABILITY for name, module in found.items() if hasattr(module, "ABILITY")}


def sources(runtime: str) -> list[str]:
    """The files that make a runtime's artifacts, for cache keys: <runtime>.py, <runtime>_….py where it has such, and
    what all share."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    own = [name for name in names if name == runtime or name.startswith(f"{runtime}_")]
    return [*SHARED, *(f"edgeopt/lower/{name}.py" for name in own)]


def other_ways(runtime: str, scheme: str, kind: str) -> dict[str, list[str]]:
    """What else may take a model that `scheme` spoiled: {"schemes" of the same rung, other "runtimes" that take a
    source of this kind ("torch" or "onnx") to that rung, "float": schemes of this runtime that round less}."""
    able = abilities()
    own = able[runtime]
    rung = next(rung for rung, schemes in own.schemes.items() if scheme in schemes)
    return {
        "schemes": [other for other in own.schemes[rung] if other != scheme],
        "runtimes": [
            name for name, other in able.items() if name != runtime and kind in other.sources and rung in other.schemes
        ],
        "float": [own.schemes[other][0] for other in ROUND_LESS.get(rung, ()) if other in own.schemes],
    }


def ways_in_words(ways: dict[str, list[str]]) -> str:
    """Of other_ways: what to try."""
    told = [f"scheme {' or '.join(ways['schemes'])}"] if ways["schemes"] else []
    told += [f"another runtime ({' or '.join(ways['runtimes'])})"] if ways["runtimes"] else []
    told += [f"{' or '.join(ways['float'])} of this one"] if ways["float"] else []
    return f"try {', or '.join(told)}" if told else "no other scheme or runtime takes this model"


def make(
    runtime: str,
    source: torch.nn.Module | Path,
    scheme: str,
    example: tuple[Any, ...],
    calibration: tuple[Any, ...],
    folder: Path,
    progress: Progress,
) -> Lowered:
    """The runtime's artifact of the source in `folder`; arguments and errors as lower() of the package's docstring.

    A model that a stage of its own broke raises ModelError with the ways that are left: it is not the model's fault.
    """
    lowering = importlib.import_module(f"{__name__}.{runtime}")
    try:
        with quantizable.source_for(scheme, source) as ready:
            stages = [] if ready is source else [_prepared(ready, source, example)]
            made: Lowered = lowering.lower(ready, scheme, example, calibration, folder, progress)
            made.notes["parity"] = [*stages, *made.notes["parity"]]
    except LoweringFault as error:
        ways = other_ways(runtime, scheme, "onnx" if isinstance(source, Path) else "torch")
        if error.of_conversion:
            ways |= {"schemes": [], "float": []}
        raise ModelError(f"{error}; the model is not at fault: {ways_in_words(ways)}") from error
    return made


def _prepared(ready: Any, source: Any, example: tuple[Any, ...]) -> dict[str, Any]:
    """The parity of a file that was rewritten so that it can be quantized with the one that was given; float16 in it
    became float32. Raises ModelError."""
    from edgeopt import parity

    samples = tuple(array[: parity.SAMPLES] for array in example)
    found, reference = (parity.source_outputs(own, samples) for own in (ready, source))
    return parity.compare(found, reference, "rewriting for the quantizer", parity.FP16_TOLERANCE)


class Progress(Protocol):
    """What is being done; `done` of `total` where it can be counted."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None: ...


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an artifact. shape: with batch 1; dtype: numpy's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Lowered:
    """An artifact and what its user must know.

    paths: its files; the first is loaded, the others are found beside it.
    inputs, outputs: in the artifact's order, which is the source model's.
    adapters: for each input the preprocess steps that turn a source-layout batch (1, ...) into that input.
    options: the settings that the runtime is given with it.
    notes: JSON-able facts; `parity` holds, per stage of the conversion, how far its outputs are from the source's.
    """

    paths: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    adapters: tuple[tuple[dict[str, Any], ...], ...]
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def quiet() -> Iterator[IO[bytes]]:
    """Keeps what frameworks print, from Python or C++, off stdout and stderr; yields the file that holds it.

    Python output of other threads still reaches the terminal, so that a live progress display goes on.
    """
    with tempfile.TemporaryFile() as kept:
        originals = sys.stdout, sys.stderr
        for stream in originals:
            stream.flush()
        saved = os.dup(1), os.dup(2)
        streams = [_OwnThreadOnly(kept, *pair) for pair in zip(originals, saved, strict=True)]
        try:
            os.dup2(kept.fileno(), 1)
            os.dup2(kept.fileno(), 2)
            sys.stdout, sys.stderr = streams
            yield kept
        finally:
            sys.stdout, sys.stderr = originals
            for number, duplicate in zip((1, 2), saved, strict=True):
                os.dup2(duplicate, number)
                os.close(duplicate)
            for substitute in streams:
                substitute.release()


class _OwnThreadOnly(io.TextIOBase):
    """Text of the thread that made it goes to `kept`, that of others to where it would have gone."""

    def __init__(self, kept: IO[bytes], original: Any, saved: int) -> None:
        self._owner = threading.get_ident()
        self._kept: IO[bytes] | None = kept
        self._original = original
        self._saved = saved

    def write(self, text: str) -> int:
        if self._kept is None:  # a logging handler made meanwhile holds on to us
            return int(self._original.write(text))
        if threading.get_ident() == self._owner:
            self._kept.write(text.encode("utf-8", "replace"))
            self._kept.flush()
        elif self._is_redirected():
            os.write(self._saved, text.encode("utf-8", "replace"))
        else:
            self._original.write(text)
        return len(text)

    def flush(self) -> None:
        if self._kept is None:
            self._original.flush()

    def isatty(self) -> bool:
        return bool(self._original.isatty())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self._original, "encoding", None) or "utf-8")

    def release(self) -> None:
        self._kept = None

    def _is_redirected(self) -> bool:
        try:
            return self._original.fileno() in (1, 2)
        except (OSError, ValueError):
            return False
