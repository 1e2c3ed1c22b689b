"""ONNX Runtime on the CPU. What was executed is read from its own profile of one query, after the measurement."""

from __future__ import annotations

import collections
import json
import math
import os
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

from ..wire import RemoteError
from . import check_options, installed, mac_type, median, summary

PACKAGES = ("onnxruntime",)
CPU = "CPUExecutionProvider"
# Providers that may be asked for; whatever they refuse, the CPU computes.
OPTIONS = {
    "provider": tuple(f"{name}ExecutionProvider" for name in ("ACL", "CUDA", "Dnnl", "OpenVINO", "QNN", "Xnnpack"))
}
# Operators that multiply: at which inputs data and weights are.
WITH_MACS = {
    **{name: (0, 1) for name in ("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "ConvTranspose", "MatMul")},
    **{name: (0, 1) for name in ("FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "Gemm", "FusedGemm")},
    **{name: (0, 1) for name in ("DynamicQuantizeMatMul",)},
    **{name: (0, 3) for name in ("QLinearConv", "QLinearMatMul", "QGemm")},
}
NAMES = {"float": "float32", "double": "float64"}  # as a profile calls types
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
    def __init__(self, path: str, threads: int, options: Dict[str, Any], batch: int) -> None:
        self._path, self._threads = path, threads
        self._provider: str = options.get("provider", CPU)
        self._session = self._open()  # None while others are open: a small board has no room for two
        self.inputs = [_describe(value) for value in self._session.get_inputs()]
        self.outputs = [_describe(value) for value in self._session.get_outputs()]
        for tensor in self.inputs if batch > 1 else ():
            if tensor["shape"][:1] != [-1]:
                words = f"input '{tensor['name']}' {tensor['shape']} has no free batch axis"
                raise RemoteError("runtime", f"{words}; {batch} samples a query need a model that is exported with one")
            tensor["shape"][0] = batch
        self._feeds: Dict[str, Any] = {}
        self._results: List[Any] = []

    def _open(self, profile: Optional[str] = None, plain: bool = False) -> Any:
        """plain: weights and tensors stay in the shapes of the model, so that what is multiplied can be counted."""
        onnxruntime = _onnxruntime()
        there = onnxruntime.get_available_providers()
        if self._provider not in there:
            raise RemoteError(
                "fallback",
                f"onnxruntime here has no {self._provider} (it has: {', '.join(there)}), so all of the model would run "
                "on the CPU",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        if plain:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            providers = list(dict.fromkeys([self._provider, CPU]))
            return onnxruntime.InferenceSession(self._path, options, providers=providers)
        except Exception as error:
            raise RemoteError("runtime", f"onnxruntime cannot load the model: {str(error)[:300]}") from error

    def set_inputs(self, arrays: Sequence[Any]) -> None:
        self._session = self._session or self._open()
        self._feeds = {tensor["name"]: array.copy() for tensor, array in zip(self.inputs, arrays)}

    def invoke(self) -> None:
        self._results = self._session.run(None, self._feeds)

    def get_outputs(self) -> List[Any]:
        return list(self._results)

    def executed(self) -> Dict[str, Any]:
        found = self.operators(1) if self._feeds else []
        counts: Dict[str, int] = collections.Counter(f"{one['op']} {one['type']}".strip() for one in found)
        elsewhere = sum(one["place"] != CPU for one in found)
        known = {"threads": self._threads, "ops": dict(counts), "delegate_nodes": elsewhere, "precision": None}
        return dict(known, **summary(found))

    def operators(self, runs: int) -> List[Dict[str, Any]]:
        """From profiles of sessions of their own: a profile slows the queries that it watches. What is multiplied is
        counted in one whose weights are not packed, in the order of the nodes that multiply."""
        by_query = self._profiled(max(runs, 1))
        products = [_product(event) for event in self._profiled(1, plain=True)[0] if _operator(event) in WITH_MACS]
        nodes = by_query[0]
        multiplying = [number for number, event in enumerate(nodes) if _operator(event) in WITH_MACS]
        if len(products) != len(multiplying):
            products = [(None, None)] * len(multiplying)
        macs = dict(zip(multiplying, products))
        found = []
        for number, event in enumerate(nodes):
            told = event["args"]
            types = [next(iter(value)) for value in told.get("input_type_shape", ()) if value]
            count, kind = macs.get(number, (None, None))
            kind = kind or (NAMES.get(types[0], types[0]) if types else "")
            own = {"op": told["op_name"], "name": event["name"][: -len("_kernel_time")], "place": told["provider"]}
            times = [query[number]["dur"] * 1e-6 for query in by_query if len(query) == len(nodes)] if runs else []
            found.append(dict(own, type=kind, macs=count, seconds=median(times)))
        return found

    def _profiled(self, runs: int, plain: bool = False) -> List[List[Dict[str, Any]]]:
        """Of each query after the first, which warms up, the events of its nodes in order."""
        self._session = None
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(os.path.join(folder, "profile"), plain)
            for _ in range(runs + 1):
                session.run(None, self._feeds)
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        queries: List[List[Dict[str, Any]]] = []
        own: List[Dict[str, Any]] = []
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                own.append(event)
            elif event.get("name") == "model_run":
                queries.append(own)
                own = []
        return queries[1:] or [own]


def _operator(event: Dict[str, Any]) -> str:
    return str(event["args"]["op_name"])


def _product(event: Dict[str, Any]) -> Any:
    """(multiply-accumulates, type) of a node that multiplies; (None, None) where the profile does not tell its shapes.
    Convolutions' weights are (out, in / groups, kh, kw)."""
    told, operator = event["args"], _operator(event)
    data_at, weights_at = WITH_MACS[operator]
    given: List[Any] = [next(iter(value.items()), ("", [])) for value in told.get("input_type_shape", ())]
    results: List[Any] = [next(iter(value.items()), ("", [])) for value in told.get("output_type_shape", ())]
    if len(given) <= weights_at or not results:
        return None, None
    (data_type, data), (weights_type, weights) = given[data_at], given[weights_at]
    kind = mac_type(NAMES.get(data_type, data_type), NAMES.get(weights_type, weights_type))
    result = results[0][1]
    if "Conv" in operator:
        return math.prod(data if "Transpose" in operator else result) * math.prod(weights[1:]), kind
    if "Gemm" in operator:
        return math.prod(data) * math.prod(result[-1:]), kind
    return math.prod(result) * math.prod(data[-1:]), kind


def _describe(value: Any) -> Dict[str, Any]:
    if value.type not in DTYPES:
        raise RemoteError("runtime", f"onnxruntime: '{value.name}' is a {value.type}; only tensors are supported")
    return {
        "name": value.name,
        "shape": [size if isinstance(size, int) else -1 for size in value.shape],
        "dtype": DTYPES[value.type],
    }


def load(path: str, threads: int, options: Dict[str, Any], batch: int = 1) -> Session:
    check_options("onnxruntime", OPTIONS, options)
    return Session(path, threads, options, batch)
