"""Task: labelled samples, how they are prepared and scored, and the three splits that never share a group."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from edgeopt_agent import preprocess
from numpy.typing import NDArray

from .errors import ConfigError

Array = NDArray[Any]
SPLITS = ("calibration", "selection", "final")


@runtime_checkable
class TaskObject(Protocol):
    """What `[task] object = "package.module:factory"` returns.

    arrays(): one array (n, ...) per name in `[task] inputs`, labels (n, ...), groups (n,); all with the same n.
    score(): optional; per-sample scores (n,), larger is better. It runs on the host, from outputs that the board
    returned, each (n, ...) in the model's order.
    """

    def arrays(self) -> Mapping[str, Array]: ...


@dataclasses.dataclass(frozen=True)
class Samples:
    """inputs: one array (n, ...) per model input, raw; labels: (n, ...) or None; groups: (n,) or None."""

    inputs: tuple[Array, ...]
    labels: Array | None
    groups: Array | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, indices: Array) -> Samples:
        """The samples at `indices` (k,), in that order."""
        return Samples(
            tuple(array[indices] for array in self.inputs),
            None if self.labels is None else self.labels[indices],
            None if self.groups is None else self.groups[indices],
        )

    def prepared(self, steps: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[Array, ...]:
        """The inputs after `steps` (a list per input), as the source model takes them."""
        return tuple(
            preprocess.apply([dict(step) for step in own], array) for array, own in zip(self.inputs, steps, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Split:
    """How one split is chosen: these groups, at most `count` samples; without groups, `count` samples of the rest."""

    groups: tuple[int | str, ...] | None
    count: int | None


def read_npz(path: Path) -> dict[str, Array]:
    """Every array of an .npz, pickles refused. Raises ConfigError naming file and array."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise ConfigError(f"[task] arrays = '{path}': no such file; give the path of an .npz") from error
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(
            f"[task] arrays = '{path}' cannot be read as .npz of plain arrays ({error}); save it with "
            "numpy.savez(path, name=array, …), without object arrays"
        ) from error


def samples_of(
    arrays: Mapping[str, Array], inputs: Sequence[str], labels: str | None, groups: str | None, where: str
) -> Samples:
    """Picks and checks the named arrays. Raises ConfigError naming the array, what was found and what is needed."""
    for key, names in (("inputs", list(inputs)), ("labels", [labels]), ("groups", [groups])):
        for name in names:
            if name is not None and name not in arrays:
                raise ConfigError(f"[task] {key} = '{name}': {where} has no such array; it has: {', '.join(arrays)}")
    named = [*inputs, *(name for name in (labels, groups) if name is not None)]
    counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in named}
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ConfigError(f"[task] arrays of {where} do not match: {found}; every array needs one row per sample")
    if counts[inputs[0]] == 0:
        raise ConfigError(f"[task] arrays of {where} hold no sample")
    for name in inputs:
        if arrays[name].dtype.kind not in "fiu":
            raise ConfigError(f"[task] inputs = '{name}' has dtype {arrays[name].dtype}; numbers are needed")
        if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise ConfigError(f"[task] inputs = '{name}' in {where} holds NaN or infinity; clean the data first")
    if groups is not None and arrays[groups].ndim != 1:
        raise ConfigError(
            f"[task] groups = '{groups}' has shape {arrays[groups].shape}; one value per sample is needed"
        )
    return Samples(
        tuple(arrays[name] for name in inputs),
        arrays[labels] if labels is not None else None,
        arrays[groups] if groups is not None else None,
    )


def check_labels(labels: Array | None, metric: str, classes: int) -> None:
    """Class labels must be whole numbers from 0 to the model's classes - 1. Raises ConfigError."""
    if metric not in ("top1", "top5"):
        return
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        found = "absent" if labels is None else f"{labels.dtype} {labels.shape}"
        raise ConfigError(f"[task] labels: {found}; metric '{metric}' needs one whole number (n,) per sample")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ConfigError(
            f"[task] labels run from {low} to {high}, but the model has {classes} outputs: labels 0 to {classes - 1} "
            "are allowed; are they counted from 1, or from another class list?"
        )


def split(samples: Samples, wanted: Mapping[str, Split], seed: int) -> dict[str, Array]:
    """Indices (k,) per split: disjoint, and disjoint by group where there are groups. Raises ConfigError.

    Groups that a split names are its own. Splits that name none are given the remaining groups one by one, in an order
    drawn with `seed`, until their count is reached.
    """
    rng = np.random.default_rng(seed)
    groups = samples.groups if samples.groups is not None else np.arange(len(samples))
    named = _named_groups(samples, wanted)
    taken = {group for own in named.values() for group in own}
    rest = [group for group in rng.permutation(np.unique(groups)).tolist() if group not in taken]
    chosen: dict[str, Array] = {}
    for name in SPLITS:
        own = named.get(name)
        if own is None:
            own = _allot(groups, rest, wanted[name].count or 0)
        indices = np.flatnonzero(np.isin(groups, own))
        if len(indices) == 0:
            raise ConfigError(f"[splits] {name} is empty: no sample is left for it; give it groups or a smaller count")
        count = wanted[name].count
        if count is not None and len(indices) < count:
            raise ConfigError(
                f"[splits] {name}.count = {count}, but only {len(indices)} samples are left for it; lower the count"
            )
        if count is not None and len(indices) > count:
            indices = np.sort(rng.permutation(indices)[:count])
        chosen[name] = indices
    return chosen


def _named_groups(samples: Samples, wanted: Mapping[str, Split]) -> dict[str, list[Any]]:
    named = {name: list(spec.groups) for name, spec in wanted.items() if spec.groups is not None}
    if named and samples.groups is None:
        raise ConfigError(f"[splits] {next(iter(named))}.groups is given, but [task] groups names no array")
    present = set(np.unique(samples.groups).tolist()) if samples.groups is not None else set()
    owner: dict[Any, str] = {}
    for name, own in named.items():
        for group in own:
            if group not in present:
                known = ", ".join(map(str, sorted(present)))
                raise ConfigError(f"[splits] {name}.groups: there is no group {group!r}; the data has: {known}")
            if group in owner:
                raise ConfigError(f"[splits] group {group!r} is in {owner[group]} and in {name}; splits share no group")
            owner[group] = name
    return named


def _allot(groups: Array, rest: list[Any], count: int) -> list[Any]:
    """Take groups off `rest` until they hold `count` samples."""
    own: list[Any] = []
    held = 0
    while rest and held < count:
        own.append(rest.pop(0))
        held += int((groups == own[-1]).sum())
    return own
