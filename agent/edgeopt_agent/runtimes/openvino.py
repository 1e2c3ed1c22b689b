"""OpenVINO on the CPU: precision and threads pinned, one stream; what was executed is read from the runtime model."""

from __future__ import annotations

import collections
import math
import sys
from typing import Any, Dict, List, Optional, Sequence

from ..wire import RemoteError
from . import check_options, installed, median, summary

PACKAGES = ("openvino",)
# precision: of what is not quantized; without it the runtime might choose bf16.
OPTIONS = {"precision": ("f32", "f16"), "device": ("CPU", "GPU", "NPU")}


def available() -> Optional[Dict[str, str]]:
    return installed(PACKAGES)


def require() -> None:
    _openvino()


def _openvino() -> Any:
    if available() is None:
        raise RemoteError(
            "missing-runtime",
            f"runtime 'openvino' is not installed for {sys.executable}; install openvino for this Python, or name "
            "another Python with --board-python",
        )
    try:
        import openvino
    except Exception as error:
        raise RemoteError("missing-runtime", f"openvino cannot be imported: {error}") from error
    return openvino


class Session:
    def __init__(self, path: str, threads: int, options: Dict[str, Any], batch: int) -> None:
        self._path, self._threads, self._options, self._batch = path, threads, options, batch
        self._device: str = options.get("device", "CPU")
        self._compiled = self._compile({})
        self._request = self._compiled.create_infer_request()
        self._tensor = _openvino().Tensor
        self.inputs = [_describe(port) for port in self._compiled.inputs]
        self.outputs = [_describe(port) for port in self._compiled.outputs]
        self._is_fixed = [-1 not in tensor["shape"] for tensor in self.inputs]
        self.invoke = self._request.infer

    def _compile(self, more: Dict[str, Any]) -> Any:
        pinned = {
            "INFERENCE_PRECISION_HINT": self._options.get("precision", "f32"),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self._device == "CPU":
            pinned["INFERENCE_NUM_THREADS"] = self._threads
        core = _openvino().Core()
        there = [name.split(".")[0] for name in core.available_devices]
        if self._device not in there:
            raise RemoteError(
                "fallback",
                f"openvino finds no {self._device} here (it finds: {', '.join(there)}), so all of the model would run "
                "on the CPU",
            )
        try:
            model = core.read_model(self._path)
            if self._batch > 1:
                model.reshape({port: [self._batch, *list(port.partial_shape)[1:]] for port in model.inputs})
            return core.compile_model(model, self._device, dict(pinned, **more))
        except Exception as error:
            words = f"with {self._batch} samples a query" if self._batch > 1 else "the model"
            raise RemoteError("runtime", f"openvino cannot load {words}: {_words(error)}") from error

    def set_inputs(self, arrays: Sequence[Any]) -> None:
        for index, (array, is_fixed) in enumerate(zip(arrays, self._is_fixed)):
            if is_fixed:
                self._request.get_input_tensor(index).data[:] = array
            else:
                self._request.set_input_tensor(index, self._tensor(array, shared_memory=False))

    def get_outputs(self) -> List[Any]:
        return [self._request.get_output_tensor(index).data.copy() for index in range(len(self.outputs))]

    def executed(self) -> Dict[str, Any]:
        found = self.operators(0)
        threads = self._threads
        if self._device == "CPU":
            threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        return {
            "threads": threads,
            "ops": dict(collections.Counter(f"{one['op']} {one['type']}" for one in found)),
            "delegate_nodes": 0 if self._device == "CPU" else len(found),
            "precision": self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
            **summary(found),
        }

    def operators(self, runs: int) -> List[Dict[str, Any]]:
        compiled, times = self._timed(runs) if runs else (self._compiled, {})
        found = []
        for node in compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            kind, stored, kernel = (
                str(facts[key].astype(str)) for key in ("layerType", "runtimePrecision", "primitiveType")
            )
            if kind in ("Const", "Input", "Output"):
                continue
            precision, name = _computed(kernel, stored), node.get_friendly_name()
            precision = "int8" if precision in ("i8", "u8") else precision
            own = {"op": kind, "name": name, "place": self._device, "type": precision}
            found.append(dict(own, macs=_macs(kind, node) or None, seconds=times.get(name)))
        return found

    def _timed(self, runs: int) -> Any:
        """(a session of its own that counts, {node: median seconds}); a node that was optimized away has none."""
        compiled = self._compile({"PERF_COUNT": True})
        request = compiled.create_infer_request()
        for index in range(len(self.inputs)):
            request.set_input_tensor(index, self._tensor(self._request.get_input_tensor(index).data.copy()))
        samples: Dict[str, List[float]] = {}
        for query in range(runs + 1):
            request.infer()
            for node in request.profiling_info if query else ():  # the first one warms up
                if node.status == node.Status.EXECUTED:
                    samples.setdefault(node.node_name, []).append(node.real_time.total_seconds())
        return compiled, {name: median(own) for name, own in samples.items()}


def _computed(kernel: str, stored: str) -> str:
    """The precision that a kernel computes in: its name ends in it (brgconv_avx512_amx_I8, jit_avx2_f32). What the
    runtime calls a node's precision is that of its weights as they are stored."""
    last = kernel.rsplit("_", 1)[-1].lower()
    return last if last in ("i8", "u8", "f16", "bf16", "f32") else stored


def _macs(kind: str, node: Any) -> int:
    """Multiply-accumulates of an executed node; 0 where its shapes are only known while it runs. Filters are (out, in,
    spatial), transposed ones (in, out, spatial), grouped ones have the groups before."""
    if kind not in ("Convolution", "Deconvolution", "FullyConnected", "MatMul"):
        return 0
    ports = [node.input(0), node.input(1), node.output(0)]
    if any(port.get_partial_shape().is_dynamic for port in ports):
        return 0
    data, weights, result = ([int(size) for size in port.get_shape()] for port in ports)
    if kind in ("Convolution", "Deconvolution"):
        inner = math.prod(weights[len(weights) - len(data) + 1 :])
        return math.prod(data if kind == "Deconvolution" else result) * inner
    return math.prod(result) * data[-1]


def _describe(port: Any) -> Dict[str, Any]:
    return {
        "name": port.get_any_name() if port.get_names() else "?",
        "shape": [-1 if size.is_dynamic else int(size.get_length()) for size in port.get_partial_shape()],
        "dtype": port.get_element_type().to_dtype().name,
    }


def _words(error: Exception) -> str:
    """The last line of an error that begins with the places in OpenVINO's sources where it passed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def load(path: str, threads: int, options: Dict[str, Any], batch: int = 1) -> Session:
    check_options("openvino", OPTIONS, options)
    return Session(path, threads, options, batch)
