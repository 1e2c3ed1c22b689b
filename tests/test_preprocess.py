"""The closed list of array operations: against plain formulas over Python numbers, and wrong steps named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from edgeopt_agent import preprocess
from edgeopt_agent.wire import RemoteError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
small = st.floats(-1024, 1024, width=32, allow_subnormal=False)
scales = st.floats(2**-10, 1024, width=32)
channels = 3
arrays = npst.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 4), st.just(channels)), elements=small)
per_channel = st.lists(small, min_size=channels, max_size=channels)
stds = st.lists(scales, min_size=channels, max_size=channels)
Cell = Callable[[float, int], float]


def run(array: np.ndarray, op: str, **parameters: Any) -> np.ndarray:
    result: np.ndarray = preprocess.apply([{"op": op, **parameters}], array)
    return result


def cells(array: np.ndarray, formula: Cell) -> list[float]:
    """formula(value, channel) of every value of (..., channels), in Python's own arithmetic."""
    return [formula(float(array[index]), index[-1]) for index in np.ndindex(*array.shape)]


def close(got: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(got.reshape(-1).astype(float), expected, rtol=2e-5, atol=2e-3)


@relaxed
@given(arrays, per_channel, stds)
def test_normalize(array: np.ndarray, mean: list[float], std: list[float]) -> None:
    got = run(array, "normalize", mean=mean, std=std, axis=-1)
    assert (got.dtype, got.shape) == (np.float32, array.shape)
    expected = cells(array, lambda value, channel: (value - mean[channel]) / std[channel])
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-4, atol=1e-4 * 1e3 / min(std))


@relaxed
@given(arrays, small, small)
def test_scale(array: np.ndarray, by: float, offset: float) -> None:
    got = run(array, "scale", by=by, offset=offset)
    assert got.dtype == np.float32
    expected = cells(array, lambda value, _: value * by + offset)
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-5, atol=1e-5 * (1 + abs(by) * 1e3 + abs(offset)))


@relaxed
@given(arrays, st.permutations(range(3)))
def test_transpose(array: np.ndarray, axes: list[int]) -> None:
    got = run(array, "transpose", axes=axes)
    assert got.flags.c_contiguous
    for index in np.ndindex(*got.shape):
        source = [0, 0, 0]
        for position, axis in enumerate(axes):
            source[axis] = index[position]
        assert got[index] == array[tuple(source)]


@relaxed
@given(arrays, st.integers(-4, 3))
def test_expand(array: np.ndarray, axis: int) -> None:
    shape = list(array.shape)
    shape.insert(axis if axis >= 0 else axis + 4, 1)
    got = run(array, "expand", axis=axis)
    assert list(got.shape) == shape
    assert got.reshape(-1).tolist() == array.reshape(-1).tolist()


@relaxed
@given(npst.arrays(np.int16, (2, 3), elements=st.integers(-100, 100)), st.sampled_from(["float32", "int32", "int8"]))
def test_cast(array: np.ndarray, dtype: str) -> None:
    got = run(array, "cast", dtype=dtype)
    assert got.dtype.name == dtype
    assert got.tolist() == array.tolist()


@relaxed
@given(arrays, scales, st.integers(-128, 127), st.sampled_from(preprocess.INT_TYPES))
def test_quantize_is_the_nearest_integer_within_the_type(
    array: np.ndarray, scale: float, zero_point: int, dtype: str
) -> None:
    low, high = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}[dtype]
    got = run(array, "quantize", scale=scale, zero_point=zero_point, dtype=dtype)
    assert got.dtype.name == dtype
    for value, integer in zip(array.reshape(-1).tolist(), got.reshape(-1).tolist(), strict=True):
        exact = min(max(value / scale + zero_point, low), high)
        assert low <= integer <= high
        assert abs(integer - exact) <= 0.5 + 1e-6 * (1 + abs(value / scale))


@relaxed
@given(npst.arrays(np.int8, (2, 3)), scales, st.integers(-128, 127))
def test_dequantize_and_back_is_the_same_integer(array: np.ndarray, scale: float, zero_point: int) -> None:
    real = run(array, "dequantize", scale=scale, zero_point=zero_point)
    assert real.dtype == np.float32
    close(real, [(value - zero_point) * scale for value in map(float, array.reshape(-1).tolist())])
    again = run(real, "quantize", scale=scale, zero_point=zero_point, dtype="int8")
    assert again.tolist() == array.tolist()


@relaxed
@given(npst.arrays(np.float32, (2, 5), elements=st.floats(-8192, 8192, width=32, allow_subnormal=False)))
def test_softmax(array: np.ndarray) -> None:
    got = run(array, "softmax", axis=-1)
    for row, shares in zip(array.tolist(), got.tolist(), strict=True):
        exponents = [math.exp(value - max(row)) for value in row]
        np.testing.assert_allclose(shares, [value / sum(exponents) for value in exponents], rtol=1e-4, atol=1e-6)


@relaxed
@given(npst.arrays(np.float32, (3, 4), elements=small))
def test_argmax_is_the_first_largest(array: np.ndarray) -> None:
    assert run(array, "argmax", axis=1).tolist() == [row.index(max(row)) for row in array.tolist()]


@relaxed
@given(arrays)
def test_steps_run_in_their_order_and_leave_the_input_alone(array: np.ndarray) -> None:
    kept = array.copy()
    steps = [{"op": "scale", "by": 2.0, "offset": 1.0}, {"op": "scale", "by": 3.0, "offset": 0.0}]
    close(preprocess.apply(steps, array), cells(array, lambda value, _: (value * 2 + 1) * 3))
    np.testing.assert_array_equal(array, kept)
    assert preprocess.apply([], array) is array


GOOD: dict[str, dict[str, Any]] = {
    "normalize": {"mean": [1, 2.0], "std": [1.0, 2], "axis": 1},
    "scale": {"by": 2, "offset": 0.5},
    "transpose": {"axes": [0, 2, 1]},
    "expand": {"axis": -1},
    "cast": {"dtype": "float32"},
    "quantize": {"scale": 0.1, "zero_point": -3, "dtype": "int8"},
    "dequantize": {"scale": 0.1, "zero_point": 0},
    "softmax": {"axis": 1},
    "argmax": {"axis": 1},
}
WRONG_KINDS = {
    "integer": ["1", 1.5, True, None, [1]],
    "number": ["1", True, None, math.nan, math.inf, [1.0]],
    "positive number": ["1", True, None, math.nan, math.inf, 0, -0.1],
    "integers": [1, "01", [], [1.5], [True], [None], {}],
    "numbers": [1.0, "12", [], ["a"], [math.nan], [None], {}],
    "type": ["O", "float128", "complex64", 8, None, ["int8"]],
    "small integer type": ["int32", "float32", "int64", None, ["int8"]],
}


def test_every_operation_is_tried() -> None:
    assert set(GOOD) == set(preprocess.OPERATIONS) == set(preprocess.PARAMETERS)
    assert preprocess.problems([{"op": op, **parameters} for op, parameters in GOOD.items()]) == []


@pytest.mark.parametrize(("op", "key"), [(op, key) for op, keys in GOOD.items() for key in keys])
def test_every_wrong_parameter_is_named_with_step_and_key(op: str, key: str) -> None:
    before = {"op": "expand", "axis": 0}
    wrong = WRONG_KINDS[preprocess.PARAMETERS[op][key]]
    for value in wrong:
        found = preprocess.problems([before, {"op": op, **GOOD[op], key: value}])
        assert len(found) == 1, f"{value!r} was taken"
        assert found[0].startswith(f"step 1 ({op}): '{key}' must be ")
        assert repr(value) in found[0]
    missing = {name: value for name, value in GOOD[op].items() if name != key}
    assert preprocess.problems([before, {"op": op, **missing}])[0].startswith(f"step 1 ({op}): '{key}' is missing")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (["softmax"], "step 0: unknown op None; allowed: normalize, scale"),
        ([{"op": ["scale"]}], r"step 0: unknown op \['scale'\]"),
        ([{"op": "resize"}], "step 0: unknown op 'resize'"),
        ([{"op": "argmax", "axis": 1, "dim": 1}], r"step 0 \(argmax\): unknown key 'dim'; allowed: axis"),
        ([{"op": "argmax", "axis": 1, 7: 1}], "unknown key 7"),
        ([{"op": "normalize", "mean": [0], "std": [1, 0], "axis": 1}], "'std' must not hold 0"),
        ([{"op": "normalize", "mean": [0, 0], "std": [1, 1, 1], "axis": 1}], "'mean' has 2 numbers and 'std' 3"),
        ([{"op": "transpose", "axes": [0, 2]}], "'axes' must name each axis"),
        ([{"op": "transpose", "axes": [0, 0, 1]}], "'axes' must name each axis"),
    ],
)
def test_wrong_steps_are_explained(steps: list[Any], words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        preprocess.apply(steps, np.zeros((1, 2, 3), np.float32))


def test_steps_must_be_a_list() -> None:
    assert preprocess.problems("normalize") == ["steps must be a list, not 'normalize'"]


@relaxed
@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["op", "axis", "mean", "std", "dtype", "scale"]), x | st.sampled_from(sorted(GOOD))
            )
        ),
    )
)
def test_any_json_is_judged_without_an_exception(steps: Any) -> None:
    assert all(isinstance(problem, str) for problem in preprocess.problems(steps))


@pytest.mark.parametrize(
    "step",
    [
        {"op": "normalize", "mean": [0, 0], "std": [1, 1], "axis": 2},
        {"op": "normalize", "mean": [0], "std": [1], "axis": 3},
        {"op": "transpose", "axes": [0, 1]},
        {"op": "expand", "axis": 5},
        {"op": "softmax", "axis": 3},
        {"op": "argmax", "axis": -4},
    ],
)
def test_a_step_that_the_array_does_not_fit_is_named_with_its_shape(step: dict[str, Any]) -> None:
    words = rf"step 1 \({step['op']}\) does not fit float32 \[1, 2, 3\]"
    with pytest.raises(RemoteError, match=words) as caught:
        preprocess.apply([{"op": "cast", "dtype": "float32"}, step], np.zeros((1, 2, 3)))
    assert caught.value.kind == "bad-request"


@relaxed
@given(
    npst.arrays(np.float32, (6, 7), elements=small, unique=True), st.lists(st.integers(0, 6), min_size=6, max_size=6)
)
def test_top_k(logits: np.ndarray, labels: list[int]) -> None:
    def ranks(k: int) -> list[float]:
        rows = zip(logits.tolist(), labels, strict=True)
        return [float(sum(other > row[label] for other in row) < k) for row, label in rows]

    for metric, k in (("top1", 1), ("top5", 5)):
        got = preprocess.score(metric, [logits], np.array(labels))
        assert got.dtype == np.float64
        assert got.tolist() == ranks(k)


@relaxed
@given(npst.arrays(np.float32, (4, 2, 3), elements=small), npst.arrays(np.float32, (4, 2, 3), elements=small))
def test_negative_mae(outputs: np.ndarray, labels: np.ndarray) -> None:
    expected = [
        -sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 6
        for x, y in zip(outputs.reshape(4, -1).tolist(), labels.reshape(4, -1).tolist(), strict=True)
    ]
    np.testing.assert_allclose(preprocess.score("negative_mae", [outputs], labels), expected, rtol=1e-4, atol=1e-3)
