"""TFLite: ai-edge-litert where there is a wheel, else tflite-runtime (32-bit Arm, old Pythons; needs numpy<2)."""

from __future__ import annotations

import collections
import math
import os
import sys
from typing import Any, Dict, List, Optional, Sequence, Set

from ..wire import RemoteError
from . import PATH, check_options, installed, mac_type, summary

PACKAGES = ("ai-edge-litert", "tflite-runtime")
XNNPACK = "XNNPACK"  # the runtime's own delegate, which it applies by itself
OPTIONS = {"delegate": (PATH,)}  # a vendor's library, for an accelerator
# Operators that multiply: at which inputs data and weights are, what the sizes of the weights multiply, and by which.
WITH_MACS = {
    "CONV_2D": (0, 1, "result", slice(1, None)),
    "DEPTHWISE_CONV_2D": (0, 1, "result", slice(1, 3)),
    "CONV_3D": (0, 1, "result", slice(0, 4)),
    "TRANSPOSE_CONV": (2, 1, "data", slice(0, 3)),
    "CONV_3D_TRANSPOSE": (2, 1, "data", slice(0, 4)),
    "FULLY_CONNECTED": (0, 1, "result", slice(1, None)),
    "BATCH_MATMUL": (0, 1, "result", None),
}


def available() -> Optional[Dict[str, str]]:
    return installed(PACKAGES)


def require() -> None:
    _interpreter_class()


def _interpreter_class() -> Any:
    return _module().Interpreter


def _module() -> Any:
    found = available()
    if found is None:
        raise RemoteError(
            "missing-runtime",
            f"runtime 'tflite' is not installed for {sys.executable}: neither {' nor '.join(PACKAGES)} is there; "
            "install one of them for this Python, or name another Python with --board-python",
        )
    try:
        if found["package"] == "ai-edge-litert":
            from ai_edge_litert import interpreter
        else:
            from tflite_runtime import interpreter
    except Exception as error:
        raise RemoteError(
            "missing-runtime", f"{found['package']} {found['version']} cannot be imported: {error}"
        ) from error
    return interpreter


class Session:
    def __init__(self, path: str, threads: int, options: Dict[str, Any], batch: int) -> None:
        self._path, self._threads, self._batch = path, threads, batch
        self._delegate: Optional[str] = options.get("delegate")
        self._interpreter = self._open()
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._input_indices = [detail["index"] for detail in inputs]
        self._output_indices = [detail["index"] for detail in outputs]
        self.inputs = [_describe(detail) for detail in inputs]
        self.outputs = [_describe(detail) for detail in outputs]
        self.invoke = self._interpreter.invoke

    def _open(self, **how: Any) -> Any:
        module = _module()
        if self._delegate is not None:
            how["experimental_delegates"] = [_load_delegate(module, self._delegate)]
        try:
            interpreter = module.Interpreter(model_path=self._path, num_threads=self._threads, **how)
            for detail in interpreter.get_input_details() if self._batch > 1 else ():
                interpreter.resize_tensor_input(detail["index"], [self._batch, *detail["shape"][1:]])
            interpreter.allocate_tensors()
        except Exception as error:
            words = f"with {self._batch} samples a query" if self._batch > 1 else "the model"
            raise RemoteError("runtime", f"tflite cannot load {words}: {error}") from error
        return interpreter

    def set_inputs(self, arrays: Sequence[Any]) -> None:
        for index, array in zip(self._input_indices, arrays):
            self._interpreter.set_tensor(index, array)

    def get_outputs(self) -> List[Any]:
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def executed(self) -> Dict[str, Any]:
        nodes = self._interpreter._get_ops_details()
        counts = collections.Counter(node["op_name"] for node in nodes)
        delegated = counts.pop("DELEGATE", 0)
        known = {"threads": self._threads, "ops": dict(counts), "delegate_nodes": delegated, "precision": None}
        return dict(known, **summary(self.operators(0)))

    def operators(self, runs: int) -> List[Dict[str, Any]]:  # noqa: ARG002
        """Without seconds: its Python interpreter times no operator."""
        nodes = self._interpreter._get_ops_details()
        tensors = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        accelerated, taken = self._accelerated(), _delegated(nodes)
        found = []
        for node in nodes:
            if node["op_name"] == "DELEGATE":
                continue
            outputs = [tensors[index] for index in node["outputs"] if index in tensors]
            macs, kind = _macs(node, tensors)
            place = XNNPACK if node["index"] in taken else "CPU"
            if node["index"] in accelerated:
                place = os.path.basename(str(self._delegate))
            name = str(outputs[0]["name"]) if outputs else "?"
            own = {"op": node["op_name"], "name": name, "place": place, "type": kind, "macs": macs}
            found.append(dict(own, seconds=None))
        return found

    def _accelerated(self) -> Set[int]:
        """What the vendor's delegate took: the delegate nodes of a session without the runtime's own."""
        if self._delegate is None:
            return set()
        alone = _module().OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        return _delegated(self._open(experimental_op_resolver_type=alone)._get_ops_details())


def _delegated(nodes: List[Dict[str, Any]]) -> Set[int]:
    """Indices of the nodes that delegates stand for: the graph lists both, so from the outputs of each delegate back
    to its inputs."""
    maker = {int(out): node for node in nodes if node["op_name"] != "DELEGATE" for out in node["outputs"]}
    found: Set[int] = set()
    for delegate in nodes:
        if delegate["op_name"] == "DELEGATE":
            edge = {int(index) for index in delegate["inputs"]}
            todo = [int(index) for index in delegate["outputs"]]
            while todo:
                node = maker.get(todo.pop())
                if node is not None and node["index"] not in found:
                    found.add(node["index"])
                    todo += [int(index) for index in node["inputs"] if int(index) not in edge]
    return found


def _macs(node: Dict[str, Any], tensors: Dict[int, Dict[str, Any]]) -> Any:
    """(multiply-accumulates or None, the type that is computed in). Filters are (out, kh, kw, in), depthwise ones
    (1, kh, kw, out), those of three dimensions (kd, kh, kw, in, out), dense weights (out, in)."""
    types = [tensors[index]["dtype"].__name__ for index in node["inputs"] if index in tensors]
    if node["op_name"] not in WITH_MACS:
        return None, (types[0] if types else None)
    data_at, weights_at, by, inner = WITH_MACS[node["op_name"]]
    data, weights = (tensors[node["inputs"][at]] for at in (data_at, weights_at))
    sizes = [int(size) for size in (data if by == "data" else tensors[node["outputs"][0]])["shape"]]
    sizes += [int(size) for size in (data["shape"][-1:] if inner is None else weights["shape"][inner])]
    return math.prod(sizes), mac_type(data["dtype"].__name__, weights["dtype"].__name__)


def _load_delegate(module: Any, path: str) -> Any:
    if not os.path.exists(path):
        raise RemoteError("fallback", f"the delegate {path} is not on this board, so all of it would run on the CPU")
    try:
        return module.load_delegate(path)
    except Exception as error:
        why = str(error).strip() or type(error).__name__
        raise RemoteError("fallback", f"the delegate {path} cannot be loaded ({why[:300]})") from error


def _describe(detail: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "name": str(detail["name"]),
        "shape": [int(size) for size in detail["shape"]],
        "dtype": detail["dtype"].__name__,
    }


def load(path: str, threads: int, options: Dict[str, Any], batch: int = 1) -> Session:
    check_options("tflite", OPTIONS, options)
    return Session(path, threads, options, batch)
