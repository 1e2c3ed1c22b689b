"""TFLite: ai-edge-litert where there is a wheel, else tflite-runtime (32-bit Arm, old Pythons; needs numpy<2)."""

from __future__ import annotations

import collections
import sys
from typing import Any, Dict, List, Optional, Sequence

from ..wire import RemoteError
from . import installed

PACKAGES = ("ai-edge-litert", "tflite-runtime")


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
        operators = collections.Counter(op["op_name"] for op in self._interpreter._get_ops_details())
        delegated = operators.pop("DELEGATE", 0)
        return {"threads": self._threads, "ops": dict(operators), "delegate_nodes": delegated}


def _describe(detail: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "name": str(detail["name"]),
        "shape": [int(size) for size in detail["shape"]],
        "dtype": detail["dtype"].__name__,
    }


def load(path: str, threads: int) -> Session:
    return Session(path, threads)
