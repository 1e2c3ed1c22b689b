"""Which array is which input of a model: by name where both have names, and a doubt is an error, never a guess."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .config import nearest
from .errors import ConfigError

ALIKE = 0.75  # of difflib's ratio: names with a letter too many, or two in the wrong order
NUMBERED = re.compile(r"[A-Za-z_]*_?(\d+)")  # numpy.savez(path, a, b) calls its arrays arr_0 and arr_1


@dataclass(frozen=True)
class Takes:
    """What a model is called with.

    names: its inputs in its order; required: those of them that it cannot do without. rest: how it takes what it does
    not name: not at all, any number by position (*args), or any number by name (**kwargs, or one dictionary). hint:
    what else its author could say of it.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    rest: Literal["nothing", "positions", "keywords"] = "nothing"
    hint: str = ""

    def __str__(self) -> str:
        told = [name if name in self.required else f"{name} (optional)" for name in self.names]
        told += {"nothing": [], "positions": ["any number by position"], "keywords": ["any number by name"]}[self.rest]
        return ", ".join(told) or "none"


@dataclass(frozen=True)
class Binding:
    """arrays[i] is the name of the array that the model's input inputs[i] takes; left: arrays that none takes."""

    inputs: tuple[str, ...]
    arrays: tuple[str, ...]
    left: tuple[str, ...]
    by: Literal["name", "order"]

    def __str__(self) -> str:
        pairs = zip(self.inputs, self.arrays, strict=True)
        told = ", ".join(f"{own} ← {array}" for own, array in pairs)
        return f"{told} (by {'their order' if self.by == 'order' else 'name'})"

    def entry(self) -> dict[str, Any]:
        """JSON-able."""
        pairs = [{"input": own, "array": array} for own, array in zip(self.inputs, self.arrays, strict=True)]
        return {"inputs": pairs, "by": self.by, "left": list(self.left)}


def bind(takes: Takes, given: Sequence[str], what: str, is_ordered: bool = False) -> Binding:
    """The array for each input of a model; `given` are the arrays' names, in their order.

    Names of the model's own decide, and the order where there is one input, where the arrays are numbered, or where
    `is_ordered` says that whoever wrote their names meant them in the model's order; then every array must be taken.
    what: the option or key that gives the arrays. Raises ConfigError where it cannot be told.
    """
    known = [name for name in takes.names if name in given]
    missing = [name for name in takes.required if name not in given]
    strange = [name for name in given if name not in takes.names]
    if takes.rest == "keywords" and not missing:
        return Binding((*known, *strange), (*known, *strange), (), "name")
    if known:
        if missing or (is_ordered and strange):
            raise ConfigError(_contradiction(takes, given, missing, strange, what))
        for name in takes.names:
            if name not in given and (close := difflib.get_close_matches(name, strange, n=1, cutoff=ALIKE)):
                raise ConfigError(
                    f"{what}: no array is named like the model's optional input '{name}', and '{close[0]}' nearly is: "
                    "rename that array, to this name if it is meant and to another one if it is not"
                )
        return Binding(tuple(known), tuple(known), tuple(strange), "name")
    most = len(given) if takes.rest == "positions" else len(takes.names)
    least = max(len(takes.required), 1)
    if not least <= len(given) <= most:
        raise ConfigError(
            f"{what}: {len(given)} arrays ({', '.join(given)}), none of which is named like an input, and the model "
            f"takes {_count(least, most)}: {takes}; give the arrays the names of the inputs"
            + ("" if is_ordered else ", and name the array of labels with --labels, if there is one")
            + takes.hint
        )
    if len(given) > 1 and not (is_ordered or are_numbered(given)):
        raise ConfigError(
            f"{what}: which array is which input cannot be told: the arrays are {', '.join(given)}, the model's inputs "
            f"{takes}; save the arrays under the inputs' names, or without names in the model's order: "
            "numpy.savez(path, first, second)"
        )
    own = [*takes.names, *(f"input {number}" for number in range(len(takes.names), len(given)))]
    return Binding(tuple(own[: len(given)]), tuple(given), (), "order")


def are_numbered(names: Sequence[str]) -> bool:
    """Whether the names say nothing but a place, and are in the order of their places: arr_0, arr_1, …"""
    found = [NUMBERED.fullmatch(name) for name in names]
    stems = {name[: match.start(1)] for name, match in zip(names, found, strict=True) if match}
    return all(found) and len(stems) == 1 and [int(m[1]) for m in found if m] == list(range(len(names)))


def _contradiction(
    takes: Takes, given: Sequence[str], missing: Sequence[str], strange: Sequence[str], what: str
) -> str:
    told = f"{what}: the arrays are {', '.join(given)}, the model's inputs {takes}: "
    if not missing:
        return told + f"'{strange[0]}' is none of them; remove or rename it"
    near = nearest(missing[0], strange)
    return told + f"none is named '{missing[0]}'; rename the array that is meant{f' ({near})' if near else ''}"


def _count(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"
