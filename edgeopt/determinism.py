"""Whether a source gives the same answer twice, and to a sample the same whatever else is in its batch.

Where it does not, it has no answer that an artifact could keep: Dropout or BatchNormalization left in training mode,
random numbers, state, statistics over the batch. What is at fault is found by comparing all that both runs computed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import model, onnx_model
from .errors import ModelError
from .task import Array

if TYPE_CHECKING:
    import torch

Tell = Callable[[str, str, tuple[Array, ...]], None]  # of a step: its kind, its place, its values
Trace = Callable[[Sequence[Array], Tell], None]

SAMPLES = 4
SHOWN = 3
ROUNDING = 1e-6  # of the largest value: threads may add in another order
BATCH_ROUNDING = 1e-3  # other kernels serve other batches
TIES = 1e-3  # share of the numbers that a tie may have moved elsewhere
UNINITIALIZED = ("empty", "new_empty")
MEND_TWICE = "make it deterministic: an artifact can keep only an answer that there is"
MEND_BATCH = "make each sample's answer its own: a board runs one sample at a time"
RANDOM = ("dropout", "bernoulli", "rand", "normal", "multinomial", "uniform", "exponential")


@dataclass(frozen=True)
class Step:
    """Something that a run computed. kind: its operator; place: where it stands; values: its outputs."""

    kind: str
    place: str
    values: tuple[Array, ...]


def check(source: torch.nn.Module | Path, samples: Sequence[Array]) -> None:
    """Runs the source on a few samples twice, then on one of them; samples: (n, ...) per input, of which it takes four.

    Raises ModelError naming the node or the line where the answers part, and all that running the source raises.
    """
    if isinstance(source, Path) and (nodes := onnx_model.training_nodes(source)):
        raise ModelError(
            f"{source} computes as in training at {', '.join(nodes[:SHOWN])}: its answers are random, or depend on "
            "what else is in the batch; export the model in eval mode (training_mode = 0)"
        )
    few = tuple(array[:SAMPLES] for array in samples)
    run, takes_batches = _runner(source)
    first, again = run(few), run(few)
    if _differ(first, again, ROUNDING, 0.0):
        two = tuple(array[: 2 if takes_batches else 1] for array in few)
        at = _first_unlike(source, two, two, ROUNDING)
        raise ModelError(
            f"the source model gives another answer each time that it is run{_where(at)}; {_mend(at, MEND_TWICE)}"
        )
    if len(few[0]) == 1 or not takes_batches:
        return
    single = tuple(array[:1] for array in few)
    try:
        alone = run(single)
    except ModelError as error:
        why = str(error).replace(model.MEND_INPUTS, "")
        step = Step("batch_norm", "", ()) if "when training" in why else None  # torch's words
        raise ModelError(
            f"the source model takes {len(few[0])} samples at once, but not one alone: {why}; {_mend(step, MEND_BATCH)}"
        ) from error
    if _differ(alone, [output[:1] for output in first], BATCH_ROUNDING, TIES):
        at = _first_unlike(source, single, few, BATCH_ROUNDING)
        raise ModelError(
            "the source model's answer to a sample depends on what else is in its batch"
            f"{_where(at)}; {_mend(at, MEND_BATCH)}"
        )


def _runner(source: torch.nn.Module | Path) -> tuple[Callable[[Sequence[Array]], Sequence[Array]], bool]:
    """(what gives the source's outputs, whether it takes several samples at once)."""
    if isinstance(source, Path):
        opened = onnx_model.Opened(source)
        return lambda inputs: opened.run(inputs, model.untold), opened.has_free_batch
    return lambda inputs: model.run_torch(source, inputs), True


def _differ(first: Sequence[Array], second: Sequence[Array], tolerance: float, ties: float) -> bool:
    """Whether outputs differ by more than `tolerance` of their largest value in more than a share `ties` of numbers."""
    if [array.shape for array in first] != [array.shape for array in second]:
        return True
    return any(_share_off(one, two, tolerance) > ties for one, two in zip(first, second, strict=True))


def _share_off(first: Array, second: Array, tolerance: float) -> float:
    if first.dtype.kind not in "fiub" or second.dtype.kind not in "fiub" or first.size == 0:
        return 0.0
    one, two = first.astype(np.float64), second.astype(np.float64)
    is_finite = np.isfinite(one)
    largest = float(np.abs(one[is_finite]).max(initial=0.0)) if first.dtype.kind == "f" else 0.0
    return float(np.mean(~np.isclose(one, two, rtol=0.0, atol=tolerance * largest, equal_nan=True)))


def _where(step: Step | None) -> str:
    return f": the answers part at {step.place}" if step else ""


def _mend(step: Step | None, otherwise: str) -> str:
    kind = step.kind.lower().replace("_", "") if step else ""
    if "batchnorm" in kind:
        return (
            "it normalizes with the statistics of the batch, as in training: call F.batch_norm with "
            "training=self.training, register the layer in its module, or export in eval mode (training_mode=0)"
        )
    if any(word in kind for word in RANDOM):
        return (
            "it draws random numbers, as dropout does in training: call F.dropout with training=self.training, "
            "register the layer in its module, export in eval mode, or take the random numbers out"
        )
    return otherwise


def _first_unlike(
    source: torch.nn.Module | Path, first: Sequence[Array], second: Sequence[Array], tolerance: float
) -> Step | None:
    """The first step of the run on `second` that computes other numbers than the run on `first`, if it can be found.

    Where `first` is one sample and `second` begins with it, its part of every tensor is compared.
    """
    before: list[Step] = []
    found: list[Step] = []

    def keep(kind: str, place: str, values: tuple[Array, ...]) -> None:
        before.append(Step(kind, place, values))

    def compare(kind: str, place: str, values: tuple[Array, ...]) -> None:
        other = None if found else next(remaining, None)
        if other is not None and (other.kind != kind or _steps_differ(other.values, values, tolerance)):
            found.append(Step(kind, place, ()))

    with contextlib.suppress(ModelError):  # the answers differ, wherever that may be
        trace: Trace = onnx_model.Traced(source).run if isinstance(source, Path) else partial(_trace_torch, source)
        trace(first, keep)
        remaining = iter(before)
        trace(second, compare)
    return found[0] if found else None


def _steps_differ(first: tuple[Array, ...], second: tuple[Array, ...], tolerance: float) -> bool:
    for one, two in zip(first, second, strict=False):
        is_counter = one.ndim == 0 and one.dtype.kind in "iu"  # of the batches that a layer has seen
        if (
            is_counter
            or one.ndim != two.ndim
            or any(own > other for own, other in zip(one.shape, two.shape, strict=True))
        ):
            continue
        part = two[tuple(slice(0, size) for size in one.shape)]
        if _share_off(one, part, tolerance) > TIES:
            return True
    return False


def _trace_torch(module: torch.nn.Module, inputs: Sequence[Array], tell: Tell) -> None:
    """Runs the module and tells of every operator: its name, where it was called, its outputs."""
    import torch
    from torch.utils import _pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    inside: list[str] = []

    class Telling(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            kind = func.overloadpacket.__name__
            leaves = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            if not kind.startswith(UNINITIALIZED):
                place = f"operator '{kind}'{_in_layer(inside)}{_users_line()}"
                tell(kind, place, tuple(_as_array(leaf) for leaf in leaves))
            return result

    with _told_layers(module, inside), Telling():  # type: ignore[no-untyped-call]
        model.run_torch(module, inputs)


def _as_array(tensor: torch.Tensor) -> Array:
    import torch

    plain = tensor.detach().cpu()
    if plain.is_sparse or plain.is_quantized or plain.is_complex():
        return np.zeros(0)
    wide = plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain
    return np.array(wide.numpy())


@contextlib.contextmanager
def _told_layers(module: torch.nn.Module, inside: list[str]) -> Iterator[None]:
    """While it runs, `inside` holds the names of the layers that are being called."""
    handles = []
    for name, layer in module.named_modules():
        if name:
            told = f"{name} ({type(layer).__name__})"
            handles.append(layer.register_forward_pre_hook(lambda *_, told=told: inside.append(told)))
            handles.append(layer.register_forward_hook(lambda *_: inside.pop() and None, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _in_layer(inside: Sequence[str]) -> str:
    return f" of layer {inside[-1]}" if inside else ""


def _users_line() -> str:
    """The innermost line of the user's own code that is being run, or nothing."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != model.__file__:
        if model.is_users(frame.f_code.co_filename):
            return f" ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
