"""The closed list of array operations and metrics, run by host and board alike.

A step is {"op": name, ...parameters}. Arrays carry their batch axis first: axis 0 is the sample.
Scores are per sample and larger is better, so that a drop is always a loss.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence, Tuple

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
PARAMETERS: Dict[str, Dict[str, str]] = {
    "normalize": {"mean": "numbers", "std": "numbers", "axis": "integer"},
    "scale": {"by": "number", "offset": "number"},
    "transpose": {"axes": "integers"},
    "expand": {"axis": "integer"},
    "cast": {"dtype": "type"},
    "quantize": {"scale": "positive number", "zero_point": "integer", "dtype": "small integer type"},
    "dequantize": {"scale": "positive number", "zero_point": "integer"},
    "softmax": {"axis": "integer"},
    "argmax": {"axis": "integer"},
}
INT_TYPES = ("int8", "uint8", "int16")
TYPES = (*INT_TYPES, "bool", "int32", "int64", "float16", "float32", "float64")


MOST_INTEGER, MOST_NUMBER = 2**31, 3.4e38  # what int32 and float32 hold, in which it is computed
MOST_STEPS, MOST_AXES, MOST_CHANNELS = 1000, 32, 100_000


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_INTEGER


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST_NUMBER


def _is_list(value: Any, holds: Callable[[Any], bool], most: int) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) <= most and all(holds(item) for item in value)


KINDS: Dict[str, Tuple[Callable[[Any], bool], str]] = {
    "integer": (_is_integer, "an integer"),
    "number": (_is_number, "a finite number"),
    "positive number": (lambda value: _is_number(value) and value > 0, "a finite number above 0"),
    "integers": (lambda value: _is_list(value, _is_integer, MOST_AXES), "a list of integers"),
    "numbers": (lambda value: _is_list(value, _is_number, MOST_CHANNELS), "a list of finite numbers"),
    "type": (lambda value: value in TYPES, f"one of {', '.join(TYPES)}"),
    "small integer type": (lambda value: value in INT_TYPES, f"one of {', '.join(INT_TYPES)}"),
}


def problems(steps: Any) -> List[str]:
    """What is wrong with a list of steps, in words; empty when it can be run."""
    if not isinstance(steps, list):
        return [f"steps must be a list, not {steps!r:.60}"]
    if len(steps) > MOST_STEPS:
        return [f"{len(steps)} steps, at most {MOST_STEPS} are allowed"]
    found = []
    for index, step in enumerate(steps):
        name = step.get("op") if isinstance(step, dict) else None
        if not isinstance(name, str) or name not in OPERATIONS:
            found.append(f"step {index}: unknown op {name!r:.60}; allowed: {', '.join(OPERATIONS)}")
        else:
            found += [f"step {index} ({name}): {problem}" for problem in _step_problems(step, PARAMETERS[name])]
    return found


def _step_problems(step: Dict[str, Any], wanted: Dict[str, str]) -> List[str]:
    found = [
        f"unknown key {key!r:.60}; allowed: {', '.join(wanted)}" for key in step if key != "op" and key not in wanted
    ]
    for key, kind in wanted.items():
        is_right, words = KINDS[kind]
        if key not in step:
            found.append(f"'{key}' is missing; it must be {words}")
        elif not is_right(step[key]):
            found.append(f"'{key}' must be {words}, not {step[key]!r:.60}")
    if found:
        return found
    if step["op"] == "normalize" and 0 in step["std"]:
        return ["'std' must not hold 0"]
    if step["op"] == "normalize" and len({1, len(step["mean"]), len(step["std"])}) > 2:
        return [f"'mean' has {len(step['mean'])} numbers and 'std' {len(step['std'])}; they must be as many"]
    if step["op"] == "transpose" and sorted(step["axes"]) != list(range(len(step["axes"]))):
        return [f"'axes' must name each axis from 0 on once, not {step['axes']!r}"]
    return []


def apply(steps: Sequence[Dict[str, Any]], array: Any) -> Any:
    """`array` (n, ...) after every step in order. Raises RemoteError('bad-request') for steps off the list, and for
    those that the array does not fit."""
    wrong = problems(list(steps))
    if wrong:
        raise RemoteError("bad-request", "preprocess: " + "; ".join(wrong))
    for index, step in enumerate(steps):
        parameters = {key: value for key, value in step.items() if key != "op"}
        try:
            array = OPERATIONS[step["op"]](array, **parameters)
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise RemoteError(
                "bad-request",
                f"preprocess: step {index} ({step['op']}) does not fit {array.dtype.name} {list(array.shape)}: {error}",
            ) from error
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
