"""Which operators of OpenVINO's model nncf must leave in float, for what they read or write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgeopt.lower import ranges
from edgeopt.lower.ranges import Operator

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]

LEFT_OUT = {"Parameter", "Constant", "Result", "Convert"}


def out_of_range(openvino: Any, model: Any, samples: Arrays) -> list[dict[str, str]]:
    """As ranges.out_of_range, of the float model in memory; samples: (n, ...) of each input."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() not in LEFT_OUT]
    operators = [
        Operator(
            str(node.get_type_name()),
            str(node.get_friendly_name()),
            tuple(_key(value) for value in node.input_values()),
            tuple(_key(value) for value in node.outputs()),
        )
        for node in nodes
    ]
    return ranges.out_of_range(operators, _runs(openvino, model, samples))


def _key(output: Any) -> tuple[str, int]:
    return str(output.get_node().get_friendly_name()), int(output.get_index())


def _runs(openvino: Any, model: Any, samples: Arrays) -> Iterator[Callable[[Any], Array | None]]:
    """For each of the first samples, a function from a tensor's key to its values; inputs and constants have none."""
    shown = model.clone()
    watched = [
        output
        for node in shown.get_ordered_ops()
        if node.get_type_name() not in LEFT_OUT
        for output in node.outputs()
        if output.get_element_type().is_real()
    ]
    keys = [_key(output) for output in watched]
    results = [openvino.opset8.result(output) for output in watched]  # add_outputs takes no names that are there twice
    shown.add_results(results)
    compiled = openvino.Core().compile_model(shown, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    first = len(model.outputs)
    for row in ranges.rows(samples):
        found = compiled(dict(enumerate(row)))
        values = {key: np.array(found[first + place]) for place, key in enumerate(keys)}
        yield values.get
