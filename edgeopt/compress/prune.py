"""Structured pruning: whole channels go, widths stay aligned, and the result can be rebuilt without pickle.

Which channels hang together, and which of them go: edgeopt.compress.groups; that the rest is still the source model:
edgeopt.compress.proof. Repair is edgeopt.compress.recover's.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.config import nearest
from edgeopt.errors import ConfigError, ModelError

from . import proof
from .cuts import CannotCut, Cut, apply, merged, plain_state, torch_pruning
from .groups import PruneStep, channel_layers, output_layers, propose

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
History = dict[str, Any]
HISTORY, STATE = "history.json", "state.npz"
SAMPLES = 4  # that the proof runs
OUTPUT = "its width is an output's"


def requirements() -> tuple[str, ...]:
    return "torch", "torch-pruning"


def prune(
    module: torch.nn.Module,
    step: PruneStep,
    example: tuple[Array, ...],
    progress: Callable[[str], None],
    keep: Sequence[str] = (),
) -> tuple[torch.nn.Module, History]:
    """A pruned copy of `module`, and a JSON-able history from which `restore` cuts the same channels again.

    example: one preprocessed array (n, ...) per input; its first samples are run. A layer is left whole that yields an
    output, that `keep` names (by name or pattern), or without whose channels the model does not answer as the source
    does with these at 0. history holds `cuts` ([layer, whether its outputs, indices in the source]), `widths` ({layer:
    [before, after]}), `whole` ([{"layer", "width", "why"}]), `proof` (of the cut model against the masked source),
    `parameters` and `macs` ([before, after]; multiply-accumulates of convolutions and dense layers for one sample).
    Raises ModelError when nothing can be pruned, and says why; ConfigError for a name in `keep` that no layer has;
    MissingDependency without torch-pruning.
    """
    torch_pruning()
    before, samples = _widths(module), _samples(example)
    if not before:
        raise ModelError("nothing to prune: it has no convolution and no dense layer")
    outputs = output_layers(module, samples[0])
    whole = dict.fromkeys(outputs, OUTPUT)
    whole |= dict.fromkeys(_kept(module, keep), "it is to be kept")
    progress(f"pruning {step.ratio:.0%} of the channels")
    groups = propose(module, samples[0], step, whole)
    progress("comparing with the source model whose cut channels are 0")
    tried = proof.with_noise(module, samples)
    groups, shown = proof.sound(module, groups, tried, whole, progress)
    if not groups:
        raise ModelError(_why_nothing(before, whole))
    cuts = merged(group.cuts for group in groups)
    pruned = apply(module, cuts)
    history: History = {
        "torch-pruning": version("torch-pruning"),
        "ratio": step.ratio,
        "round_to": step.round_to,
        "cuts": [[cut.name, cut.is_out, list(cut.indices)] for cut in cuts if cut.axis is None],
        "parameter_cuts": [[cut.name, cut.axis, list(cut.indices)] for cut in cuts if cut.axis is not None],
        "kept": outputs,
        "widths": {name: [before[name], after] for name, after in _widths(pruned).items()},
        "whole": [{"layer": name, "width": before[name], "why": why} for name, why in whole.items()],
        "proof": {**(shown or {}), "noise": len(tried) - len(samples)},
        "macs": [macs(module, samples[0]), macs(pruned, samples[0])],
        "parameters": [_parameters(module), _parameters(pruned)],
    }
    return pruned, history


def expected_gain(module: torch.nn.Module, step: PruneStep, example: tuple[Array, ...]) -> float:
    """Share of the multiply-accumulates that this step would remove: an upper bound of the latency gain."""
    _, history = prune(module, step, example, lambda _: None)
    before, after = history["macs"]
    return 1.0 - after / before if before else 0.0


def summary(history: History) -> str:
    """What is left of the multiply-accumulates, and which layers were left whole for another reason than an output."""
    before, after = history["macs"]
    whole = [own["layer"] for own in history["whole"] if own["why"] != OUTPUT]
    return f"pruned: {after / max(before, 1):.0%} of the multiply-accumulates left" + (
        f"; left whole: {', '.join(whole)}" if whole else ""
    )


def save(module: torch.nn.Module, history: History, folder: Path) -> None:
    """Writes history.json and state.npz (the state dict as plain arrays); the first is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = plain_state(module)
    partial = folder / (STATE + ".part")
    with partial.open("wb") as file:
        np.savez(file, **state)
    os.replace(partial, folder / STATE)
    partial = folder / (HISTORY + ".part")
    partial.write_text(json.dumps(history, indent=1))
    os.replace(partial, folder / HISTORY)


def restore(source: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The module that `save` was given, rebuilt from the unpruned source model; `source` itself is not changed."""
    import torch

    history = json.loads((folder / HISTORY).read_text())
    cuts = [Cut(name, is_out, tuple(rows)) for name, is_out, rows in history["cuts"]]
    cuts += [Cut(name, False, tuple(rows), axis) for name, axis, rows in history["parameter_cuts"]]
    try:
        module = apply(source, cuts)
    except (CannotCut, AttributeError) as error:
        raise ModelError(f"{folder}: {_changed(str(error))}") from error
    with np.load(folder / STATE, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state |= {name: value for name, value in module.state_dict().items() if not torch.is_tensor(value)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{folder}: {_changed(str(error).splitlines()[-1].strip())}") from error
    return module.eval()


def macs(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Multiply-accumulates of the convolutions and dense layers for these inputs."""
    import torch
    from torch import nn

    total = 0

    def count(layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        # a transposed convolution's weight is (in, out / groups, ...): each input element meets all but its first axis
        elements = _inputs[0].numel() if isinstance(layer, nn.modules.conv._ConvTransposeNd) else output.numel()
        total += elements * weight[0].numel()

    handles = [layer.register_forward_hook(count) for _, layer in channel_layers(module)]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _samples(example: Sequence[Array]) -> list[tuple[torch.Tensor, ...]]:
    """The first samples one by one, each input (1, ...)."""
    import torch

    return [
        tuple(torch.from_numpy(np.ascontiguousarray(array[row : row + 1])) for array in example)
        for row in range(min(SAMPLES, len(example[0])))
    ]


def _kept(module: torch.nn.Module, patterns: Sequence[str]) -> list[str]:
    """The layers that these names or patterns mean, themselves or as parts of a module. Raises ConfigError."""
    layers = [name for name, _ in channel_layers(module)]
    modules = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        meant = fnmatch.filter(modules, pattern)
        kept = [layer for layer in layers if any(f"{layer}.".startswith(f"{name}.") for name in meant)]
        if not kept:
            shown = ", ".join(layers[:12]) + (f" and {len(layers) - 12} others" if len(layers) > 12 else "")
            raise ConfigError(
                f"[prune] keep = '{pattern}': the model has no such convolution or dense layer; "
                f"{nearest(pattern, layers) or 'it has ' + (shown or 'none')}"
            )
        found += kept
    return found


def _widths(module: torch.nn.Module) -> dict[str, int]:
    return {
        name: int(getattr(layer, "out_channels", None) or layer.out_features)  # type: ignore[arg-type]
        for name, layer in channel_layers(module)
    }


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _changed(why: str) -> str:
    return (
        "the pruned weights do not fit the source model, which must have changed since; delete the folder and prune "
        f"again ({why})"
    )


def _why_nothing(widths: dict[str, int], whole: dict[str, str]) -> str:
    others = {name: why for name, why in whole.items() if why != OUTPUT}
    if not others:
        why = f"its only such layers yield the outputs ({', '.join(whole)})"
    else:
        told = [f"'{name}' ({widths[name]} channels): {why}" for name, why in others.items()]
        why = "; ".join(told[:6]) + (f"; and {len(told) - 6} others" if len(told) > 6 else "")
    return f"nothing to prune: {why}; change that, or leave pruning out"
