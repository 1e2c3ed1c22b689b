"""How far each stage of a conversion is from the source model, on the same samples; the stage at fault is named."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import fidelity, onnx_model
from .errors import LoweringFault, ModelError, PlanError
from .model import untold
from .task import Array

if TYPE_CHECKING:
    import torch

SAMPLES = 8
# A float32 artifact may sum in another order than its source; more than this means another computation.
FP32_TOLERANCE = 1e-3
FP16_TOLERANCE = 3e-2
LEAST_SCALE = 1e-3
CONVERSION = "conversion"  # with which the name of every stage begins whose artifact is float


def check_calibration(example: Sequence[Array], calibration: Sequence[Array], scheme: str) -> None:
    """Raises PlanError when there are no samples, ModelError for NaN and infinity."""
    if not calibration or min(len(array) for array in calibration) == 0:
        raise PlanError(
            f"scheme '{scheme}' needs calibration samples and there are none; give the calibration split some"
        )
    if len(calibration) != len(example):
        raise PlanError(f"calibration has {len(calibration)} inputs, the model {len(example)}; give one array for each")
    for index, array in enumerate(calibration):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1) if array.dtype.kind == "f" else np.zeros(1, bool)
        if bad.any():
            raise ModelError(
                f"calibration input {index} holds NaN or infinity in {int(bad.sum())} of {len(array)} samples "
                f"(first: sample {int(bad.argmax())}); clean the data or its preprocess steps"
            )


def source_outputs(source: torch.nn.Module | Path, samples: Sequence[Array]) -> list[Array]:
    """The source's outputs, each (n, ...). Raises ModelError naming the first node with a non-finite output."""
    if isinstance(source, Path):
        outputs = list(onnx_model.run(source, samples, untold))
        for number, array in enumerate(outputs):
            if not np.isfinite(array).all():
                where = _located(functools.partial(in_onnx, source, samples))
                raise ModelError(
                    f"output {number} of the source model is NaN or infinite ({where}); check its weights and the "
                    "preprocess steps"
                )
        return outputs
    import torch

    rows = []
    for index in range(len(samples[0])):
        single = one(samples, index)
        with torch.no_grad():
            row = flat(source(*single))
        for number, array in enumerate(row):
            if not np.isfinite(array).all():
                where = _first_non_finite(source, single)
                raise ModelError(
                    f"output {number} of the source model is NaN or infinite for sample {index}{where}; "
                    "check its weights and the preprocess steps"
                )
        rows.append(row)
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def one(arrays: Sequence[Array], index: int) -> tuple[torch.Tensor, ...]:
    """Sample `index` of each array, (1, ...)."""
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(array[index : index + 1])) for array in arrays)


def flat(outputs: Any) -> list[Array]:
    """Outputs in the order in which torch.export, and with it every artifact, numbers them."""
    from torch.utils._pytree import tree_leaves

    return [leaf.detach().cpu().numpy() for leaf in tree_leaves(outputs)]


def require_quantized(ops: Mapping[str, int], quantized: Collection[str], quantizer: str) -> None:
    """Raises ModelError for an "int8" artifact, of these operators, in which nothing became int8."""
    if not any(name in ops for name in quantized):
        told = ", ".join(sorted(ops)) or "no operator"
        raise ModelError(
            f"the int8 artifact still computes in float: {quantizer} quantized nothing of it ({told}); leave scheme "
            "'int8' out for this model"
        )


def compare(
    found: Sequence[Array],
    reference: Sequence[Array],
    stage: str,
    tolerance: float | None,
    locate: Callable[[], str] | None = None,
) -> dict[str, Any]:
    """{"stage", "max_abs_error", "sqnr_db", "equal_share", "samples", "outputs"}; arrays are (n, ...).

    sqnr_db: of the worst output or group of its channels, None where all are equal; equal_share: the least of outputs
    of whole numbers, None where there are none; outputs: fidelity.errors.
    tolerance: of the largest value, or None where rounding is meant to change the outputs. locate: tells in words where
    in the artifact NaN or infinity arises.
    Raises ModelError where shapes differ, LoweringFault where numbers are not finite or the tolerance is passed.
    """
    shapes = [[array.shape for array in arrays] for arrays in (found, reference)]
    if shapes[0] != shapes[1]:
        if stage.startswith(CONVERSION) and [len(own) for own in shapes[0]] == [len(own) for own in shapes[1]]:
            raise LoweringFault(
                f"after the stage '{stage}' the outputs have shapes {shapes[0]}, the source's {shapes[1]}: an operator "
                "means something else there",
                True,
            )
        raise ModelError(
            f"after the stage '{stage}' the outputs have shapes {shapes[0]}, the source's {shapes[1]}; "
            "return every output as a tensor of its own with the batch first"
        )
    for number, array in enumerate(found):
        if not np.isfinite(array).all():
            where = _located(locate) if locate is not None else ""
            raise LoweringFault(
                f"output {number} is NaN or infinite after the stage '{stage}'" + (f": {where}" if where else ""),
                stage.startswith(CONVERSION),
            )
    outputs = fidelity.errors(found, reference)
    parts = fidelity.parts(outputs)
    if tolerance is not None:
        for part in parts:
            _require_close(part, len(outputs), reference[part["output"]].size, stage, tolerance)
    known = [part["sqnr_db"] for part in parts if part["sqnr_db"] is not None]
    shares = [own["equal_share"] for own in outputs if own["equal_share"] is not None]
    return {
        "stage": stage,
        "max_abs_error": max((own["max_abs_error"] for own in outputs), default=0.0),
        "sqnr_db": min(known, default=None),
        "equal_share": min(shares, default=None),
        "samples": len(found[0]),
        "outputs": outputs,
    }


def _require_close(part: dict[str, Any], count: int, size: int, stage: str, tolerance: float) -> None:
    """size: values of the output; one of its whole numbers may differ, as the choice between two that are close."""
    place = fidelity.where(part, count) or "output 0"
    share = part["equal_share"]
    if share is not None:
        if round((1 - share) * size) > max(1.0, tolerance * size):
            raise LoweringFault(
                f"{place}: only {fidelity.figure(part)} after the stage '{stage}' (allowed {1 - tolerance:.1%}); that "
                "stage changed the computation",
                stage.startswith(CONVERSION),
            )
    elif part["max_abs_error"] > tolerance * max(part["largest"], LEAST_SCALE):
        raise LoweringFault(
            f"{place} is off by {part['max_abs_error']:.3g} after the stage '{stage}' (largest value "
            f"{part['largest']:.3g}, allowed {tolerance:g} of it); that stage changed the computation",
            stage.startswith(CONVERSION),
        )


def is_large(stage: Mapping[str, Any]) -> bool:
    """Whether the error after this stage needs a warning."""
    return fidelity.is_large(fidelity.worst(stage["outputs"]))


def other_threads(one: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """What a runtime answers with its default of threads, where with one thread it answers noise, in words."""
    if fidelity.refusal(default["outputs"]) is not None:
        return "with the runtime's default of threads, too"
    own, other = (fidelity.figure(fidelity.worst(stage["outputs"]) or {}) for stage in (one, default))
    return f"that is with one thread: {own}; with the runtime's default of threads: {other}"


def refusal(stages: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the artifact after the last of these stages of `compare` gives no answers; None where it does."""
    why = fidelity.refusal(stages[-1]["outputs"]) if stages else None
    threads = f" ({told})" if why and (told := stages[-1].get("threads")) else ""
    return f"after the stage '{stages[-1]['stage']}' {why}{threads}" if why else None


# Where the first NaN or infinity arises, in words


UNSEEN = "no node gives it while each is watched: it lies in how the runtime joins them"
Node = tuple[str, str, Mapping[str, Array], Sequence[Array]]  # name, operator, its constants by name, its outputs


def arises(nodes: Iterable[Node]) -> str:
    """nodes: in executed order."""
    first: dict[str, str] = {}
    for name, kind, constants, outputs in nodes:
        own = [array for array in outputs if array.dtype.kind == "f"]
        for what, is_so in (("NaN", np.isnan), ("infinity", np.isinf)):
            if what not in first and any(is_so(array).any() for array in own):
                bad = [key for key, array in constants.items() if not np.isfinite(array).all()]
                held = f", whose constant '{bad[0]}' holds NaN or infinity" if bad else ""
                first[what] = f"node '{name}' ({kind}{held})"
        if "NaN" in first:
            break
    told = [f"{what} first arises in {first[what]}" for what in ("infinity", "NaN") if what in first]
    return ", ".join(told) or UNSEEN


def in_onnx(path: Path, samples: Sequence[Array]) -> str:
    """As arises, of an .onnx file that ONNX Runtime runs node by node; samples: (n, ...) of each input."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    graph = model.graph
    taken = {value.name for value in graph.output}
    names = [name for node in graph.node for name in node.output if name]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in taken)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ports = [port.name for port in session.get_inputs()]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def nodes(feed: Mapping[str, Array]) -> Iterator[Node]:
        values = dict(zip([own.name for own in session.get_outputs()], session.run(None, feed), strict=True))
        for node in graph.node:
            held = {name: constants[name] for name in node.input if name in constants}
            held = {name: array for name, array in held.items() if array.dtype.kind == "f"}
            given = [values[name] for name in node.output if isinstance(values.get(name), np.ndarray)]
            yield node.name or node.output[0], node.op_type, held, given

    return _of_samples(samples, lambda row: nodes(dict(zip(ports, row, strict=True))))


def in_openvino(openvino: Any, model: Any, samples: Sequence[Array], settings: Mapping[str, Any]) -> str:
    """As arises, of OpenVINO's model in memory. Where watching every node makes the fault go away, as what was one
    kernel is many then, one at a time is watched, and the first found by halving."""
    kinds = ("Parameter", "Result", "Constant")
    count = sum(node.get_type_name() not in kinds for node in model.get_ordered_ops())

    def watch(places: Sequence[int]) -> str:
        shown = model.clone()
        own = [node for node in shown.get_ordered_ops() if node.get_type_name() not in kinds]
        watched = [out for place in places for out in own[place].outputs() if out.get_element_type().is_real()]
        names = [(out.get_node().get_friendly_name(), out.get_index()) for out in watched]
        given = [port.get_node().input_value(0) for port in shown.outputs]
        known = {(out.get_node().get_friendly_name(), out.get_index()): place for place, out in enumerate(given)}
        shown.add_outputs([out for out, name in zip(watched, names, strict=True) if name not in known])
        for name in names:
            known.setdefault(name, len(known))
        kinds_of = [out.get_node().get_type_name() for out in watched]
        compiled = openvino.Core().compile_model(shown, "CPU", dict(settings))

        def nodes(row: Sequence[Array]) -> Iterator[Node]:
            result = compiled(dict(enumerate(row)))
            for name, kind in zip(names, kinds_of, strict=True):
                yield name[0], kind, {}, [np.array(result[compiled.outputs[known[name]]])]

        return _of_samples(samples, nodes)

    found = watch(range(count))
    if found != UNSEEN:
        return found
    low, high = -1, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if watch([middle]) == UNSEEN else (low, middle)
    return watch([high])


def in_tflite(path: Path, samples: Sequence[Array]) -> str:
    """As arises, of a .tflite; samples: as the artifact takes them, (n, ...) of each input."""
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that keeping every tensor takes memory: here it is wanted
        interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    names = {detail["index"]: str(detail["name"]) for detail in interpreter.get_tensor_details()}

    def nodes(row: Sequence[Array]) -> Iterator[Node]:
        for detail, array in zip(interpreter.get_input_details(), row, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        for own in interpreter._get_ops_details():
            if own["op_name"] != "DELEGATE":
                outputs = [int(place) for place in own["outputs"] if place >= 0]
                yield names[outputs[0]], own["op_name"], {}, [interpreter.get_tensor(place) for place in outputs]

    return _of_samples(samples, nodes)


def _of_samples(samples: Sequence[Array], nodes: Callable[[list[Array]], Iterable[Node]]) -> str:
    """Of the first sample that shows it."""
    found = UNSEEN
    for index in range(len(samples[0])):
        found = arises(nodes([np.ascontiguousarray(array[index : index + 1]) for array in samples]))
        if found != UNSEEN:
            break
    return found


def _located(locate: Callable[[], str]) -> str:
    """What it tells; what a runtime refuses in looking for it is told, not raised: the fault itself is another."""
    try:
        return locate()
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"where it arises cannot be seen ({lines[0][:200]})"


def _first_non_finite(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> str:
    import torch

    found: list[str] = []

    def hook(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        def look(layer: torch.nn.Module, _inputs: Any, output: Any) -> None:
            if not found and torch.is_tensor(output) and not torch.isfinite(output).all():
                found.append(f" (first in node '{name}', {type(layer).__name__})")

        return look

    handles = [layer.register_forward_hook(hook(name)) for name, layer in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""
