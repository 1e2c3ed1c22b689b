"""Task: labelled samples, how they are prepared and scored, and the three splits that never share a group."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from edgeopt_agent import preprocess
from edgeopt_agent.wire import RemoteError
from numpy.typing import NDArray

from .errors import ConfigError

Array = NDArray[Any]
SPLITS = ("calibration", "selection", "final")
CLASS_METRICS = ("top1", "top5")
SHOWN_NAMES = 20
WIDEST_NUMBER_BYTES = 8  # what torch and the board's runtimes take


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

    def of_inputs(self, order: Sequence[int]) -> Samples:
        """The same with the inputs in another order."""
        return dataclasses.replace(self, inputs=tuple(self.inputs[index] for index in order))

    def prepared(self, steps: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[Array, ...]:
        """The inputs after `steps` (a list per input), as the source model takes them. Raises ConfigError."""
        return tuple(
            _prepare(array, own, f"[task.preprocess] of input {index}")
            for index, (array, own) in enumerate(zip(self.inputs, steps, strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Split:
    """How one split is chosen: these groups, at most `count` samples; without groups, `count` samples of the rest."""

    groups: tuple[int | str, ...] | None
    count: int | None


def read_npz(path: Path, key: str = "[task] arrays", objects: list[str] | None = None) -> dict[str, Array]:
    """Every array of an .npz, pickles refused. objects: is given the names of arrays of objects, else they are refused.

    Raises ConfigError naming key, file and array.
    """
    what = f"{key} = '{path}'"
    name = ""
    found: dict[str, Array] = {}
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ConfigError(f"{what} is a single .npy array; save it with numpy.savez(path, name=array, …)")
        with archive:
            for name in archive.files:
                try:
                    found[name] = archive[name]
                except ValueError as error:
                    if objects is None or "allow_pickle" not in str(error):
                        raise
                    objects.append(name)
    except FileNotFoundError as error:
        raise ConfigError(f"{what}: no such file; give the path of an .npz") from error
    except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        array = f", array '{name}'" if name else ""
        if isinstance(error, ValueError) and not array:  # numpy then speaks of pickles
            raise ConfigError(
                f"{what} cannot be read: it is not an .npz; give a file that numpy.savez(path, name=array, …) wrote, "
                "without object arrays"
            ) from error
        why = "its arrays do not fit into memory" if isinstance(error, MemoryError) else error
        raise ConfigError(
            f"{what} cannot be read as .npz of plain arrays{array} ({why}); save it again with "
            "numpy.savez(path, name=array, …), without object arrays"
        ) from error
    strange = [name for name, value in found.items() if not isinstance(value, np.ndarray)]
    if strange:  # numpy gives the bytes of a file that is no .npy
        raise ConfigError(f"{what} holds '{strange[0]}', which is no array; save it with numpy.savez")
    return found


def plain_arrays(given: object, what: str) -> dict[str, Array]:
    """What a task object's arrays() returned, as arrays. Raises ConfigError; `what` names the object."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what}: arrays() returned {type(given).__name__}; a mapping of names to arrays is needed")
    found: dict[str, Array] = {}
    for name, value in given.items():
        try:
            found[str(name)] = np.asarray(value)
        except ValueError as error:
            raise ConfigError(f"{what}: arrays() gave '{name}', which is no regular array ({error})") from error
        if found[str(name)].dtype.hasobject:
            raise ConfigError(f"{what}: arrays() gave '{name}' as objects; arrays of numbers or text are needed")
    return found


def samples_of(
    arrays: Mapping[str, Array], inputs: Sequence[str], labels: str | None, groups: str | None, where: str
) -> Samples:
    """Picks and checks the named arrays. Raises ConfigError naming the array, what was found and what is needed."""
    for key, names in (("inputs", list(inputs)), ("labels", [labels]), ("groups", [groups])):
        for name in names:
            if name is not None and name not in arrays:
                raise ConfigError(f"[task] {key} = '{name}': {where} has no such array; it has: {_some(arrays)}")
    named = [*inputs, *(name for name in (labels, groups) if name is not None)]
    counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in named}
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ConfigError(f"[task] arrays of {where} do not match: {found}; every array needs one row per sample")
    if counts[inputs[0]] == 0:
        raise ConfigError(f"[task] arrays of {where} hold no sample")
    for name in inputs:
        _check_numbers(arrays[name], f"[task] inputs = '{name}' in {where}")
    if groups is not None and (arrays[groups].ndim != 1 or arrays[groups].dtype.kind not in "iuU"):
        raise ConfigError(
            f"[task] groups = '{groups}' in {where} has shape {arrays[groups].shape}, type {arrays[groups].dtype}; one "
            "whole number or text per sample is needed"
        )
    return Samples(
        tuple(_native(arrays[name]) for name in inputs),
        _native(arrays[labels]) if labels is not None else None,
        arrays[groups] if groups is not None else None,
    )


def check_labels(labels: Array | None, metric: str, classes: int | None) -> None:
    """Labels must be numbers; those of classes whole ones from 0 to `classes` - 1 (None: not known yet).

    Raises ConfigError.
    """
    if labels is None:
        raise ConfigError(f"[task] labels: absent; metric '{metric}' needs the name of an array")
    if metric not in CLASS_METRICS:
        _check_numbers(labels, "[task] labels")
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"[task] labels: {labels.dtype} {labels.shape}; metric '{metric}' needs one whole number (n,) per sample, "
            'the index of its class: labels.astype("int64"), or argmax(axis=1) of one-hot rows'
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "0 and above" if classes is None else f"0 to {classes - 1}"
        raise ConfigError(
            f"[task] labels run from {low} to {high}, but there are {classes or 'no such'} classes: labels {allowed} "
            "are allowed; are they counted from 1, or from another class list?"
        )


def check_outputs(outputs: Sequence[Array], labels: Array | None, metric: str, classes: int) -> None:
    """The source model's outputs, each (n, ...), must be what the metric scores. Raises ConfigError.

    classes: how many the run file names, or 0.
    """
    first = outputs[0]
    if metric not in CLASS_METRICS:
        if labels is None or labels.shape != first.shape:
            found = "absent" if labels is None else labels.shape
            raise ConfigError(
                f"[task] labels: {found}; metric '{metric}' compares them with the model's output {first.shape} number "
                "by number: reshape the labels, or the output in the model"
            )
        return
    width = int(np.prod(first.shape[1:]))
    if classes and classes != width:
        raise ConfigError(f"[task] classes names {classes}, but the model has {width} outputs; correct one of them")
    if metric == "top5" and width <= 5:
        raise ConfigError(f"[task] metric = 'top5', but the model has {width} outputs, so it is always right; use top1")
    check_labels(labels, metric, width)


def split(samples: Samples, wanted: Mapping[str, Split], seed: int) -> dict[str, Array]:
    """Indices (k,) per split: disjoint, and disjoint by group where there are groups. Raises ConfigError.

    Groups that a split names are its own. Splits that name none are given the remaining groups one by one, in an order
    drawn with `seed`, until their count is reached.
    """
    rng = np.random.default_rng(seed)
    groups = samples.groups if samples.groups is not None else np.arange(len(samples))
    names, member = np.unique(groups, return_inverse=True)  # groups by number from here on; member: (n,)
    sizes = np.bincount(member)
    own = _named_groups(names.tolist(), wanted, samples.groups is not None)
    rest = rng.permutation(len(names))
    rest = rest[~np.isin(rest, [number for numbers in own.values() for number in numbers])]
    chosen: dict[str, Array] = {}
    for name in SPLITS:
        count = wanted[name].count
        if name not in own:
            taken = int(np.searchsorted(np.cumsum(sizes[rest]), count or 0)) + 1  # the group that reaches it too
            own[name], rest = rest[:taken].tolist(), rest[taken:]
        indices = np.flatnonzero(np.isin(member, own[name]))
        if len(indices) == 0:
            unit = "samples" if samples.groups is None else "groups"
            raise ConfigError(
                f"[splits] {name} is empty: the other splits take all {len(names)} {unit}; lower their count, or name "
                "groups for each"
            )
        if count is not None and len(indices) < count:
            held = "its groups hold" if wanted[name].groups is not None else "the other splits leave"
            raise ConfigError(f"[splits] {name}.count = {count}, but {held} {len(indices)} samples; lower a count")
        if count is not None and len(indices) > count:
            indices = np.sort(rng.permutation(indices)[:count])
        chosen[name] = indices
    return chosen


def _named_groups(names: list[Any], wanted: Mapping[str, Split], has_groups: bool) -> dict[str, list[int]]:
    """The groups that splits name, by their number among `names`."""
    numbers = {group: number for number, group in enumerate(names)}
    owner: dict[Any, str] = {}
    own: dict[str, list[int]] = {}
    for name, spec in wanted.items():
        if spec.groups is None:
            continue
        if not has_groups:
            raise ConfigError(f"[splits] {name}.groups is given, but [task] groups names no array")
        for group in dict.fromkeys(spec.groups):
            if group not in numbers:
                raise ConfigError(f"[splits] {name}.groups: there is no group {group!r}; {_known(names, group)}")
            if group in owner:
                raise ConfigError(f"[splits] group {group!r} is in {owner[group]} and in {name}; splits share no group")
            owner[group] = name
        own[name] = [numbers[group] for group in dict.fromkeys(spec.groups)]
    return own


def _known(names: list[Any], group: int | str) -> str:
    if isinstance(names[0], str) != isinstance(group, str):
        kind = "text: write it in quotes" if isinstance(names[0], str) else "whole numbers: write it without quotes"
        return f"the data's groups are {kind}, as {names[0]!r}"
    return f"the data has: {_some(names)}"


def _some(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    more = f" and {len(texts) - SHOWN_NAMES} more" if len(texts) > SHOWN_NAMES else ""
    return ", ".join(texts[:SHOWN_NAMES]) + more if texts else "none"


def _check_numbers(array: Array, what: str) -> None:
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > WIDEST_NUMBER_BYTES:
        raise ConfigError(f"{what} has type {array.dtype}; whole numbers or floats of at most 64 bits are needed")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        raise ConfigError(
            f"{what} holds NaN or infinity in {int(bad.sum())} of {len(array)} samples, first in sample "
            f"{int(np.flatnonzero(bad)[0])}; clean the data first"
        )


def _native(array: Array) -> Array:
    """In this machine's byte order, which torch insists on."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _prepare(array: Array, steps: Sequence[Mapping[str, Any]], what: str) -> Array:
    try:
        prepared: Array = preprocess.apply([dict(step) for step in steps], array)
    except RemoteError as error:
        raise ConfigError(f"{what}: {error}") from error
    if prepared.ndim == 0 or len(prepared) != len(array):
        raise ConfigError(
            f"{what} turns {array.shape} into {prepared.shape}; axis 0 is the sample and must stay so: correct the "
            "axes of its steps"
        )
    return prepared
