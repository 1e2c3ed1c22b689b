"""Which channels hang together, and which of them are to go.

They hang together as torch-pruning's dependency graph says (https://arxiv.org/abs/2301.12900); those of the least norm
of their group's weights go. The graph does not see all that moves channels about: edgeopt.compress.proof tries it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgeopt.errors import ModelError
from edgeopt.model import user_code

from .cuts import Cut, copied, merged, torch_pruning

if TYPE_CHECKING:
    import torch

NO_GRADIENT = (
    "no output of the source model can be traced to its weights: its forward runs under torch.no_grad() or "
    "inference_mode(), or detaches what it returns; pruning and recovery need gradients: take that out of forward"
)

NOT_REACHED = "no gradient reaches it: it is not called in eval mode, or under torch.no_grad() only"


# A walk that never ends visits each dependency more often than this, or takes one channel for more than this many and
# than any layer has.
VISITS, WIDE = 20, 4096


class PruneStep(Protocol):
    """ratio: share of each layer's channels to remove, in (0, 1); round_to: widths become multiples of it."""

    @property
    def ratio(self) -> float: ...
    @property
    def round_to(self) -> int: ...


@dataclass(frozen=True)
class Group:
    """Layers that lose channels together, the one that is ranked first, and what is cut of them and their readers."""

    layers: tuple[str, ...]
    cuts: tuple[Cut, ...]


def propose(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], step: PruneStep, whole: dict[str, str]
) -> list[Group]:
    """The groups to cut. `whole` ({layer: why it is left whole}) is heeded, and gains the layers that cannot lose any.

    Raises ModelError where no graph can be drawn.
    """
    from torch import nn

    graph = _graph(module, inputs, whole)
    names = {id(layer): name for name, layer in graph.model.named_modules()}
    found: list[Group] = []
    seen: set[str] = set()
    for layer in [layer for layer in graph.module2node if _is_layer(layer)]:
        name = names[id(layer)]
        if name in seen or name in whole:
            continue
        try:
            members, cuts = _cuts(graph, layer, names, step, whole)
            _require_apart(found, cuts)
        except _Whole as reason:
            members = reason.layers or (name,)
            for member in members:
                whole.setdefault(member, reason.of(member))
        except _Endless as reason:
            members = (name,)
            whole[name] = f"its channels cannot be followed: {reason}"
        except Exception as error:  # whatever the library meets there; the other layers are not concerned
            members = (name,)
            whole[name] = f"torch-pruning cannot follow its channels ({words(error)})"
        else:
            found.append(Group(members, cuts))
        seen.update(members)
    reached = {names[id(layer)] for layer in graph.module2node if _is_layer(layer)}
    for name, _ in channel_layers(module):
        if name not in reached:
            owner = name.rpartition(".")[0]
            is_attention = isinstance(module.get_submodule(owner), nn.MultiheadAttention)
            whole.setdefault(name, f"it is a part of the attention '{owner}'" if is_attention else NOT_REACHED)
    return found


def channel_layers(module: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The convolutions and dense layers, by name."""
    return [(name, layer) for name, layer in module.named_modules() if _is_layer(layer)]


def output_layers(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[str]:
    """Names of the convolutions and dense layers whose width is an output's: the first met going backwards.

    Raises ModelError where no output has a gradient.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    made_by: dict[Any, str] = {}
    traced = _trainable(module)
    handles = [
        layer.register_forward_hook(lambda _l, _i, output, name=name: made_by.__setitem__(output.grad_fn, name))
        for name, layer in channel_layers(traced)
    ]
    with torch.enable_grad(), user_code("running the source model with gradients, which pruning follows,"):
        outputs = tree_leaves(traced(*inputs))
    for handle in handles:
        handle.remove()
    made_by.pop(None, None)
    waiting: list[Any] = [leaf.grad_fn for leaf in outputs if torch.is_tensor(leaf) and leaf.grad_fn is not None]
    if not waiting:
        raise ModelError(NO_GRADIENT)
    found: set[str] = set()
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
    return [name for name in dict.fromkeys(made_by.values()) if name in found]


def words(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def hangs_with(name: str) -> str:
    return f"hangs together with '{name}', which is left whole"


class _Endless(Exception):
    """Why torch-pruning never ends at a layer."""


class _Whole(Exception):
    """Why `layers` are left whole; is_first: why the first is, with which the others only hang together."""

    def __init__(self, why: str, layers: tuple[str, ...], is_first: bool = False) -> None:
        super().__init__(why)
        self.layers = layers
        self.is_first = is_first

    def of(self, layer: str) -> str:
        return hangs_with(self.layers[0]) if self.is_first and layer != self.layers[0] else str(self)


def _graph(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], whole: dict[str, str]) -> Any:
    """The dependency graph; without the layer that the library stumbles over, if it is one. Raises ModelError."""
    try:
        return _drawn(_with_vectors(_trainable(module)), inputs)
    except Exception:  # a forward may assign to a buffer, which a parameter in its place does not allow
        pass
    try:
        return _drawn(_trainable(module), inputs)
    except Exception as error:  # of the library, or of the model under it
        reason = error
    for name, _ in reversed(channel_layers(module)):
        try:
            graph = _drawn(_trainable(module), inputs, name)
        except Exception:
            continue
        whole.setdefault(name, f"torch-pruning cannot follow its channels ({words(reason)})")
        return graph
    raise ModelError(
        f"torch-pruning cannot draw the graph of the model's channels ({words(reason)}), with whichever layer left "
        "out, so none of it can be pruned; leave pruning out for this model"
    ) from reason


def _drawn(traced: torch.nn.Module, inputs: tuple[torch.Tensor, ...], without: str | None = None) -> Any:
    """torch-pruning's graph. Raises whatever the library meets."""
    import torch
    from torch.utils._pytree import tree_leaves

    def traceable(outputs: Any) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves(outputs) if torch.is_tensor(leaf) and leaf.grad_fn is not None]

    graph = torch_pruning().DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(
            traced,
            example_inputs=inputs,
            forward_fn=lambda model, given: model(*given),
            output_transform=traceable,
            unwrapped_parameters=_maps(traced),
            ignored_layers=[] if without is None else [traced.get_submodule(without)],
            verbose=False,
        )
    return graph


def _maps(module: torch.nn.Module) -> list[tuple[torch.nn.Parameter, int]]:
    """Parameters (1, channels, ...) of no layer, as learned positions are, with that axis; else the last is taken."""
    return [
        (parameter, 1)
        for part in module.modules()
        if not _is_layer(part)
        for parameter in part.parameters(recurse=False)
        if parameter.ndim >= 4 and parameter.shape[0] == 1 < parameter.shape[1]
    ]


def _trainable(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in eval mode through which gradients can be followed, frozen layers too."""
    traced = copied(module)
    for parameter in traced.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return traced


def _with_vectors(traced: torch.nn.Module) -> torch.nn.Module:
    """Its buffers of one number a channel (a frozen norm's, a mean to subtract) as parameters, which graphs follow."""
    from torch import nn

    for part in traced.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):  # these are cut with their norm
            continue
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_floating_point() and 1 < buffer.numel() == max(buffer.shape):
                delattr(part, name)
                part.register_parameter(name, nn.Parameter(buffer))
    return traced


def _is_layer(layer: object) -> bool:
    from torch import nn

    return isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)


def _cuts(
    graph: Any, layer: Any, names: dict[int, str], step: PruneStep, whole: dict[str, str]
) -> tuple[tuple[str, ...], tuple[Cut, ...]]:
    """(layers of the group of this one, what goes). Raises _Whole."""
    pruner = graph.get_pruner_of_module(layer)
    width = pruner.get_out_channels(layer)
    all_of_it = _hanging(graph, layer, pruner, list(range(width)))
    members = tuple(
        dict.fromkeys(
            names[id(item.target.module)]
            for item, _ in all_of_it
            if _is_layer(item.target.module) and graph.is_out_channel_pruning_fn(item.handler)
        )
    )
    if bound := next((member for member in members if member in whole), None):
        raise _Whole(hangs_with(bound), members)
    if bound := _bound(graph, all_of_it, names):
        raise _Whole(bound, members)

    def cuts(rows: list[int]) -> tuple[Cut, ...]:
        group = _hanging(graph, layer, pruner, rows)
        return tuple(merged([list(_recorded(graph, group, names))]))

    with_the_first = next(cut.indices for cut in cuts([0]) if cut.name == names[id(layer)] and cut.is_out)
    return members, cuts(_going(graph, all_of_it, width, len(with_the_first), step, members))


def _hanging(graph: Any, layer: Any, pruner: Any, rows: list[int]) -> Any:
    """torch-pruning's group of these channels of a layer. The library walks on for ever where channels meet themselves
    at other places (`y[:, 1:] - y[:, :-1]`, a Gram matrix), so its walk is given an end. Raises _Endless."""
    library = torch_pruning().dependency.graph
    most = VISITS * sum(len(node.dependencies) for node in graph.module2node.values())
    widest = max(WIDE, *(max(one.weight.shape[:2]) for one in graph.module2node if _is_layer(one)))

    class Bounded(library.Group):  # type: ignore[misc, name-defined]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self) >= most or len(idxs) > widest:
                raise _Endless("they meet themselves at other places")
            super().add_dep(dep, idxs)

    own, library.Group = library.Group, Bounded
    try:
        return graph.get_pruning_group(layer, pruner.prune_out_channels, rows)
    finally:
        library.Group = own


def _bound(graph: Any, group: Any, names: dict[int, str]) -> str | None:
    """Why a layer among those that would be cut does not allow it; each of these is cut wrongly by the library, or
    answers otherwise with fewer channels even if those that go are 0."""
    from torch import nn

    for item, _ in group:
        layer = item.target.module
        named = f"'{names.get(id(layer))}' ({type(layer).__name__})"
        if getattr(layer, "parametrizations", None):
            return f"the weights of {named} are computed from others (weight_norm, …), which cannot be cut"
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            return f"{named} norms by the mean and variance of all its channels, which would be others with fewer"
        if isinstance(layer, nn.MultiheadAttention):
            return f"its width is that of the attention {named}, whose heads cannot lose channels one by one"
        if isinstance(layer, nn.LSTM) and graph.is_out_channel_pruning_fn(item.handler):
            return f"its width is that of the state of {named}, which torch-pruning does not cut rightly"
    return None


def _going(graph: Any, group: Any, width: int, block: int, step: PruneStep, members: tuple[str, ...]) -> list[int]:
    """Indices of the channels that go, in (0, width): the least, in every part where they come in equal parts.

    block: how many neighbours go together, as those do that a view spreads over the places of one channel.
    """
    import torch

    importance = torch_pruning().pruner.importance.GroupMagnitudeImportance(p=2)(group)
    importance = torch.nan_to_num(importance) * (_made(graph, group, width) > 0)  # what is always 0 goes first
    parts = math.lcm(*(_parts(item.target.module) for item, _ in group))
    unit = math.lcm(parts * block, step.round_to)
    left = max(math.floor(width * (1 - step.ratio) + 1e-9) // unit, 1) * unit
    if left >= width or width % (parts * block):
        because = [f"round_to = {step.round_to}", *([f"in {parts} equal parts"] if parts > 1 else [])]
        because += [f"{block} go together"] if block > 1 else []
        raise _Whole(f"no smaller multiple of {unit} ({', '.join(because)})", members, is_first=True)
    ranked = importance.view(parts, -1, block).mean((0, 2)).argsort(stable=True)
    going = ranked[: (width - left) // parts // block]
    size = width // parts
    return [part * size + int(at) * block + own for part in range(parts) for at in going for own in range(block)]


def _made(graph: Any, group: Any, width: int) -> torch.Tensor:
    """(width,): the sizes of all weights and biases that make each channel."""
    import torch

    made = torch.zeros(width)
    for number, (item, rows) in enumerate(group):
        layer, roots = item.target.module, group[number].root_idxs
        if not _is_layer(layer) or not graph.is_out_channel_pruning_fn(item.handler) or None in roots:
            continue
        weight = layer.weight.detach().transpose(0, 1) if getattr(layer, "transposed", False) else layer.weight.detach()
        sizes = weight.flatten(1).abs().sum(1).float()
        if layer.bias is not None:
            sizes = sizes + layer.bias.detach().abs()
        made.index_add_(0, torch.tensor(roots), sizes[rows])
    return made


def _parts(layer: Any) -> int:
    """Into how many equal parts a grouped convolution sorts its channels; a depthwise one takes each by itself."""
    groups = getattr(layer, "groups", 1) if _is_layer(layer) else 1
    return 1 if groups == getattr(layer, "out_channels", 0) else groups


def _recorded(graph: Any, group: Any, names: dict[int, str]) -> Iterator[Cut]:
    from torch import nn

    parameters = {id(parameter): name for name, parameter in graph.model.named_parameters()}
    for item, indices in group:
        target, rows = item.target.module, tuple(sorted({int(index) for index in indices}))
        if isinstance(target, nn.Parameter):
            yield Cut(parameters[id(target)], False, rows, item.target.pruning_dim)
        elif id(target) in names:
            is_out = graph.is_out_channel_pruning_fn(item.handler) and not isinstance(target, nn.PReLU)
            yield Cut(names[id(target)], is_out, rows)


def _require_apart(found: Sequence[Group], cuts: tuple[Cut, ...]) -> None:
    taken = {cut.place: (set(cut.indices), group.layers[0]) for group in found for cut in group.cuts}
    for cut in cuts:
        rows, other = taken.get(cut.place, (set(), ""))
        if rows & set(cut.indices):
            raise _Whole(f"hangs together with '{other}' in part only", ())
