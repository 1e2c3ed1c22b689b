"""torch to TFLite: litert-torch converts, tflite_int8.py makes it int8.

Inputs and outputs stay float32; an int8 artifact holds its own Quantize and Dequantize operators.
"""

from __future__ import annotations

import collections
import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import parity
from edgeopt.errors import LoweringFault, MissingDependency, ModelError, PlanError
from edgeopt.lower import Lowered, Progress, TensorSpec, child, joins, quiet, tflite_int8
from edgeopt.lower.tflite_reason import named_failure
from edgeopt.plan import Ability

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]

ABILITY = Ability(
    sources=("torch",),
    schemes={"fp32": ("fp32",), "fp16": ("fp16",), "int8": ("int8",)},
    modules=("litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
    extra="tflite",
    distributions=("torch", "litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert"),
)
# tensor types of the flatbuffer schema
_FLOAT32, _INT8 = 0, 9


def lower(
    source: torch.nn.Module | Path,
    scheme: str,
    example: Arrays,
    calibration: Arrays,
    folder: Path,
    progress: Progress,
) -> Lowered:
    """Writes model.tflite with batch 1 into `folder`. See the package's docstring for arguments and errors.

    4-D float inputs (n, c, h, w) become channel-last (1, h, w, c) in the artifact; `adapters` says so.
    """
    if isinstance(source, Path):
        raise PlanError(f"runtime 'tflite' takes torch models, not {source}; give the torch model, or another runtime")
    known = [name for names in ABILITY.schemes.values() for name in names]
    if scheme not in known:
        raise PlanError(f"runtime 'tflite' has no scheme '{scheme}'; allowed: {', '.join(known)}")
    if scheme == "int8":
        parity.check_calibration(example, calibration, scheme)
    _require()
    source.eval()
    samples = tuple(np.asarray(array)[: parity.SAMPLES] for array in example)
    reference = parity.source_outputs(source, samples)
    channel_last = [index for index, array in enumerate(example) if array.ndim == 4 and array.dtype.kind == "f"]

    progress("converting to TFLite")
    content = _convert(source, samples, channel_last)
    out = folder / "model.tflite"
    progress("comparing with the source model")
    stages = [_check(content, out, samples, channel_last, reference, "conversion to TFLite", parity.FP32_TOLERANCE)]
    notes: dict[str, Any] = {"scheme": scheme}
    if scheme == "fp16":
        progress("storing weights as float16")
        content = _halve(content)
        progress("comparing with the source model")
        stages.append(_check(content, out, samples, channel_last, reference, "float16 weights", parity.FP16_TOLERANCE))
    elif scheme == "int8":
        for in_float in joins.attempts(functools.partial(joins.in_tflite, content), reference):
            told, outputs = child.run(
                "int8 quantization",
                *(_quantized, content, out.resolve(), samples, calibration, channel_last, in_float),
                progress=progress,
            )
            place = functools.partial(parity.in_tflite, out, _runtime_inputs(samples, channel_last))
            stage = parity.compare(outputs, reference, "int8 quantization", None, place)
            if not parity.is_large(stage):
                break
        stages.append(stage)
        notes |= {"calibration_samples": len(calibration[0]), "ranges": "minimum and maximum", **told}
        notes["in_float"] = in_float
    inputs, outputs, adapters = _interface(out, samples, channel_last)
    notes |= {"parity": stages, **_contents(out, scheme)}
    return Lowered((out,), inputs, outputs, adapters, {}, notes)


def _check(
    content: bytes,
    out: Path,
    samples: Arrays,
    channel_last: list[int],
    reference: list[Array],
    stage: str,
    tolerance: float | None,
) -> dict[str, Any]:
    """Writes `content` to `out` and compares what it answers with the source's outputs."""
    out.write_bytes(content)
    _, _, adapters = _interface(out, samples, channel_last)
    return parity.compare(
        _artifact_outputs(out, samples, adapters, stage),
        reference,
        stage,
        tolerance,
        lambda: parity.in_tflite(out, _runtime_inputs(samples, channel_last)),
    )


def executed_ops(path: Path) -> dict[str, int]:
    """Operators of the artifact's main graph and how often each occurs."""
    return dict(collections.Counter(name for name, _, _ in _operators(path)))


def int8_mac_share(path: Path) -> float | None:
    """Share of the multiply-accumulates whose data and weights are int8; None for a graph without any."""
    total = quantized = 0
    for name, ins, outs in _operators(path):
        macs = _macs(name, ins, outs)
        total += macs
        if macs and ins[0].type == _INT8 and ins[1].type == _INT8:
            quantized += macs
    return quantized / total if total else None


def _require() -> None:
    try:
        with quiet():
            for name in ("litert_torch", "ai_edge_quantizer.quantizer", "ai_edge_litert.interpreter"):
                importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"runtime 'tflite' needs litert-torch and ai-edge-quantizer ({error}); "
            "install them: pip install 'edgeopt[torch,tflite]'"
        ) from error


def _convert(module: torch.nn.Module, samples: Arrays, channel_last: list[int]) -> bytes:
    import litert_torch

    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and tensor.element_size() < 4:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"'{name}' is {kind}, which the way to TFLite does not take: let the factory return model.float(); "
                "scheme fp16 stores float16 weights"
            )
    traced = litert_torch.to_channel_last_io(module, args=channel_last) if channel_last else module
    arguments = list(parity.one(samples, 0))
    for index in channel_last:
        arguments[index] = arguments[index].permute(0, 2, 3, 1).contiguous()
    with named_failure("litert-torch cannot convert the model") as folder:
        model = litert_torch.convert(traced.eval(), tuple(arguments))
        target = folder / "model.tflite"
        model.export(str(target))
        return target.read_bytes()


def _halve(content: bytes) -> bytes:
    """Weights as float16, which the runtime widens when it loads them; it computes in float32."""
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    half = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    recipe = recipe_manager.RecipeManager()
    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    recipe.add_quantization_config(".*", everything, half, quantizer.AlgorithmName.FLOAT_CASTING)
    with named_failure("ai-edge-quantizer cannot store the weights as float16", LoweringFault):
        work = quantizer.Quantizer(content, recipe.get_quantization_recipe())
        result = work.quantize(enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _quantized(
    content: bytes,
    out: Path,
    samples: Arrays,
    calibration: Arrays,
    channel_last: list[int],
    in_float: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, Any], list[Array]]:
    """Writes the int8 artifact to `out`; (notes, its outputs of `samples`)."""
    made, notes = tflite_int8.quantize(content, _runtime_inputs(calibration, channel_last), in_float, progress)
    out.write_bytes(made)
    progress("comparing with the source model")
    _, _, adapters = _interface(out, samples, channel_last, LoweringFault)
    return notes, _artifact_outputs(out, samples, adapters, "int8 quantization")


def _runtime_inputs(arrays: Arrays, channel_last: list[int]) -> Arrays:
    """Source-layout arrays as the artifact takes them: channel-last where asked, 64-bit types as 32-bit."""
    narrow = {"int64": "int32", "float64": "float32"}
    return tuple(
        np.ascontiguousarray(array.transpose(0, 2, 3, 1) if index in channel_last else array).astype(
            narrow.get(array.dtype.name, array.dtype.name), copy=False
        )
        for index, array in enumerate(arrays)
    )


def _interpreter(path: Path, fault: type[ModelError] = ModelError) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    what = (
        "TFLite cannot load what int8 quantization made"
        if fault is LoweringFault
        else "TFLite cannot load the artifact"
    )
    with named_failure(what, fault):
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
    return interpreter


def _interface(
    path: Path, samples: Arrays, channel_last: list[int], fault: type[ModelError] = ModelError
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[tuple[dict[str, Any], ...], ...]]:
    interpreter = _interpreter(path, fault)
    inputs, outputs = (
        tuple(TensorSpec(str(d["name"]), tuple(int(n) for n in d["shape"]), np.dtype(d["dtype"]).name) for d in details)
        for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    if len(inputs) != len(samples):
        raise ModelError(f"the artifact has {len(inputs)} inputs, the model {len(samples)}; every input must be used")
    adapters = []
    for index, (spec, array) in enumerate(zip(inputs, samples, strict=True)):
        steps: list[dict[str, Any]] = [{"op": "transpose", "axes": [0, 2, 3, 1]}] if index in channel_last else []
        if spec.dtype != array.dtype.name:
            steps.append({"op": "cast", "dtype": spec.dtype})
        adapters.append(tuple(steps))
    return inputs, outputs, tuple(adapters)


def _artifact_outputs(
    path: Path, samples: Arrays, adapters: tuple[tuple[dict[str, Any], ...], ...], stage: str
) -> list[Array]:
    """The artifact's outputs after this stage, each (n, ...), computed here with the steps that the board will run."""
    from edgeopt_agent.preprocess import apply

    interpreter = _interpreter(path)
    arrays = [apply(steps, array) for steps, array in zip(adapters, samples, strict=True)]
    rows = []
    for index in range(len(arrays[0])):
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(array[index : index + 1]))
        try:
            interpreter.invoke()
        except RuntimeError as error:
            told = str(error).strip().splitlines()[0]
            raise LoweringFault(
                f"TFLite cannot run the artifact after the stage '{stage}': {told}{_named(path, told)}",
                stage.startswith(parity.CONVERSION),
            ) from error
        rows.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _named(path: Path, message: str) -> str:
    """The name of what an operator makes of which the interpreter tells only the number."""
    told = re.search(r"[Nn]ode number (\d+) \((\w+)\)", message)
    own = dict(enumerate(_operators(path))).get(int(told[1])) if told else None
    if told is None or own is None or own[0] != told[2]:
        return ""
    return f" (it makes '{own[2][0].name.decode('utf-8', 'replace')}')"


def _contents(path: Path, scheme: str) -> dict[str, Any]:
    """What is in the file. Raises ModelError for an int8 artifact that computes in float."""
    share, operators = int8_mac_share(path), executed_ops(path)
    moved = {name: operators[name] for name in ("TRANSPOSE", "PAD", "PADV2") if name in operators}
    notes: dict[str, Any] = {"ops": operators, "int8_mac_share": share, "transposes_and_pads": moved}
    if scheme == "int8":
        in_float = sorted(
            {name for name, _, outs in _operators(path) if outs and outs[0].type == _FLOAT32 and name != "DEQUANTIZE"}
        )
        notes["float_ops"] = in_float
        if share == 0.0:
            raise ModelError(
                f"the int8 artifact still computes in float: {', '.join(in_float)} were not quantized; "
                "leave scheme 'int8' out for this model"
            )
    return notes


def _operators(path: Path) -> list[tuple[str, list[Any], list[Any]]]:
    """(operator, input tensors, output tensors) of the main graph, in order of execution."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    return [
        (
            flatbuffer_utils.opcode_to_name(model, op.opcodeIndex),
            [graph.tensors[i] for i in op.inputs if i >= 0],
            [graph.tensors[i] for i in op.outputs if i >= 0],
        )
        for op in graph.operators
    ]


def _macs(name: str, ins: list[Any], outs: list[Any]) -> int:
    """Multiply-accumulates of one operator. Filters: (out, kh, kw, in), depthwise (1, kh, kw, out), dense (out, in)."""
    if name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL"):
        return 0
    produced = int(np.prod(outs[0].shape))
    if name == "BATCH_MATMUL":
        return produced * int(ins[0].shape[-1])
    kernel = [int(size) for size in ins[1].shape]
    return produced * int(np.prod(kernel[1:3] if name == "DEPTHWISE_CONV_2D" else kernel[1:]))
