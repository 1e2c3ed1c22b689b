"""A source model as an ONNX file: known by its bytes, run as the reference by ONNX Runtime on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import formats
from .errors import ConfigError, MissingDependency, ModelError
from .task import Array

if TYPE_CHECKING:
    import onnx

BATCH = 32
MEND_CUT = "it was cut short, or is another kind of file: get it again"
NARROW = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(int64)": "int64", "tensor(int32)": "int32"}


def files(path: Path) -> list[Path]:
    """The file and those that hold its external data, each of which is there; read without any framework.

    Raises ConfigError, ModelError.
    """
    if not path.is_file():
        raise ConfigError(f"[model] onnx = '{path}': no such file")
    return list(formats.read(path, "onnxruntime").paths)


def read(path: Path) -> onnx.ModelProto:
    """The model without external data. Raises MissingDependency, ModelError."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingDependency(f"[model] onnx needs onnx ({error}): pip install 'edgeopt[onnx]'") from error
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError, MemoryError) as error:
        raise ModelError(f"{path} is not a whole ONNX model ({error}); {MEND_CUT}") from error
    if not proto.graph.node:
        raise ModelError(f"{path} is not a whole ONNX model: it has no node; {MEND_CUT}")
    return proto


def graph_hash(path: Path) -> str:
    """SHA-256 over the file and its external data."""
    digest = hashlib.sha256()
    for file in files(path):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def run(path: Path, inputs: Sequence[Array], progress: Callable[[int, int], None]) -> tuple[Array, ...]:
    """Outputs, each (n, ...), of prepared inputs, each (n, ...); in batches where the model's first axis is free.

    Raises ModelError naming the input, the node or the operator at fault.
    """
    session = _session(path)
    wanted = session.get_inputs()
    _check_inputs(path, wanted, inputs)
    count = len(inputs[0])
    is_free = all(not value.shape or not isinstance(value.shape[0], int) for value in wanted)
    step = BATCH if is_free else 1
    columns: list[list[Array]] = []
    for start in range(0, count, step):
        feed = {
            value.name: np.ascontiguousarray(a[start : start + step]) for value, a in zip(wanted, inputs, strict=True)
        }
        rows = min(step, count - start)
        try:
            results = session.run(None, feed)
        except Exception as error:
            raise ModelError(
                f"{path} cannot be run on samples {start} to {start + rows - 1}: {_first(error)}"
            ) from error
        for index, result in enumerate(results):
            if not isinstance(result, np.ndarray) or result.ndim == 0 or len(result) != rows:
                shape = getattr(result, "shape", type(result).__name__)
                raise ModelError(
                    f"{path}: output {index} ('{session.get_outputs()[index].name}') is {shape} for {rows} samples; "
                    "the first axis of every output must be the sample"
                )
        columns.append(results)
        progress(min(start + step, count), count)
    return tuple(np.concatenate(column, axis=0) for column in zip(*columns, strict=True))


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"[model] onnx needs onnxruntime ({error}): pip install 'edgeopt[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {_first(error)}"
        ) from error


def _check_inputs(path: Path, wanted: Sequence[Any], inputs: Sequence[Array]) -> None:
    names = ", ".join(f"{value.name} {value.shape} {value.type}" for value in wanted)
    if len(wanted) != len(inputs):
        raise ModelError(f"{path} takes {len(wanted)} inputs ({names}), [task] inputs names {len(inputs)}")
    for value, array in zip(wanted, inputs, strict=True):
        dtype = NARROW.get(value.type)
        sizes = zip(value.shape[1:], array.shape[1:], strict=False)
        if dtype is not None and array.dtype.name != dtype:
            raise ModelError(
                f"{path}: input '{value.name}' takes {dtype}, the prepared samples are {array.dtype.name}; add "
                f'{{ op = "cast", dtype = "{dtype}" }} to [task.preprocess]'
            )
        if len(value.shape) != array.ndim or any(isinstance(size, int) and size != own for size, own in sizes):
            raise ModelError(
                f"{path}: input '{value.name}' takes {value.shape}, the prepared samples are {list(array.shape)} with "
                "the sample first; change them with [task.preprocess]"
            )


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
