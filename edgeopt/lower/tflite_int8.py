"""Static int8 of a float .tflite by ai-edge-quantizer: weights per output channel, activations per tensor with their
true range over the calibration samples, biases corrected; what int8 cannot hold stays in float and is told.

Its own calibration keeps a moving average of each tensor's minimum and maximum, which clips: EfficientNet-Lite0 loses
2.0 points with it and 0.1 with the true ones, which its calibrator is told to keep here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeopt.errors import LoweringFault
from edgeopt.lower import Progress, ranges, tflite_bias
from edgeopt.lower.ranges import Operator
from edgeopt.lower.tflite_reason import named_failure

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]

CALIBRATION_CHUNK = 32
_FLOAT32 = 0  # a tensor type of the flatbuffer schema
SCOPE_LIMIT = 10_000  # characters of an operator's scope that ai-edge-quantizer looks at
WEIGHTED = {*tflite_bias.LAYERS, "TRANSPOSE_CONV", "BATCH_MATMUL", "EMBEDDING_LOOKUP", "GATHER"}
TAKE_THE_LARGEST = {"MAX_POOL_2D", "REDUCE_MAX", "MAXIMUM"}  # for which padding with -infinity is saturated rightly
DEAD_RANGE = (0.0, 1.0)  # of a tensor that is always zero: what comes there one day needs some range
LEAST_RATIO = 1 / 128  # of an output's step to the product of its layer's: XNNPACK refuses less than 1/256


def quantize(
    content: bytes, calibration: Arrays, in_float: Sequence[str], progress: Progress
) -> tuple[bytes, dict[str, Any]]:
    """(the int8 model, notes); calibration: (n, ...) per input as the model takes it; in_float: names of tensors whose
    operators stay in float.

    notes: "bias_corrections", and for each operator that stays in float for its range "out_of_range": {"operator",
    "name", "reason"}; "widened": {name: reason} of tensors and layers whose range had to be more than their values.
    Raises ModelError.
    """
    from ai_edge_quantizer import quantizer

    with named_failure("the float model cannot be run for its ranges", LoweringFault):
        graph = _read(content)
        out_of_range = ranges.out_of_range(graph.operators, _runs(content, graph.constants, calibration))
    kept = dict.fromkeys([*in_float, *(own["name"] for own in out_of_range)])
    recipe = _recipe([*(graph.scopes[name] for name in kept), *graph.inner])
    found = _calibrated(content, recipe, calibration, progress)
    widened = _widen(graph, found)
    progress("quantizing to int8")
    with named_failure("ai-edge-quantizer cannot quantize the model", LoweringFault):
        work = quantizer.Quantizer(content, recipe.get_quantization_recipe())
        result = work.quantize(found, enable_progress_bar=False, enable_progress_report=False)
    with named_failure("the biases of the int8 artifact cannot be corrected", LoweringFault):
        made, corrected, coarser = tflite_bias.correct(
            content,
            bytes(result.quantized_model),
            calibration,
            lambda done, total: progress("correcting biases", done, total),
        )
    return made, {
        "bias_corrections": corrected,
        "out_of_range": out_of_range,
        "widened": {**widened, **coarser},
    }


@dataclass(frozen=True)
class Graph:
    """The main graph of a .tflite. scopes: what ai-edge-quantizer's regular expressions meet, by operator's name;
    inner: of the operators of other graphs, such as the body of a reduction, which are run where no calibration sees
    them; constants: its float tensors that the file holds."""

    operators: tuple[Operator, ...]
    scopes: dict[str, str]
    inner: tuple[str, ...]
    names: tuple[str, ...]
    constants: dict[int, Array]


def _read(content: bytes) -> Graph:
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    main, *others = model.subgraphs
    names = tuple(tensor.name.decode("utf-8") for tensor in main.tensors)
    constants = {}
    for index, tensor in enumerate(main.tensors):
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data) and tensor.type == _FLOAT32:
            constants[index] = np.frombuffer(np.asarray(data, dtype=np.uint8).tobytes(), "<f4")
    kinds = [str(flatbuffer_utils.opcode_to_name(model, op.opcodeIndex)) for op in main.operators]
    readers: dict[int, set[str]] = {}
    for op, kind in zip(main.operators, kinds, strict=True):
        for index in op.inputs:
            readers.setdefault(int(index), set()).add(kind)
    operators = []
    for op, kind in zip(main.operators, kinds, strict=True):
        inputs, outputs = (tuple(int(index) for index in ends if index >= 0) for ends in (op.inputs, op.outputs))
        operands = {index: constants[index] for index in inputs if index in constants and kind not in WEIGHTED}
        saturates = kind == "PADV2" and readers.get(outputs[0], set()) <= TAKE_THE_LARGEST
        operators.append(Operator(kind, names[outputs[0]], inputs, outputs, operands, saturates))
    scopes = {names[int(op.outputs[0])]: _scope(main, op) for op in main.operators}
    return Graph(
        tuple(operators),
        scopes,
        tuple(_scope(graph, op) for graph in others for op in graph.operators),
        names,
        constants,
    )


def _scope(graph: Any, op: Any) -> str:
    return "".join(f"{graph.tensors[index].name.decode('utf-8')};" for index in op.outputs if index >= 0)[:SCOPE_LIMIT]


def _runs(content: bytes, constants: dict[int, Array], samples: Arrays) -> Iterator[Callable[[int], Array | None]]:
    """For each of the first samples, a function from a tensor's index to its values, which constants have none."""
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that keeping every tensor takes memory: here it is wanted
        interpreter = Interpreter(model_content=content, num_threads=1, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    for row in ranges.rows(samples):
        for detail, array in zip(interpreter.get_input_details(), row, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        yield lambda index: None if index in constants else interpreter.get_tensor(index)


def _recipe(in_float: Sequence[str]) -> Any:
    """in_float: scopes of the operators that are not quantized."""
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    leave = {"algorithm_key": quantizer.AlgorithmName.NO_QUANTIZE}
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", end, **leave)  # keeps the artifact's own inputs float32
    for scope in in_float:
        recipe.add_quantization_config(f"^{re.escape(scope)}$", qtyping.TFLOperationName.ALL_SUPPORTED, **leave)
    return recipe


def _calibrated(content: bytes, recipe: Any, calibration: Arrays, progress: Progress) -> dict[str, Any]:
    """{tensor's name: {"min", "max"}}."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    total = len(calibration[0])
    with named_failure("ai-edge-quantizer cannot calibrate the model", LoweringFault):
        found = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    for start in range(0, total, CALIBRATION_CHUNK):
        progress("calibrating", start, total)
        stop = min(start + CALIBRATION_CHUNK, total)
        feed = [{f"args_{i}": array[n : n + 1] for i, array in enumerate(calibration)} for n in range(start, stop)]
        with named_failure("ai-edge-quantizer cannot calibrate the model", LoweringFault):
            found.calibrate({"serving_default": feed}, recipe)
    return dict(found.get_model_qsvs())


def _widen(graph: Graph, found: dict[str, Any]) -> dict[str, str]:
    """Gives tensors that are always zero a range, and the outputs of layers one that their weights can be scaled to,
    in `found`; {name: why} of each."""
    told = {}
    for own in graph.operators:
        for name in (graph.names[index] for index in (*own.inputs, *own.outputs) if index not in graph.constants):
            if name in found and "min" in found[name] and _spread(found[name]) == 0:
                found[name] = _between(found[name], *DEAD_RANGE)
                told[name] = "it is zero for every calibration sample: a layer may be dead"
        if own.kind in tflite_bias.LAYERS and own.inputs[1] in graph.constants:
            values, name = found.get(graph.names[own.inputs[0]]), graph.names[own.outputs[0]]
            least = 255 * LEAST_RATIO * _step(values, graph.constants[own.inputs[1]])
            if name in found and "min" in found[name] and (spread := _spread(found[name])) < least:
                low, high = float(np.min(found[name]["min"])), float(np.max(found[name]["max"]))
                found[name] = _between(found[name], low * least / spread, high * least / spread)
                told[name] = f"its values, within {spread:.3g}, are below one step of its weights"
    return told


def _spread(values: dict[str, Any]) -> float:
    return max(float(np.max(values["max"])), 0.0) - min(float(np.min(values["min"])), 0.0)


def _between(values: dict[str, Any], low: float, high: float) -> dict[str, Any]:
    return {**values, "min": np.full_like(values["min"], low), "max": np.full_like(values["max"], high)}


def _step(values: dict[str, Any] | None, weights: Array) -> float:
    """One step of a layer's input times one of its coarsest weights."""
    if not values or "min" not in values:
        return 0.0
    return _spread(values) / 255 * float(np.abs(weights).max(initial=0.0)) / 127
