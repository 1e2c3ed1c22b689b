"""What a torch module's forward takes, by name, and how it is called by position, as converters call it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .binding import Takes
from .task import Array

if TYPE_CHECKING:
    import torch


def takes(module: torch.nn.Module) -> Takes:
    """The inputs that the module's forward names, or that of the module which it wraps, was compiled or exported from.

    A forward whose one parameter is annotated as a dictionary takes any number of arrays by name.
    """
    own = _signature(module)
    if own is None:
        return Takes((), (), "positions")
    if _is_dictionary(module, own):
        return Takes((), (), "keywords")
    parameters = own.parameters.values()
    variadic = {parameter.kind for parameter in parameters} & {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    named = [parameter for parameter in parameters if parameter.kind not in variadic]
    required = tuple(parameter.name for parameter in named if parameter.default is parameter.empty)
    names = tuple(parameter.name for parameter in named)
    if inspect.Parameter.VAR_POSITIONAL in variadic:
        return Takes(names, required, "positions")
    is_bare = len(named) == 1 and named[0].annotation is inspect.Parameter.empty
    hint = (
        f"; if '{names[0]}' is a dictionary, say so in forward: {names[0]}: dict[str, torch.Tensor]" if is_bare else ""
    )
    return Takes(names, required, "keywords" if variadic and not named else "nothing", hint)


def by_position(module: torch.nn.Module, names: Sequence[str]) -> torch.nn.Module:
    """A module that is called by position with these inputs of `module`: itself, where its forward allows that."""
    own = _signature(module)
    if own is None or any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.parameters.values()):
        return module
    is_dictionary = _is_dictionary(module, own)
    keyword_only = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    places = [parameter.name for parameter in own.parameters.values() if parameter.kind not in keyword_only]
    if not is_dictionary and list(names) == places[: len(names)]:
        return module
    return _by_name(module, tuple(names), is_dictionary)


def keys_read(module: torch.nn.Module, named: Mapping[str, Array]) -> tuple[str, ...]:
    """Of a forward that takes a dictionary: the keys that it looks up, all where it walks through them.

    named: one sample (1, ...) per key. What the forward raises is the caller's.
    """
    import torch

    class Read(dict[str, torch.Tensor]):
        """Notes what is looked up in it."""

        seen: set[str]

        def __getitem__(self, key: str) -> torch.Tensor:
            self.seen.add(key)
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            self.seen.add(key)
            return super().get(key, default)

        def __iter__(self) -> Iterator[str]:
            self.seen.update(super().keys())
            return super().__iter__()

        def keys(self) -> Any:
            return list(iter(self))

        def values(self) -> Any:
            return [self[key] for key in self]

        def items(self) -> Any:
            return [(key, self[key]) for key in self]

    batch = Read({name: torch.from_numpy(array.copy()) for name, array in named.items()})
    batch.seen = set()
    with torch.no_grad():
        module(batch)
    return tuple(name for name in named if name in batch.seen)


def is_dictionary(module: torch.nn.Module) -> bool:
    """Whether its forward takes one dictionary."""
    own = _signature(module)
    return own is not None and _is_dictionary(module, own)


def _by_name(module: torch.nn.Module, names: tuple[str, ...], as_dictionary: bool) -> torch.nn.Module:
    import torch

    class ByName(torch.nn.Module):
        """Gives the user's module by name what it is called with by position."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *arrays: torch.Tensor) -> Any:
            named = dict(zip(names, arrays, strict=True))
            return self.model(named) if as_dictionary else self.model(**named)

    if all(name.isidentifier() for name in names):  # what exports a module names its inputs after this
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        told = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])
        ByName.forward.__signature__ = told  # type: ignore[attr-defined]
    made = ByName()
    made.training = module.training
    return made


def _forward(module: torch.nn.Module) -> Any:
    """The forward that says what is taken, behind wrappers that take anything."""
    import torch

    inner = module.module if isinstance(module, torch.nn.DataParallel) else getattr(module, "_orig_mod", None)
    return _forward(inner) if isinstance(inner, torch.nn.Module) else module.forward


def _signature(module: torch.nn.Module) -> inspect.Signature | None:
    """Of forward; None where nothing is known of it."""
    forward = _forward(module)
    schema = getattr(forward, "schema", None)  # TorchScript's
    if schema is not None:
        names = [argument.name for argument in schema.arguments[1:]]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter(name.replace(".", "_"), kind) for name in names])
    try:
        return inspect.signature(forward)
    except (TypeError, ValueError):
        return None


def _is_dictionary(module: torch.nn.Module, own: inspect.Signature) -> bool:
    """Whether the one parameter is annotated as a dictionary, Mapping or TypedDict."""
    if len(own.parameters) != 1:
        return False
    (parameter,) = own.parameters.values()
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    try:
        said = typing.get_type_hints(_forward(module)).get(parameter.name)
    except Exception:  # annotations of names that only a type checker imports
        return str(parameter.annotation).split("[")[0].split(".")[-1] in ("dict", "Dict", "Mapping", "MutableMapping")
    origin = typing.get_origin(said) or said
    return isinstance(origin, type) and issubclass(origin, Mapping)
