"""TFLite: ai-edge-litert where there is a wheel, else tflite-runtime (32-bit Arm, old Pythons; needs numpy<2)."""

from __future__ import annotations

import collections
import math
import sys
from typing import Any, Dict, List, Optional, Sequence

from ..wire import RemoteError
from . import check_options, installed

PACKAGES = ("ai-edge-litert", "tflite-runtime")
OPTIONS: Dict[str, Any] = {}
WITH_WEIGHTS = {"CONV_2D": slice(1, None), "DEPTHWISE_CONV_2D": slice(1, 3), "FULLY_CONNECTED": slice(1, None)}


def available() -> Optional[Dict[str, str]]:
    return installed(PACKAGES)


def require() -> None:
    _interpreter_class()


def _interpreter_class() -> Any:
    found = available()
    if found is None:
        raise RemoteError(
            "missing-runtime",
            f"runtime 'tflite' is not installed for {sys.executable}: neither {' nor '.join(PACKAGES)} is there; "
            "install one of them for this Python, or name another Python with --board-python",
        )
    try:
        if found["package"] == "ai-edge-litert":
            from ai_edge_litert.interpreter import Interpreter
        else:
            from tflite_runtime.interpreter import Interpreter
    except Exception as error:
        raise RemoteError(
            "missing-runtime", f"{found['package']} {found['version']} cannot be imported: {error}"
        ) from error
    return Interpreter


class Session:
    def __init__(self, path: str, threads: int) -> None:
        interpreter_class = _interpreter_class()
        try:
            self._interpreter = interpreter_class(model_path=path, num_threads=threads)
            self._interpreter.allocate_tensors()
        except Exception as error:
            raise RemoteError("runtime", f"tflite cannot load the model: {error}") from error
        self._threads = threads
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._input_indices = [detail["index"] for detail in inputs]
        self._output_indices = [detail["index"] for detail in outputs]
        self.inputs = [_describe(detail) for detail in inputs]
        self.outputs = [_describe(detail) for detail in outputs]
        self.invoke = self._interpreter.invoke

    def set_inputs(self, arrays: Sequence[Any]) -> None:
        for index, array in zip(self._input_indices, arrays):
            self._interpreter.set_tensor(index, array)

    def get_outputs(self) -> List[Any]:
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def executed(self) -> Dict[str, Any]:
        nodes = self._interpreter._get_ops_details()
        operators = collections.Counter(node["op_name"] for node in nodes)
        delegated = operators.pop("DELEGATE", 0)
        return {
            "threads": self._threads,
            "ops": dict(operators),
            "delegate_nodes": delegated,
            "precision": None,
            "macs": self._macs(nodes),
        }

    def _macs(self, nodes: List[Dict[str, Any]]) -> Dict[str, int]:
        """Multiply-accumulates by the type of data and weights: "int8", "float32", or "int8 x float32" where they
        differ. Filters are (out, kh, kw, in), depthwise ones (1, kh, kw, out), dense weights (out, in)."""
        tensors = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        found: Dict[str, int] = collections.Counter()
        for node in nodes:
            if node["op_name"] in WITH_WEIGHTS or node["op_name"] == "BATCH_MATMUL":
                data, weights = (tensors[index] for index in node["inputs"][:2])
                sizes = [int(size) for size in tensors[node["outputs"][0]]["shape"]]
                inner = WITH_WEIGHTS.get(node["op_name"])
                sizes += [int(size) for size in (weights["shape"][inner] if inner else data["shape"][-1:])]
                types = [tensor["dtype"].__name__ for tensor in (data, weights)]
                found[" x ".join(dict.fromkeys(types))] += math.prod(sizes)
        return dict(found)


def _describe(detail: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "name": str(detail["name"]),
        "shape": [int(size) for size in detail["shape"]],
        "dtype": detail["dtype"].__name__,
    }


def load(path: str, threads: int, options: Dict[str, Any]) -> Session:
    check_options("tflite", OPTIONS, options)
    return Session(path, threads)
