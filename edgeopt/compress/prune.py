"""Structured pruning: whole channels go, widths stay aligned, and the result can be rebuilt without pickle.

Which channels hang together is torch-pruning's dependency graph (https://arxiv.org/abs/2301.12900); which of them go is
decided by the norm of their group's weights, ranked within each layer. Repair is edgeopt.compress.recover's.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgeopt.errors import MissingDependency, ModelError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
History = dict[str, Any]
HISTORY, STATE = "history.json", "state.npz"


class PruneStep(Protocol):
    """ratio: share of each layer's channels to remove, in (0, 1); round_to: widths become multiples of it."""

    @property
    def ratio(self) -> float: ...
    @property
    def round_to(self) -> int: ...


def requirements() -> tuple[str, ...]:
    return "torch", "torch-pruning"


def prune(
    module: torch.nn.Module, step: PruneStep, example: tuple[Array, ...], progress: Callable[[str], None]
) -> tuple[torch.nn.Module, History]:
    """A pruned copy of `module`, and a JSON-able history from which `restore` cuts the same channels again.

    example: one preprocessed array (n, ...) per input; its first sample is traced. Layers that yield outputs keep their
    width. history holds `cuts`, `widths` ({layer: [before, after]}), `parameters` and `macs` ([before, after];
    multiply-accumulates of convolutions and dense layers for one sample).
    Raises ModelError when nothing can be pruned, and says why; MissingDependency without torch-pruning.
    """
    pruning = _torch_pruning()
    inputs = _first_sample(example)
    kept = output_layers(module, inputs)
    pruned = copy.deepcopy(module).eval()
    names = {name: layer for name, layer in pruned.named_modules()}
    before = _widths(pruned)
    progress(f"pruning {step.ratio:.0%} of the channels")
    with _failures_named("torch-pruning cannot follow the model's channels"):
        pruner = pruning.pruner.BasePruner(
            pruned,
            inputs,
            importance=pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=step.ratio,
            round_to=step.round_to,
            ignored_layers=[names[name] for name in kept],
        )
        pruner.step()
    cuts = [[name, bool(out), [int(index) for index in indices]] for name, out, indices in pruner.pruning_history()]
    widths = {name: [width, _widths(pruned)[name]] for name, width in before.items()}
    if not cuts:
        raise ModelError(_why_nothing(before, kept, step))
    _check_outputs(module, pruned, inputs)
    history: History = {
        "torch-pruning": version("torch-pruning"),
        "ratio": step.ratio,
        "round_to": step.round_to,
        "example": [{"shape": list(tensor.shape), "dtype": tensor.numpy().dtype.name} for tensor in inputs],
        "cuts": cuts,
        "kept": kept,
        "widths": widths,
        "macs": [macs(module, inputs), macs(pruned, inputs)],
        "parameters": [_parameters(module), _parameters(pruned)],
    }
    progress(f"pruned: {history['macs'][1] / max(history['macs'][0], 1):.0%} of the multiply-accumulates left")
    return pruned, history


def expected_gain(module: torch.nn.Module, step: PruneStep, example: tuple[Array, ...]) -> float:
    """Share of the multiply-accumulates that this step would remove: an upper bound of the latency gain."""
    _, history = prune(module, step, example, lambda _: None)
    before, after = history["macs"]
    return 1.0 - after / before if before else 0.0


def save(module: torch.nn.Module, history: History, folder: Path) -> None:
    """Writes history.json and state.npz (the state dict as plain arrays); the first is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
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
    module = _replay(source, history)
    with np.load(folder / STATE, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"{folder}: the pruned weights do not fit the source model, which must have changed since; "
            f"delete the folder and prune again ({str(error).splitlines()[-1].strip()})"
        ) from error
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

    handles = [layer.register_forward_hook(count) for _, layer in _channel_layers(module)]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total


def output_layers(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[str]:
    """Names of the convolutions and dense layers whose width is an output's: the first met going backwards."""
    import torch
    from torch.utils._pytree import tree_leaves

    made_by: dict[Any, str] = {}
    order: list[str] = []

    def note(name: str) -> Callable[[torch.nn.Module, Any, torch.Tensor], None]:
        def hook(_layer: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            order.append(name)
            made_by[output.grad_fn] = name

        return hook

    traced = copy.deepcopy(module).eval().requires_grad_(True)
    handles = [layer.register_forward_hook(note(name)) for name, layer in _channel_layers(traced)]
    with torch.enable_grad():
        outputs = tree_leaves(traced(*inputs))
    for handle in handles:
        handle.remove()
    found: set[str] = set()
    waiting = [output.grad_fn for output in outputs if torch.is_tensor(output)]
    if None in waiting:  # a forward without gradients: the layer that ran last is the best guess, and is checked later
        found.update(order[-1:])
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made_by:
            found.add(made_by[node])
        else:
            waiting += [parent for parent, _ in node.next_functions]
    return [name for name in dict.fromkeys(order) if name in found]


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingDependency(
            f"pruning needs torch-pruning ({error}); install it: pip install 'edgeopt[torch]'"
        ) from error
    return torch_pruning


def _first_sample(example: Sequence[Array]) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(array[:1])) for array in example)


def _channel_layers(module: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    from torch import nn

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)]


def _widths(module: torch.nn.Module) -> dict[str, int]:
    return {
        name: int(getattr(layer, "out_channels", None) or layer.out_features)  # type: ignore[arg-type]
        for name, layer in _channel_layers(module)
    }


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _replay(source: torch.nn.Module, history: History) -> torch.nn.Module:
    import torch

    pruning = _torch_pruning()
    module = copy.deepcopy(source).eval()
    inputs = tuple(torch.from_numpy(np.zeros(spec["shape"], spec["dtype"])) for spec in history["example"])
    with _failures_named("the pruning history does not fit the source model"):
        graph = pruning.DependencyGraph().build_dependency(module, example_inputs=inputs)
        graph.load_pruning_history(copy.deepcopy(history["cuts"]))
    return module


@contextmanager
def _failures_named(what: str) -> Iterator[None]:
    import torch

    try:
        with torch.enable_grad():
            yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{what}: {type(error).__name__}: {reason[0][:300] if reason else 'no reason given'}; "
            "leave the prune rung out of the plan for this model"
        ) from error


def _check_outputs(module: torch.nn.Module, pruned: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.no_grad():
        wanted = [tuple(output.shape) for output in tree_leaves(module(*inputs))]
        try:
            found = [tuple(output.shape) for output in tree_leaves(pruned(*inputs))]
        except RuntimeError as error:
            raise ModelError(
                f"the pruned model does not run: {str(error).splitlines()[0]}; its forward probably fixes a shape "
                "(view with numbers); write it with flatten(1) or -1, or leave the prune rung out of the plan"
            ) from error
    if found != wanted:
        raise ModelError(
            f"pruning changed the outputs' shapes from {wanted} to {found}; leave the prune rung out of the plan"
        )


def _why_nothing(widths: dict[str, int], kept: list[str], step: PruneStep) -> str:
    free = {name: width for name, width in widths.items() if name not in kept}
    if not widths:
        why = "it has no convolution and no dense layer"
    elif not free:
        why = f"its only such layers yield the outputs ({', '.join(kept)})"
    else:
        shown = ", ".join(f"{name} {width}" for name, width in list(free.items())[:6])
        why = (
            f"no layer can lose {step.ratio:.0%} of its channels and keep a multiple of {step.round_to}, or all hang "
            f"together with an output's (widths: {shown})"
        )
    return f"nothing to prune: {why}; lower round_to, or leave the prune rung out of the plan"
