"""What is cut: indices of the outputs or inputs of layers and along the axes of parameters, as the source numbers them.

Cutting them gives the pruned model; setting to zero what they produce gives the source that it must answer like.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeopt.errors import MissingDependency, ModelError

if TYPE_CHECKING:
    import torch


class CannotCut(Exception):
    """Why these channels cannot go."""


@dataclass(frozen=True)
class Cut:
    """`indices` of one layer's outputs, or of its inputs; with an `axis`, of a parameter or buffer along it."""

    name: str
    is_out: bool
    indices: tuple[int, ...]
    axis: int | None = None

    @property
    def place(self) -> tuple[str, bool, int | None]:
        return self.name, self.is_out, self.axis


def merged(parts: Iterable[Sequence[Cut]]) -> list[Cut]:
    """One cut per place, of all that the parts take there."""
    found: dict[tuple[str, bool, int | None], set[int]] = {}
    for part in parts:
        for cut in part:
            found.setdefault(cut.place, set()).update(cut.indices)
    return [Cut(name, is_out, tuple(sorted(own)), axis) for (name, is_out, axis), own in found.items()]


def apply(source: torch.nn.Module, cuts: Sequence[Cut]) -> torch.nn.Module:
    """A copy of `source` in eval mode without the cut channels.

    Raises CannotCut where a layer has no such channel, or layers that share a tensor would part.
    """
    import torch

    box = torch_pruning().pruner.function.PrunerBox
    ops = torch_pruning().ops
    module = copied(source)
    work = []
    for cut in cuts:  # all looked up before the first is made: a grouped convolution may be a depthwise one afterwards
        layer = module.get_submodule(cut.name) if cut.axis is None else None
        work.append((cut, layer, None if layer is None else box[ops.module2type(layer)]))
    with torch.no_grad():
        for cut, layer, pruner in work:
            if pruner is None:
                tensor = _tensor(module, cut.name)
                _require(cut, tensor.shape[cut.axis or 0])
                kept = [index for index in range(tensor.shape[cut.axis or 0]) if index not in cut.indices]
                rest = tensor.index_select(cut.axis or 0, torch.tensor(kept))
                _put(module, cut.name, torch.nn.Parameter(rest) if isinstance(tensor, torch.nn.Parameter) else rest)
                continue
            _require(cut, pruner.get_out_channels(layer) if cut.is_out else pruner.get_in_channels(layer))
            (pruner.prune_out_channels if cut.is_out else pruner.prune_in_channels)(layer, list(cut.indices))
    _tie_again(module, source)
    return module


def masked(source: torch.nn.Module, cuts: Sequence[Cut]) -> torch.nn.Module:
    """A copy of `source` in eval mode whose cut channels are 0 where they are made and behind their norm."""
    import torch

    module = copied(source)
    with torch.no_grad():
        for cut in cuts:
            rows = torch.tensor(cut.indices)
            if cut.axis is not None:
                _tensor(module, cut.name).index_fill_(cut.axis, rows, 0)
            elif cut.is_out:
                _silence(module.get_submodule(cut.name), rows)
    return module


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in eval mode. Raises ModelError."""
    try:
        return copy.deepcopy(module).eval()
    except Exception as error:  # of what the module holds: locks, files, tensors with a history
        raise ModelError(
            f"the model cannot be copied ({type(error).__name__}: {str(error)[:200]}), which pruning does; keep only "
            "parameters, buffers and plain values in it"
        ) from error


def shared(module: torch.nn.Module) -> list[list[str]]:
    """Names of parameters that are one tensor, a list for each such tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [own for own in names.values() if len(own) > 1]


def plain_state(module: torch.nn.Module) -> dict[str, Any]:
    """Its weights and buffers as arrays; bfloat16, which numpy has not, as float32."""
    import torch

    tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    return {
        name: (value.float() if value.dtype is torch.bfloat16 else value).detach().cpu().numpy()
        for name, value in tensors.items()
    }


def torch_pruning() -> Any:
    """The package. Raises MissingDependency."""
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingDependency(
            f"pruning needs torch-pruning ({error}); install it: pip install 'edgeopt[torch]'"
        ) from error
    return torch_pruning


def _require(cut: Cut, width: int) -> None:
    side = f"along axis {cut.axis}" if cut.axis is not None else "outputs" if cut.is_out else "inputs"
    if len(cut.indices) >= width:
        raise CannotCut(f"none of the {width} {side} of '{cut.name}' would be left: they all hang together")
    if not 0 <= cut.indices[0] <= cut.indices[-1] < width:
        raise CannotCut(f"'{cut.name}' has {width} {side}; those up to {cut.indices[-1]} cannot go")


def _silence(layer: torch.nn.Module, rows: torch.Tensor) -> None:
    from torch import nn

    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is None:  # a norm without weights: (n, channels, ...)
        layer.register_forward_hook(lambda _layer, _inputs, output: output.index_fill(1, rows, 0))
        return
    turned = isinstance(layer, nn.modules.conv._ConvTransposeNd | nn.Embedding)  # (in, out, ...)
    weight.index_fill_(1 if turned else 0, rows, 0)
    if bias is not None:
        bias.index_fill_(0, rows, 0)


def _tie_again(module: torch.nn.Module, source: torch.nn.Module) -> None:
    """What was one tensor in the source is one again."""
    for names in shared(source):
        first, *others = (_tensor(module, name) for name in names)
        if any(other.shape != first.shape or bool((other != first).any()) for other in others):
            raise CannotCut(f"'{names[0]}' and '{names[1]}' are one tensor and would lose different channels")
        for name in names[1:]:
            _put(module, name, first)


def _tensor(module: torch.nn.Module, name: str) -> Any:
    owner, _, own = name.rpartition(".")
    return getattr(module.get_submodule(owner), own)


def _put(module: torch.nn.Module, name: str, tensor: Any) -> None:
    owner, _, own = name.rpartition(".")
    setattr(module.get_submodule(owner), own, tensor)
