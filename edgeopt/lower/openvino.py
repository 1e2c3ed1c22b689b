"""torch or ONNX to OpenVINO IR: fp32 pinned, fp16 weights, fp16 compute, and int8 by nncf in its presets.

NNCF's defaults are not always the best: which preset and which bias correction an artifact takes is the scheme, and
the selection split chooses among schemes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import parity
from edgeopt.errors import LoweringFault, MissingDependency, ModelError, PlanError
from edgeopt.lower import Lowered, Progress, TensorSpec, joins, openvino_ranges, quiet
from edgeopt.plan import Ability

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]

ABILITY = Ability(
    sources=("torch", "onnx"),
    schemes={
        "fp32": ("fp32",),
        "fp16": ("fp16", "fp16-compute"),
        "int8": ("int8", "int8-mixed", "int8-safe"),
    },
    modules=("openvino", "nncf"),
    extra="openvino",
    distributions=("torch", "onnx", "openvino", "nncf"),
)
# Where the part of a weight's shape begins that each output element meets: convolutions (out, in, kh, kw), grouped ones
# (groups, out, in, kh, kw); 0: the data's last axis.
WEIGHTS_FROM = {"Convolution": 1, "GroupConvolution": 2, "MatMul": 0}
# Operators that leave numbers as they are, and those that turn stored int8 weights into what is multiplied.
MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool"}
WIDENS = {"Convert", "Subtract", "Multiply", "Reshape"}
# scheme -> (nncf's preset, whether its fast bias correction is enough, its overflow fix). Activations get their true
# range: nncf's own choice, a mean over samples, clips. Its default halves the first layer's weights for x86 processors
# without VNNI, whose sums saturate; here that is a scheme of its own, because the board tells whether it needs it.
# EfficientNet-Lite0: 97.0 % of decisions agree with nncf's defaults, 97.9 % with both changed.
PRESETS = {
    "int8": ("PERFORMANCE", True, "DISABLE"),
    "int8-mixed": ("MIXED", False, "DISABLE"),
    "int8-safe": ("PERFORMANCE", False, "ENABLE"),
}


def lower(
    source: torch.nn.Module | Path,
    scheme: str,
    example: Arrays,
    calibration: Arrays,
    folder: Path,
    progress: Progress,
) -> Lowered:
    """Writes model.xml and model.bin with batch 1 into `folder`. See the package's docstring for arguments and errors.

    Inputs keep the source's layout and types.
    """
    known = [name for names in ABILITY.schemes.values() for name in names]
    if scheme not in known:
        raise PlanError(f"runtime 'openvino' has no scheme '{scheme}'; allowed: {', '.join(known)}")
    if scheme in PRESETS:
        parity.check_calibration(example, calibration, scheme)
    openvino = _require()
    samples = tuple(np.asarray(array)[: parity.SAMPLES] for array in example)
    reference = parity.source_outputs(source, samples)

    progress("converting to OpenVINO")
    with _named_failure("OpenVINO cannot convert the model"):
        model = _convert(openvino, source, samples)
    progress("comparing with the source model")
    stages = [_check(openvino, model, samples, reference, "conversion to OpenVINO", parity.FP32_TOLERANCE)]
    notes: dict[str, Any] = {"scheme": scheme}
    if scheme in PRESETS:
        plain = model
        with _named_failure("OpenVINO cannot run the model for its ranges", LoweringFault):
            out_of_range = openvino_ranges.out_of_range(openvino, plain, calibration)
        for in_float in joins.attempts(functools.partial(joins.in_openvino, plain), reference):
            progress(f"quantizing to int8 ({scheme}, {len(calibration[0])} samples)")
            with _named_failure("nncf cannot quantize the model", LoweringFault):
                kept = list(dict.fromkeys([*in_float, *(own["name"] for own in out_of_range)]))
                model = _quantize(plain, scheme, calibration, kept)
            progress("comparing with the source model")
            stage = _check(openvino, model, samples, reference, f"int8 quantization ({scheme})", None)
            if not parity.is_large(stage):
                break
        stages.append(stage)
        notes |= {"calibration_samples": len(calibration[0]), "ranges": "minimum and maximum"}
        notes |= {"in_float": in_float, "out_of_range": out_of_range}
    path = folder / "model.xml"
    with _named_failure("OpenVINO cannot write the model"):
        openvino.save_model(model, str(path), compress_to_fp16=scheme.startswith("fp16"))
    if scheme.startswith("fp16"):
        saved = openvino.Core().read_model(str(path))
        progress("comparing with the source model")
        stages.append(_check(openvino, saved, samples, reference, "float16 weights", parity.FP16_TOLERANCE))
    notes |= {"parity": stages, "ops": _operators(model), "int8_mac_share": _int8_mac_share(model)}
    if scheme in PRESETS:
        parity.require_quantized(notes["ops"], ("FakeQuantize",), "nncf")
    options = {"precision": "f16" if scheme == "fp16-compute" else "f32"}
    inputs, outputs = ([_spec(port) for port in ports] for ports in (model.inputs, model.outputs))
    adapters = tuple(
        () if spec.dtype == array.dtype.name else ({"op": "cast", "dtype": spec.dtype},)
        for spec, array in zip(inputs, samples, strict=True)
    )
    return Lowered((path, path.with_suffix(".bin")), tuple(inputs), tuple(outputs), adapters, options, notes)


def _require() -> Any:
    try:
        with quiet():
            openvino = importlib.import_module("openvino")
            importlib.import_module("nncf")
    except ImportError as error:
        raise MissingDependency(
            f"runtime 'openvino' needs openvino and nncf ({error}); install them: pip install 'edgeopt[openvino]'"
        ) from error
    return openvino


def _convert(openvino: Any, source: torch.nn.Module | Path, samples: Arrays) -> Any:
    """With batch 1 and the samples' shapes: what is fixed can be laid out and tuned."""
    shapes = [(1, *array.shape[1:]) for array in samples]
    if isinstance(source, Path):
        return _reshaped(openvino.convert_model(str(source)), shapes)
    example = parity.one(samples, 0)
    with _without_fast_path():
        try:
            return openvino.convert_model(
                source.eval(), example_input=example if len(example) > 1 else example[0], input=shapes
            )
        except Exception as error:
            with contextlib.suppress(Exception):  # the first way's reason is told
                return _reshaped(openvino.convert_model(_exported(source, example)), shapes)
            raise error


def _reshaped(model: Any, shapes: list[tuple[int, ...]]) -> Any:
    if len(model.inputs) != len(shapes):
        raise ModelError(
            f"OpenVINO finds {len(model.inputs)} inputs in it and {len(shapes)} are given: every input must be "
            "computed with, none returned as it is"
        )
    model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
    return model


def _exported(source: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Any:
    """What tracing does not see through, exporting may take apart into operators that have a rule."""
    import torch

    with torch.no_grad():
        return torch.export.export(source, example).run_decompositions()


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Attention as operators: torch's fused one has no trace, and tracing's own check meets it the second time."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _quantize(model: Any, scheme: str, calibration: Arrays, in_float: list[str]) -> Any:
    """in_float: names of the operators that stay in float."""
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    preset, fast, fix = PRESETS[scheme]
    count = len(calibration[0])
    feeds = [{i: array[n : n + 1] for i, array in enumerate(calibration)} for n in range(count)]
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset[preset],
        subset_size=count,
        fast_bias_correction=fast,
        ignored_scope=nncf.IgnoredScope(names=in_float, validate=False) if in_float else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            overflow_fix=OverflowFix[fix],
        ),
    )


def _check(
    openvino: Any, model: Any, samples: Arrays, reference: list[Array], stage: str, tolerance: float | None
) -> dict[str, Any]:
    pinned = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}

    def compared(settings: dict[str, Any], locate: Callable[[], str] | None = None) -> dict[str, Any]:
        with _named_failure(f"OpenVINO cannot run the model after the stage '{stage}'", LoweringFault):
            found = _run(openvino, model, samples, settings)
        return parity.compare(found, reference, stage, tolerance, locate)

    def with_default_threads() -> dict[str, Any] | None:
        try:
            return compared({name: value for name, value in pinned.items() if name != "INFERENCE_NUM_THREADS"})
        except LoweringFault:
            return None

    try:
        told = compared(pinned, lambda: parity.in_openvino(openvino, model, samples, pinned))
    except LoweringFault as error:
        other = with_default_threads()
        if other is None or parity.refusal([other]):
            raise
        says = f"{error}; that is with one thread, and with the runtime's default of threads it agrees"
        raise LoweringFault(says, error.of_conversion) from error
    if parity.refusal([told]) and (other := with_default_threads()) is not None:
        told["threads"] = parity.other_threads(told, other)
    return told


def _run(openvino: Any, model: Any, samples: Arrays, settings: dict[str, Any]) -> list[Array]:
    """Each output, (n, ...)."""
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    rows = []
    for index in range(len(samples[0])):
        result = request.infer({i: array[index : index + 1] for i, array in enumerate(samples)})
        rows.append([np.array(result[port]) for port in compiled.outputs])
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _operators(model: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Constant", "Parameter", "Result"):
            found[kind] = found.get(kind, 0) + 1
    return found


def _int8_mac_share(model: Any) -> float | None:
    """Share of the multiply-accumulates whose data and weights the graph quantizes; None for a graph without any."""
    total = quantized = 0
    for node in model.get_ordered_ops():
        first = WEIGHTS_FROM.get(node.get_type_name())
        if first is None or any(node.input(n).get_partial_shape().is_dynamic for n in (0, 1)):
            continue
        inner = node.input(1).get_shape()[first:] if first else node.input(0).get_shape()[-1:]
        macs = int(np.prod(node.output(0).get_shape())) * int(np.prod(inner))
        total += macs
        sources = [_source(node.input_value(0).get_node(), MOVES), _source(node.input_value(1).get_node(), WIDENS)]
        quantized += macs if all(source in ("FakeQuantize", "i8", "u8") for source in sources) else 0
    return quantized / total if total else None


def _source(node: Any, through: set[str]) -> str:
    """The operator that makes what `node` gives, seen through operators of these kinds; of a constant, its type."""
    while node.get_type_name() in through:
        node = node.input_value(0).get_node()
    kind = str(node.get_type_name())
    return str(node.get_element_type().get_type_name()) if kind == "Constant" else kind


def _spec(port: Any) -> TensorSpec:
    name = port.get_any_name() if port.get_names() else "?"
    return TensorSpec(name, tuple(int(size) for size in port.get_shape()), port.get_element_type().to_dtype().name)


@contextmanager
def _named_failure(what: str, kind: type[ModelError] = ModelError) -> Iterator[None]:
    """Runs a framework silently; whatever it raises becomes an error of this kind with its first words."""
    with quiet():
        try:
            yield
        except Exception as error:
            lost = "; leave runtime 'openvino' out of the profile, or change that part"
            mend = "" if kind is LoweringFault else lost
            raise kind(f"{what}: {_reason(error)}{mend}") from error


# What OpenVINO and torch's tracer say of themselves: places in their sources, the graph's text, how to call them.
NOISE = re.compile(
    r"Exception from|Check '|Traceback|[-+]?\s*(%|graph\(|return \()|Summary:|You can also provide|Tracing failed|"
    r"Couldn't get TorchScript module|Please|FrontEnd API failed|Model wasn't fully converted|ERROR:|Graph diff:|"
    r"[-^=]+$"
)
NO_RULE = re.compile(r"No conversion rule found for operations: (.+)")


def _reason(error: Exception) -> str:
    """What went wrong, without what the libraries say of themselves."""
    if rule := NO_RULE.search(str(error)):
        return f"it has no rule for operator {rule[1].strip()}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not NOISE.match(line)]
    named = [line for line in told if "op" in line.lower() or "node" in line.lower()]
    return " ".join(dict.fromkeys([*named[:2], *told[-1:]]))[:400] or type(error).__name__
