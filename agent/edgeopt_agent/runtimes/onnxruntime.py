"""ONNX Runtime on the CPU. What was executed is read from its own profile of one query, after the measurement."""

from __future__ import annotations

import collections
import json
import os
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

from ..wire import RemoteError
from . import check_options, installed

PACKAGES = ("onnxruntime",)
OPTIONS: Dict[str, Any] = {}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def available() -> Optional[Dict[str, str]]:
    return installed(PACKAGES)


def require() -> None:
    _onnxruntime()


def _onnxruntime() -> Any:
    if available() is None:
        raise RemoteError(
            "missing-runtime",
            f"runtime 'onnxruntime' is not installed for {sys.executable}; install onnxruntime for this Python, or "
            "name another Python with --board-python",
        )
    try:
        import onnxruntime
    except Exception as error:
        raise RemoteError("missing-runtime", f"onnxruntime cannot be imported: {error}") from error
    return onnxruntime


class Session:
    def __init__(self, path: str, threads: int) -> None:
        self._path, self._threads = path, threads
        self._session = self._open()
        self.inputs = [_describe(value) for value in self._session.get_inputs()]
        self.outputs = [_describe(value) for value in self._session.get_outputs()]
        self._feeds: Dict[str, Any] = {}
        self._results: List[Any] = []

    def _open(self, profile: Optional[str] = None) -> Any:
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        try:
            return onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise RemoteError("runtime", f"onnxruntime cannot load the model: {str(error)[:300]}") from error

    def set_inputs(self, arrays: Sequence[Any]) -> None:
        self._feeds = {tensor["name"]: array.copy() for tensor, array in zip(self.inputs, arrays)}

    def invoke(self) -> None:
        self._results = self._session.run(None, self._feeds)

    def get_outputs(self) -> List[Any]:
        return list(self._results)

    def executed(self) -> Dict[str, Any]:
        """Of a second session with the same settings: a profile slows the queries that it watches."""
        operators: Dict[str, int] = collections.Counter()
        providers: Dict[str, int] = collections.Counter()
        if self._feeds:
            with tempfile.TemporaryDirectory() as folder:
                session = self._open(os.path.join(folder, "profile"))
                session.run(None, self._feeds)
                with open(session.end_profiling()) as file:
                    events = json.load(file)
            for event in events:
                told = event.get("args", {})
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    types = [next(iter(value)) for value in told.get("input_type_shape", ()) if value]
                    operators[" ".join([told["op_name"], *types[:1]])] += 1
                    providers[told["provider"]] += 1
        elsewhere = sum(count for provider, count in providers.items() if provider != "CPUExecutionProvider")
        return {
            "threads": self._threads,
            "ops": dict(operators),
            "delegate_nodes": elsewhere,
            "precision": None,
            "macs": None,
        }


def _describe(value: Any) -> Dict[str, Any]:
    if value.type not in DTYPES:
        raise RemoteError("runtime", f"onnxruntime: '{value.name}' is a {value.type}; only tensors are supported")
    return {
        "name": value.name,
        "shape": [size if isinstance(size, int) else -1 for size in value.shape],
        "dtype": DTYPES[value.type],
    }


def load(path: str, threads: int, options: Dict[str, Any]) -> Session:
    check_options("onnxruntime", OPTIONS, options)
    return Session(path, threads)
