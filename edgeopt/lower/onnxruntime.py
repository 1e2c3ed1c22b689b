"""ONNX to ONNX Runtime's int8 (static, per channel, QDQ), or as it is. torch models are exported to ONNX first."""

from __future__ import annotations

import functools
import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import onnx_model, parity
from edgeopt.errors import LoweringFault, MissingDependency, ModelError, PlanError
from edgeopt.lower import Lowered, Progress, TensorSpec, joins, onnxruntime_int8, quiet
from edgeopt.model import untold
from edgeopt.plan import Ability

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]

QUANTIZED = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ABILITY = Ability(
    sources=("torch", "onnx"),
    schemes={"fp32": ("fp32",), "int8": ("int8",)},
    modules=("onnx", "onnxruntime", "onnxscript"),
    extra="onnx",
    distributions=("torch", "onnx", "onnxruntime", "onnxscript"),
)


def lower(
    source: torch.nn.Module | Path,
    scheme: str,
    example: Arrays,
    calibration: Arrays,
    folder: Path,
    progress: Progress,
) -> Lowered:
    """Writes model.onnx into `folder`. See the package's docstring for arguments and errors.

    Inputs keep the source's layout and types; their shapes become those of one sample.
    """
    known = [name for names in ABILITY.schemes.values() for name in names]
    if scheme not in known:
        raise PlanError(f"runtime 'onnxruntime' has no scheme '{scheme}'; allowed: {', '.join(known)}")
    if scheme == "int8":
        parity.check_calibration(example, calibration, scheme)
    _require()
    samples = tuple(np.asarray(array)[: parity.SAMPLES] for array in example)
    reference = parity.source_outputs(source, samples)
    out = folder / "model.onnx"
    progress("converting to ONNX")
    with tempfile.TemporaryDirectory() as text:
        plain = Path(text) / "plain.onnx"
        with _named_failure("the model cannot be written as ONNX"):
            _export(source, samples, plain)
        progress("comparing with the source model")
        stages = [_check(plain, samples, reference, "conversion to ONNX", parity.FP32_TOLERANCE)]
        if scheme == "fp32":
            shutil.copyfile(plain, out)
        else:
            ready, between = _ready(plain, samples, reference)
            stages += between
            progress(f"quantizing to int8 ({len(calibration[0])} samples)")
            names = [port.name for port in _inputs(ready)]
            with _named_failure("ONNX Runtime cannot run the model for its ranges", LoweringFault):
                out_of_range = onnxruntime_int8.out_of_range(ready, calibration)
            for in_float in joins.attempts(functools.partial(joins.in_onnx, ready), reference):
                kept = list(dict.fromkeys([*in_float, *(own["name"] for own in out_of_range)]))
                with _named_failure("ONNX Runtime cannot quantize the model", LoweringFault):
                    onnxruntime_int8.quantize(ready, out, names, calibration, kept)
                progress("comparing with the source model")
                stage = _check(out, samples, reference, "int8 quantization", None)
                if not parity.is_large(stage):
                    break
            stages.append(stage)
    notes: dict[str, Any] = {"scheme": scheme, "parity": stages, "ops": _operators(out)}
    if scheme == "int8":
        notes["calibration_samples"] = len(calibration[0])
        notes |= {"in_float": in_float, "out_of_range": out_of_range}
        parity.require_quantized(notes["ops"], QUANTIZED, "ONNX Runtime")
    inputs, outputs = _interface(out, samples, reference)
    return Lowered((out,), inputs, outputs, tuple(() for _ in inputs), {}, notes)


def _require() -> None:
    try:
        with quiet():
            for name in ("onnx", "onnxruntime.quantization"):
                importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"runtime 'onnxruntime' needs onnx and onnxruntime ({error}); install them: pip install 'edgeopt[onnx]'"
        ) from error


def _export(source: torch.nn.Module | Path, samples: Arrays, path: Path) -> None:
    """One file, with batch 1 and the samples' shapes."""
    import onnx

    if isinstance(source, Path):
        model = onnx.load(str(source))
        initialized = {tensor.name for tensor in model.graph.initializer}
        for value in [value for value in model.graph.input if value.name in initialized]:
            model.graph.input.remove(value)  # before IR version 4, constants had to be listed there
        model.ir_version = max(model.ir_version, 4)
        _fix_shapes(model, samples)
        onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
        return
    import torch

    torch.onnx.export(source.eval(), parity.one(samples, 0), str(path), dynamo=True, external_data=False)


def _fix_shapes(model: Any, samples: Arrays) -> None:
    for value, array in zip(model.graph.input, samples, strict=True):
        sizes = value.type.tensor_type.shape.dim
        for size, own in zip(sizes, (1, *array.shape[1:]), strict=True):
            size.dim_value = own
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _ready(plain: Path, samples: Arrays, reference: list[Array]) -> tuple[Path, list[dict[str, Any]]]:
    """(the model as the quantizer takes it, beside `plain`; how far each stage on the way is from the source)."""
    ready, stages = plain.with_name("ready.onnx"), []
    with _named_failure("ONNX Runtime cannot quantize the model: its opset cannot be raised", LoweringFault):
        is_raised = onnxruntime_int8.raise_opset(plain)
    if is_raised:
        stage = f"upgrade to opset {onnxruntime_int8.PER_CHANNEL_OPSET}"
        stages.append(_check(plain, samples, reference, stage, parity.FP32_TOLERANCE))
    with _named_failure("ONNX Runtime cannot quantize the model: its pre-processing failed", LoweringFault):
        onnxruntime_int8.prepare(plain, ready)
    return ready, [*stages, _check(ready, samples, reference, "pre-processing", parity.FP32_TOLERANCE)]


def _inputs(path: Path) -> list[Any]:
    graph = onnx_model.read(path).graph
    initialized = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialized]


def _check(path: Path, samples: Arrays, reference: list[Array], stage: str, tolerance: float | None) -> dict[str, Any]:
    try:
        found = onnx_model.run(path, samples, untold)
    except ModelError as error:
        told = str(error).replace(f"{path} ", "")
        raise LoweringFault(f"after the stage '{stage}' the artifact {told}") from error
    return parity.compare(found, reference, stage, tolerance, lambda: parity.in_onnx(path, samples))


def _interface(
    path: Path, samples: Arrays, reference: list[Array]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    graph = onnx_model.read(path).graph
    inputs = [
        TensorSpec(port.name, (1, *array.shape[1:]), array.dtype.name)
        for port, array in zip(_inputs(path), samples, strict=True)
    ]
    outputs = [
        TensorSpec(port.name, (1, *array.shape[1:]), array.dtype.name)
        for port, array in zip(graph.output, reference, strict=True)
    ]
    return tuple(inputs), tuple(outputs)


def _operators(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in onnx_model.read(path).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


@contextmanager
def _named_failure(what: str, kind: type[ModelError] = ModelError) -> Iterator[None]:
    """Runs a framework silently; whatever it raises becomes an error of this kind with its first words."""
    with quiet():
        try:
            yield
        except Exception as error:
            while error.__cause__ is not None:  # torch.onnx wraps what it met in words about itself
                error = error.__cause__  # type: ignore[assignment]
            lines = [line.strip() for line in COLOURS.sub("", str(error)).splitlines() if line.strip()]
            first = " ".join(lines[:2])[:400] or type(error).__name__
            mend = "" if kind is LoweringFault else "; leave runtime 'onnxruntime' out, or change that part"
            raise kind(f"{what}: {first}{mend}") from error
