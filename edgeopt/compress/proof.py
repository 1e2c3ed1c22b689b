"""Proof that a pruned model is the source without some channels: it must answer as the source does with these at 0.

What moves channels about (a shuffle, a flatten from channel-last, attention) is easily lost on a dependency graph; the
pruned model runs then, and what it reads is scrambled. Such layers are found here by bisection, and left whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.errors import EdgeoptError, ModelError
from edgeopt.model import user_code

from .cuts import CannotCut, Cut, apply, masked, merged
from .groups import Group, hangs_with, words

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
Inputs = Sequence["tuple[torch.Tensor, ...]"]  # of single samples, each input (1, ...)

# Of how much the answers vary from sample to sample, and of their largest: float32 in another order makes no more.
OF_VARIATION, OF_LARGEST = 1e-4, 5e-6
UNEQUAL = 0.01  # of whole numbers, which are decided by a rounding where two are nearly equal
OTHERWISE = (
    "without them the model answers otherwise than the source does with them at 0: channels are moved (a shuffle, a "
    "flatten from channel-last), averaged, or pass through something that is not 0 at 0"
)


RENUMBERED = (
    "without them the model tells other whole numbers than the source does with them at 0: one of its outputs is the "
    "number of a channel (argmax, topk), and others have that number then"
)


class Unsound(Exception):
    """Why the cut model is not the source without these channels."""


def sound(
    source: torch.nn.Module,
    groups: Sequence[Group],
    samples: Inputs,
    whole: dict[str, str],
    progress: Callable[[str], None],
) -> tuple[list[Group], dict[str, Any] | None]:
    """The groups that can be cut, all of them together, and how near the cut model is to the masked source then.

    `whole` ({layer: why}) gains the layers of the others. Raises ModelError where the source itself does not repeat its
    answers.
    """
    last: dict[str, Any] | None = None

    def among(some: Sequence[Group], others: Sequence[Group]) -> list[Group]:
        nonlocal last
        if not some:
            return []
        try:
            last = difference(source, merged(group.cuts for group in [*others, *some]), samples)
            return list(some)
        except Unsound as reason:
            if len(some) > 1:
                progress("looking for the layers that cannot be pruned")
                half = len(some) // 2
                first = among(some[:half], others)
                return first + among(some[half:], [*others, *first])
            first_layer, *rest = some[0].layers
            whole[first_layer] = str(reason)
            whole.update(dict.fromkeys(rest, hangs_with(first_layer)))
            return []

    found = among(groups, [])
    if groups and not found:
        _require_repeated(source, samples)
    return found, last


def difference(source: torch.nn.Module, cuts: Sequence[Cut], samples: Inputs) -> dict[str, Any]:
    """{"samples", "max_abs_error", "sqnr_db" (None: equal)} of the cut model against the masked source.

    Raises Unsound.
    """
    given = _answers_without(source, cuts, samples)
    wanted = _answers_of("with these channels at 0 the model", masked(source, cuts), samples)
    for ours, theirs in zip(given, wanted, strict=True):
        shapes = [[answer.shape for answer in row] for row in (ours, theirs)]
        if shapes[0] != shapes[1]:
            found, wished = (", ".join(str(list(shape)) for shape in own) for own in shapes)
            raise Unsound(f"with fewer channels the outputs' shapes are {found} in place of {wished}")
    noise = signal = worst = 0.0
    for our_column, their_column in zip(zip(*given, strict=True), zip(*wanted, strict=True), strict=True):
        if their_column[0].dtype.kind != "f":
            _require_equal(_joined(our_column), _joined(their_column))
            continue
        want, off = _joined(their_column), _joined(our_column) - _joined(their_column)
        largest = float(np.abs(off).max(initial=0.0))
        if not largest <= _allowed(want):  # NaN included
            raise Unsound(OTHERWISE)
        worst = max(worst, largest)
        noise, signal = noise + float((off**2).sum()), signal + float((want**2).sum())
    sqnr_db = 10 * float(np.log10(signal / noise)) if noise and signal else None
    return {"samples": len(samples), "max_abs_error": worst, "sqnr_db": sqnr_db}


def with_noise(source: torch.nn.Module, samples: Inputs) -> list[tuple[torch.Tensor, ...]]:
    """The samples, and one of noise of their mean and spread where the source answers it in finite numbers: what is
    the same all over a sample, or dead on it, would prove nothing."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def noise(own: torch.Tensor) -> torch.Tensor:
        if not own.is_floating_point():
            return own
        spread = float(own.float().std(correction=0)) or 1.0
        return (torch.randn(own.shape, generator=generator) * spread + own.float().mean()).to(own.dtype)

    made = tuple(noise(own) for own in samples[0])
    try:
        with user_code("the source model on noise"):
            (found,) = answers(source, [made])
    except EdgeoptError:  # it does not take every input
        return list(samples)
    return [*samples, made] if all(np.isfinite(own).all() for own in found) else list(samples)


def answers(module: torch.nn.Module, samples: Inputs) -> list[list[Array]]:
    """The outputs of each sample, in pytree order; floating-point numbers as float32."""
    import torch
    from torch.utils._pytree import tree_leaves

    def plain(leaf: torch.Tensor) -> Array:
        real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        return (real.float() if real.is_floating_point() else real).numpy()

    with torch.no_grad():
        return [[plain(leaf) for leaf in tree_leaves(module(*one)) if torch.is_tensor(leaf)] for one in samples]


def _answers_without(source: torch.nn.Module, cuts: Sequence[Cut], samples: Inputs) -> list[list[Array]]:
    try:
        cut = apply(source, cuts)
    except CannotCut as error:
        raise Unsound(str(error)) from error
    except Exception as error:  # whatever the library meets there
        raise Unsound(f"torch-pruning cannot cut it ({words(error)})") from error
    return _answers_of("with fewer channels the model", cut, samples)


def _answers_of(what: str, module: torch.nn.Module, samples: Inputs) -> list[list[Array]]:
    try:
        with user_code(what):
            return answers(module, samples)
    except EdgeoptError as error:
        raise Unsound(_with_mend(str(error))) from error


def _joined(column: Sequence[Array]) -> Array:
    """One output of all samples, (samples, ...); flat where its size depends on the sample."""
    if len({answer.shape for answer in column}) == 1:
        return np.stack(column).astype(np.float64)
    return np.concatenate([answer.reshape(-1) for answer in column]).astype(np.float64)[None]


def _require_equal(found: Array, wanted: Array) -> None:
    if np.count_nonzero(found != wanted) > UNEQUAL * found.size:
        raise Unsound(RENUMBERED)


def _allowed(want: Array) -> float:
    spread = np.ptp(want, axis=0 if len(want) > 1 else None) if want.size else 0.0
    return OF_VARIATION * float(np.max(spread, initial=0.0)) + OF_LARGEST * float(np.abs(want).max(initial=0.0))


def _require_repeated(source: torch.nn.Module, samples: Inputs) -> None:
    try:
        difference(source, [], samples)
    except Unsound as error:
        raise ModelError(
            "the source model gives other answers each time to the same sample, so a pruned one cannot be compared "
            "with it; is there a dropout or noise that eval() does not end?"
        ) from error


def _with_mend(reason: str) -> str:
    if "shape" in reason and "invalid" in reason:
        return (
            reason + "; its forward fixes a shape, in numbers or in parts of one width: write it with flatten(1) or -1"
        )
    return reason
