"""A source model as an ONNX file: known by its bytes, run as the reference by ONNX Runtime on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
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
    return Opened(path).run(inputs, progress)


class Opened:
    """A model that ONNX Runtime has loaded."""

    def __init__(self, path: Path) -> None:
        """Raises MissingDependency, ModelError."""
        self.path = path
        self._session = _session(path, str(path))
        self._inputs = self._session.get_inputs()
        self.has_free_batch = all(not value.shape or not isinstance(value.shape[0], int) for value in self._inputs)

    def run(self, inputs: Sequence[Array], progress: Callable[[int, int], None]) -> tuple[Array, ...]:
        """As the function `run`."""
        _check_inputs(self.path, self._inputs, inputs)
        count = len(inputs[0])
        step = BATCH if self.has_free_batch else 1
        columns: list[list[Array]] = []
        for start in range(0, count, step):
            columns.append(self._batch(inputs, start, min(step, count - start)))
            progress(min(start + step, count), count)
        return tuple(np.concatenate(column, axis=0) for column in zip(*columns, strict=True))

    def _batch(self, inputs: Sequence[Array], start: int, rows: int) -> list[Array]:
        feed = {
            value.name: np.ascontiguousarray(array[start : start + rows])
            for value, array in zip(self._inputs, inputs, strict=True)
        }
        try:
            results: list[Array] = self._session.run(None, feed)
        except Exception as error:
            raise ModelError(
                f"{self.path} cannot be run on samples {start} to {start + rows - 1}: {_first(error)}"
            ) from error
        for index, result in enumerate(results):
            if not isinstance(result, np.ndarray) or result.ndim == 0 or len(result) != rows:
                shape = getattr(result, "shape", type(result).__name__)
                raise ModelError(
                    f"{self.path}: output {index} ('{self._session.get_outputs()[index].name}') is {shape} for {rows} "
                    "samples; the first axis of every output must be the sample"
                )
        return results


class Traced:
    """A model that ONNX Runtime has loaded with every node's outputs as its own."""

    def __init__(self, path: Path) -> None:
        """Raises MissingDependency, ModelError."""
        import onnx

        proto = onnx.load(str(path))
        given = {output.name for output in proto.graph.output}
        self._nodes = [(node.op_type, node_name(node), list(filter(None, node.output))) for node in proto.graph.node]
        names = {name for _, _, outputs in self._nodes for name in outputs}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - given))
        try:
            content = proto.SerializeToString()
        except Exception as error:  # of more than 2 GB
            raise ModelError(f"{path} is too large to be traced: {_first(error)}") from error
        self._session = _session(path, content)

    def run(self, inputs: Sequence[Array], tell: Callable[[str, str, tuple[Array, ...]], None]) -> None:
        """Tells of every node, in order: its operator, its name in words, its outputs for these samples (n, ...)."""
        names = [value.name for value in self._session.get_inputs()]
        try:
            values = self._session.run(None, dict(zip(names, map(np.ascontiguousarray, inputs), strict=True)))
        except Exception as error:
            raise ModelError(f"the model cannot be traced: {_first(error)}") from error
        found = dict(zip((output.name for output in self._session.get_outputs()), values, strict=True))
        for kind, name, outputs in self._nodes:
            arrays = (found.get(output) for output in outputs)
            tell(kind, f"node '{name}' ({kind})", tuple(array for array in arrays if isinstance(array, np.ndarray)))


def training_nodes(path: Path) -> list[str]:
    """Nodes that compute as in training, in words: BatchNormalization by the batch's statistics, Dropout at random.

    ONNX Runtime's optimizer may hide the latter. Raises MissingDependency, ModelError.
    """
    proto = read(path)
    found: list[str] = []

    def walk(nodes: Iterable[onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> None:
        for node in nodes:
            attributes = {attribute.name: attribute for attribute in node.attribute}
            if node.op_type == "Constant" and "value" in attributes:
                constants[node.output[0]] = attributes["value"].t
            if node.op_type == "BatchNormalization" and "training_mode" in attributes and attributes["training_mode"].i:
                found.append(f"node '{node_name(node)}' (BatchNormalization)")
            if node.op_type == "Dropout" and len(node.input) > 2 and _is_true(constants.get(node.input[2])):
                found.append(f"node '{node_name(node)}' (Dropout)")
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    walk(graph.node, constants | {tensor.name: tensor for tensor in graph.initializer})

    walk(proto.graph.node, {tensor.name: tensor for tensor in proto.graph.initializer})
    for function in proto.functions:
        walk(function.node, {})
    return found


def _is_true(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and (any(tensor.raw_data) or any(tensor.int32_data))


def node_name(node: onnx.NodeProto) -> str:
    """A node's name, or of one without what its first output is called."""
    return str(node.name) or (f"output {node.output[0]}" if node.output else "without a name")


def _session(path: Path, model: str | bytes) -> Any:
    """model: the file's name, or what it would hold."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"[model] onnx needs onnxruntime ({error}): pip install 'edgeopt[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
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
