"""How far each stage of a conversion is from the source model, on the same samples; the stage at fault is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import onnx_model
from .errors import ModelError, PlanError
from .model import untold
from .task import Array

if TYPE_CHECKING:
    import torch

SAMPLES = 8
# A float32 artifact may sum in another order than its source; more than this means another computation.
FP32_TOLERANCE = 1e-3
FP16_TOLERANCE = 3e-2
LEAST_SCALE = 1e-3


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
        return list(onnx_model.run(source, samples, untold))
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


def compare(found: Sequence[Array], reference: Sequence[Array], stage: str, tolerance: float | None) -> dict[str, Any]:
    """{"stage", "max_abs_error", "sqnr_db" (None when the outputs are equal), "samples"}; arrays are (n, ...).

    tolerance: of the largest value, or None where rounding is meant to change the outputs.
    Raises ModelError where shapes differ, numbers are not finite, or the tolerance is passed.
    """
    shapes = [[array.shape for array in arrays] for arrays in (found, reference)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"after the stage '{stage}' the outputs have shapes {shapes[0]}, the source's {shapes[1]}; "
            "return every output as a tensor of its own with the batch first"
        )
    worst, noise, signal = 0.0, 0.0, 0.0
    for number, (ours, theirs) in enumerate(zip(found, reference, strict=True)):
        if not np.isfinite(ours).all():
            raise ModelError(
                f"output {number} is NaN or infinite after the stage '{stage}', the source's is finite; that stage is "
                "at fault"
            )
        difference = ours.astype(np.float64) - theirs.astype(np.float64)
        error = float(np.abs(difference).max(initial=0.0))
        largest = float(np.abs(theirs).max(initial=0.0))
        if tolerance is not None and error > tolerance * max(largest, LEAST_SCALE):
            raise ModelError(
                f"output {number} is off by {error:.3g} after the stage '{stage}' (largest value {largest:.3g}, "
                f"allowed {tolerance:g} of it); that stage changed the computation"
            )
        worst = max(worst, error)
        noise += float((difference**2).sum())
        signal += float((theirs.astype(np.float64) ** 2).sum())
    sqnr = 10 * float(np.log10(signal / noise)) if noise and signal else None
    return {"stage": stage, "max_abs_error": worst, "sqnr_db": sqnr, "samples": len(found[0])}


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
