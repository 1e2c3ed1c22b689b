"""The closed list of array operations and metrics, run by host and board alike.

A step is {"op": name, ...parameters}. Arrays carry their batch axis first: axis 0 is the sample.
Scores are per sample and larger is better, so that a drop is always a loss.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence

from .wire import RemoteError


def _normalize(x: Any, mean: List[float], std: List[float], axis: int) -> Any:
    import numpy as np

    shape = [1] * x.ndim
    shape[axis] = -1
    mean_array = np.asarray(mean, dtype=np.float32).reshape(shape)
    return (x.astype(np.float32) - mean_array) / np.asarray(std, dtype=np.float32).reshape(shape)


def _scale(x: Any, by: float, offset: float) -> Any:
    import numpy as np

    return x.astype(np.float32) * np.float32(by) + np.float32(offset)


def _transpose(x: Any, axes: List[int]) -> Any:
    import numpy as np

    return np.ascontiguousarray(np.transpose(x, axes))


def _expand(x: Any, axis: int) -> Any:
    import numpy as np

    return np.expand_dims(x, axis)


def _cast(x: Any, dtype: str) -> Any:
    return x.astype(dtype)


def _quantize(x: Any, scale: float, zero_point: int, dtype: str) -> Any:
    import numpy as np

    limits = np.iinfo(dtype)
    return np.clip(np.rint(x / scale) + zero_point, limits.min, limits.max).astype(dtype)


def _dequantize(x: Any, scale: float, zero_point: int) -> Any:
    import numpy as np

    return (x.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def _softmax(x: Any, axis: int) -> Any:
    import numpy as np

    exponent = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponent / exponent.sum(axis=axis, keepdims=True)


def _argmax(x: Any, axis: int) -> Any:
    return x.argmax(axis=axis)


OPERATIONS: Dict[str, Callable[..., Any]] = {
    "normalize": _normalize,
    "scale": _scale,
    "transpose": _transpose,
    "expand": _expand,
    "cast": _cast,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "softmax": _softmax,
    "argmax": _argmax,
}
PARAMETERS: Dict[str, Dict[str, type]] = {
    "normalize": {"mean": list, "std": list, "axis": int},
    "scale": {"by": float, "offset": float},
    "transpose": {"axes": list},
    "expand": {"axis": int},
    "cast": {"dtype": str},
    "quantize": {"scale": float, "zero_point": int, "dtype": str},
    "dequantize": {"scale": float, "zero_point": int},
    "softmax": {"axis": int},
    "argmax": {"axis": int},
}
INT_TYPES = ("int8", "uint8", "int16")


def problems(steps: Any) -> List[str]:
    """What is wrong with a list of steps, in words; empty when it can be run."""
    if not isinstance(steps, list):
        return [f"steps must be a list, not {steps!r}"]
    found = []
    for index, step in enumerate(steps):
        name = step.get("op") if isinstance(step, dict) else None
        if name not in OPERATIONS:
            found.append(f"step {index}: unknown op {name!r}; allowed: {', '.join(OPERATIONS)}")
            continue
        wanted = PARAMETERS[name]
        for key in sorted(set(step) - set(wanted) - {"op"}):
            found.append(f"step {index} ({name}): unknown key '{key}'; allowed: {', '.join(wanted)}")
        for key, kind in wanted.items():
            value = step.get(key)
            accepted = (int, float) if kind is float else kind
            if not isinstance(value, accepted) or isinstance(value, bool):
                found.append(f"step {index} ({name}): '{key}' must be {kind.__name__}, not {value!r}")
        if name == "normalize" and 0.0 in (step.get("std") or []):
            found.append(f"step {index} (normalize): 'std' must not hold 0")
        if name == "quantize" and step.get("dtype") not in INT_TYPES:
            found.append(f"step {index} (quantize): 'dtype' must be one of {', '.join(INT_TYPES)}")
    return found


def apply(steps: Sequence[Dict[str, Any]], array: Any) -> Any:
    """`array` (n, ...) after every step in order. Raises RemoteError('bad-request') for steps off the list."""
    wrong = problems(list(steps))
    if wrong:
        raise RemoteError("bad-request", "preprocess: " + "; ".join(wrong))
    for step in steps:
        parameters = {key: value for key, value in step.items() if key != "op"}
        array = OPERATIONS[step["op"]](array, **parameters)
    return array


def _top_k(outputs: Sequence[Any], labels: Any, k: int) -> Any:
    import numpy as np

    logits = outputs[0].reshape(len(labels), -1)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return (best == np.asarray(labels).reshape(-1, 1)).any(axis=1).astype(np.float64)


def _top1(outputs: Sequence[Any], labels: Any) -> Any:
    return _top_k(outputs, labels, 1)


def _top5(outputs: Sequence[Any], labels: Any) -> Any:
    return _top_k(outputs, labels, 5)


def _negative_mae(outputs: Sequence[Any], labels: Any) -> Any:
    import numpy as np

    return -np.abs(outputs[0] - labels).reshape(len(labels), -1).mean(axis=1).astype(np.float64)


METRICS: Dict[str, Callable[[Sequence[Any], Any], Any]] = {
    "top1": _top1,
    "top5": _top5,
    "negative_mae": _negative_mae,
}


def score(metric: str, outputs: Sequence[Any], labels: Any) -> Any:
    """Per-sample scores (n,) float64 from outputs, each (n, ...), and labels (n, ...)."""
    return METRICS[metric](outputs, labels)
