"""What the tools are given: a torch factory or an .onnx file, and samples (n, ...) of each of its inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt import formats, model, parity
from edgeopt.errors import ConfigError, MissingDependency, ModelError
from edgeopt.task import Array, read_npz

if TYPE_CHECKING:
    import torch

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
RANDOM_SAMPLES = parity.SAMPLES
MEND_TORCH = "; give samples with --inputs, or --shape, in the shapes and types that the model takes"


@dataclass(frozen=True)
class Source:
    """A source model before it is loaded. contents: of an .onnx file; None for a torch factory."""

    named: str
    contents: formats.Contents | None

    @property
    def kind(self) -> str:
        return "torch" if self.contents is None else "onnx"

    def load(self, folder: Path) -> torch.nn.Module | Path:
        """The torch module, its factory looked up from `folder`, or the .onnx file's path.

        Raises MissingDependency, ConfigError, ModelError.
        """
        if self.contents is not None:
            return self.contents.path
        try:
            return model.load_torch(self.named, folder, {})
        except (ConfigError, ModelError, MissingDependency) as error:
            raise type(error)(str(error).replace("[model] torch = ", "MODEL ").replace("[model] ", "")) from error


@dataclass(frozen=True)
class Given:
    """Samples, one array (n, ...) per input in the model's order, and labels where they were named."""

    arrays: tuple[Array, ...]
    labels: Array | None
    is_random: bool

    def __len__(self) -> int:
        return len(self.arrays[0])


def open_source(text: str) -> Source:
    """What MODEL names. Raises ConfigError, ModelError for an .onnx file that is not whole."""
    path = Path(text)
    if path.suffix == ".onnx":
        return Source(text, formats.read(path))
    if path.suffix in formats.RUNTIME_OF:
        npu = "; an int8 .tflite can be compiled for the NPU of a --profile that has one"
        raise ConfigError(
            f"{text}: it is an artifact already; a source model is an .onnx file, or package.module:factory"
            + (npu if path.suffix == ".tflite" else "")
        )
    if not FACTORY.fullmatch(text):
        raise ConfigError(f"MODEL {text}: neither an .onnx file nor package.module:factory, a function that returns it")
    return Source(text, None)


def read_samples(source: Source, inputs: Path | None, shapes: Sequence[tuple[int, ...]], labels: str | None) -> Given:
    """Samples from --inputs, random ones of --shape, or of the .onnx file's own shapes.

    Raises ConfigError; ModelError where the model's shapes are free or do not fit.
    """
    if inputs is not None and shapes:
        raise ConfigError("--inputs and --shape contradict each other; give one")
    if inputs is not None:
        given = read_inputs(inputs, labels, [port.name for port in source.contents.inputs] if source.contents else [])
    else:
        given = Given(_random(source, shapes), None, True)
    if source.contents is not None:
        for problem in unfit(source.contents, given.arrays):
            raise ModelError(f"{source.named}: {problem}")
    return given


def read_inputs(path: Path, labels: str | None, names: Sequence[str]) -> Given:
    """The arrays of an .npz: those with the model's input names where all of them are there, else all in their order.

    Raises ConfigError.
    """
    arrays = read_npz(path, "--inputs")
    if labels is not None and labels not in arrays:
        raise ConfigError(f"--labels {labels}: {path} has no such array; it has: {', '.join(arrays)}")
    own = {name: array for name, array in arrays.items() if name != labels}
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not own or len(set(counts.values())) != 1 or 0 in counts.values():
        told = ", ".join(f"{name}: {count}" for name, count in counts.items()) or "no array"
        raise ConfigError(f"--inputs {path}: every array needs the same number of samples, at least one; found {told}")
    for name, array in own.items():
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"--inputs {path}: array '{name}' has type {array.dtype}; numbers are needed")
    order = names if names and set(names) <= set(own) else list(own)
    return Given(tuple(own[name] for name in order), None if labels is None else arrays[labels], False)


def require_torch_runs(module: torch.nn.Module, arrays: Sequence[Array]) -> None:
    """Raises ModelError naming the user's line when the module does not take these samples."""
    try:
        model.run_torch(module, tuple(array[:1] for array in arrays))
    except ModelError as error:
        raise ModelError(str(error).replace(model.MEND_INPUTS, MEND_TORCH)) from error


def random_array(shape: Sequence[int], dtype: str, count: int) -> Array:
    """(count, *shape[1:]), always the same: floats of mean 0 and variance 1, whole numbers 0 and 1."""
    rng = np.random.default_rng(0)
    size = (count, *shape[1:])
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ModelError(f"an input of type {dtype} cannot be made up; give samples with --inputs") from error
    return rng.normal(size=size).astype(kind) if kind.kind == "f" else rng.integers(0, 2, size=size).astype(kind)


def _random(source: Source, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    if source.contents is not None:
        return random_arrays(source.contents, shapes)
    _require_samples(shapes)
    if not shapes:
        raise ConfigError("give samples with --inputs FILE.npz, or --shape 1,3,224,224 for random ones, once per input")
    return tuple(random_array(shape, "float32", RANDOM_SAMPLES) for shape in shapes)


def random_arrays(contents: formats.Contents, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    """Random samples (n, ...) of each input, in `shapes` (each of one sample), or else in the model's own.

    Raises ConfigError; ModelError where a size is free and no shape is given.
    """
    _require_samples(shapes)
    ports = contents.inputs
    if shapes and len(shapes) != len(ports):
        raise ConfigError(f"--shape is given {len(shapes)} times, the model takes {len(ports)} inputs: {_names(ports)}")
    for port in ports if not shapes else ():
        if None in port.shape[1:] or not port.shape:
            raise ModelError(
                f"{contents.path}: input {port} has sizes that are free; fix them with --inputs FILE.npz, whose "
                "samples have the sizes that the board will see, or with --shape"
            )
    wanted = shapes or [tuple(size or 1 for size in port.shape) for port in ports]
    return tuple(random_array(shape, port.dtype, RANDOM_SAMPLES) for shape, port in zip(wanted, ports, strict=True))


def _require_samples(shapes: Sequence[tuple[int, ...]]) -> None:
    for shape in shapes:
        if len(shape) < 1 or shape[0] != 1 or min(shape) < 1:
            raise ConfigError(
                f"--shape {','.join(map(str, shape))}: the first size is the sample's and must be 1: 1,3,224,224"
            )


def unfit(contents: formats.Contents, arrays: Sequence[Array]) -> list[str]:
    """Why the samples, each (n, ...), are not what the model takes, in words."""
    ports = contents.inputs
    if len(ports) != len(arrays):
        return [f"it takes {len(ports)} inputs ({_names(ports)}), {len(arrays)} arrays were given; give one for each"]
    found = []
    for port, array in zip(ports, arrays, strict=True):
        if port.shape and port.shape[0] not in (None, 1):
            found.append(
                f"input {port} has a batch that is fixed at {port.shape[0]}; artifacts take one sample at a time: "
                "export the model with a batch of 1, or a free one"
            )
        elif len(port.shape) != array.ndim or not fits(port.shape[1:], array.shape[1:]):
            found.append(f"input {port}, but the samples are {array.dtype} {list(array.shape)}, the sample first")
        elif port.dtype != array.dtype.name:
            found.append(
                f"input {port}, but the samples are {array.dtype}; save them as {port.dtype}: "
                f"array.astype('{port.dtype}')"
            )
    return found


def fits(wanted: Sequence[int | None], found: Sequence[int]) -> bool:
    """Whether an array of sizes `found` can be given for `wanted`, where None is any size."""
    return len(wanted) == len(found) and all(own in (None, size) for own, size in zip(wanted, found, strict=True))


def named_nodes(message: str, contents: formats.Contents) -> str:
    """The message, with the node added for each operator of the model that it mentions without one."""
    words = set(re.findall(r"\w+", message))
    first: Mapping[str, str] = {own.kind: own.node for own in reversed(contents.operators)}
    told = [f"{kind} is node '{node}'" for kind, node in first.items() if kind in words and node not in message]
    return f"{message} ({', '.join(told[:3])})" if told else message


def _names(ports: Sequence[formats.Port]) -> str:
    return ", ".join(str(port) for port in ports)
