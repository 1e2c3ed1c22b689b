"""Task: labelled samples, how they are prepared and scored, and the three splits that never share a group."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from edgeopt_agent import preprocess
from edgeopt_agent.wire import RemoteError
from numpy.typing import NDArray

from .errors import ConfigError

Array = NDArray[Any]
SPLITS = ("calibration", "selection", "final")
ALL_SPLITS = ("train", *SPLITS)  # train may be absent
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
    """inputs: one array (n, ...) per model input, raw; labels: (n, ...) or None; groups: (n,) or None.

    parts: (n,), which of the given parts of the data a sample is of; None where none are given.
    """

    inputs: tuple[Array, ...]
    labels: Array | None
    groups: Array | None
    parts: Array | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, indices: Array) -> Samples:
        """The samples at `indices` (k,), in that order."""
        return Samples(
            tuple(array[indices] for array in self.inputs),
            None if self.labels is None else self.labels[indices],
            None if self.groups is None else self.groups[indices],
            None if self.parts is None else self.parts[indices],
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
    """How one split is chosen: these groups, at most `count` samples; without groups, `count` samples of the rest.

    values: only samples of these parts; without a count, all that the other splits leave of them.
    """

    groups: tuple[int | str, ...] | None
    count: int | None
    values: tuple[int | str, ...] | None = None


def read_npz(
    path: Path,
    key: str = "[task] arrays",
    objects: list[str] | None = None,
    only: Container[str] | None = None,
) -> dict[str, Array]:
    """Every array of an .npz, or those of `only`; pickles refused. objects: is given the names of arrays of objects,
    else they are refused.

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
                if only is not None and name not in only:
                    continue
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
    arrays: Mapping[str, Array],
    inputs: Sequence[str],
    labels: str | None,
    groups: str | None,
    where: str,
    column: str | None = None,
) -> Samples:
    """Picks and checks the named arrays; column: [splits] column. Raises ConfigError naming the array, what was found
    and what is needed."""
    keys: dict[str, list[str | None]] = {
        "[task] inputs": list(inputs),
        "[task] labels": [labels],
        "[task] groups": [groups],
    }
    for key, names in {**keys, "[splits] column": [column]}.items():
        for name in names:
            if name is not None and name not in arrays:
                raise ConfigError(f"{key} = '{name}': {where} has no such array; it has: {some(arrays)}")
    named = [*inputs, *(name for name in (labels, groups, column) if name is not None)]
    counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in named}
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ConfigError(f"[task] arrays of {where} do not match: {found}; every array needs one row per sample")
    if counts[inputs[0]] == 0:
        raise ConfigError(f"[task] arrays of {where} hold no sample")
    for name in inputs:
        _check_numbers(arrays[name], f"[task] inputs = '{name}' in {where}")
    for key, one in (("[task] groups", groups), ("[splits] column", column)):
        if one is not None and (arrays[one].ndim != 1 or arrays[one].dtype.kind not in "iuU"):
            raise ConfigError(
                f"{key} = '{one}' in {where} has shape {arrays[one].shape}, type {arrays[one].dtype}; one whole number "
                "or text per sample is needed"
            )
    return Samples(
        tuple(_native(arrays[name]) for name in inputs),
        _native(arrays[labels]) if labels is not None else None,
        arrays[groups] if groups is not None else None,
        arrays[column] if column is not None else None,
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
    drawn with `seed`, until their count is reached; of the parts that they name, where parts are given.
    """
    rng = np.random.default_rng(seed)
    groups = samples.groups if samples.groups is not None else np.arange(len(samples))
    names, member = np.unique(groups, return_inverse=True)  # groups by number from here on; member: (n,)
    own = _named_groups(names.tolist(), wanted, samples.groups is not None)
    rest = rng.permutation(len(names))
    rest = rest[~np.isin(rest, [number for numbers in own.values() for number in numbers])]
    pools = _pools(samples, wanted, names, member)
    chosen: dict[str, Array] = {}
    for name in _drawn(wanted):
        count, pool = wanted[name].count, pools[name]
        if name not in own:
            rows = np.bincount(member[pool], minlength=len(names))
            fitting = rest[rows[rest] > 0]
            reached = np.cumsum(rows[fitting])
            taken = len(fitting) if count is None else int(np.searchsorted(reached, count)) + 1  # the one that reaches
            own[name] = fitting[:taken].tolist()
            rest = rest[~np.isin(rest, own[name])]
        indices = np.flatnonzero(np.isin(member, own[name]) & pool)
        _require_enough(name, wanted[name], len(indices), samples.groups is not None, len(names))
        if count is not None and len(indices) > count:
            indices = np.sort(rng.permutation(indices)[:count])
        chosen[name] = indices
    return {name: chosen[name] for name in ALL_SPLITS if name in chosen}


def _drawn(wanted: Mapping[str, Split]) -> list[str]:
    """The order in which splits are drawn: what takes all that is left comes last, and training's before."""
    order = [name for name in (*SPLITS, "train") if name in wanted]
    takes_rest = [name for name in order if wanted[name].groups is None and wanted[name].count is None]
    for first, name in enumerate(takes_rest):
        for other in takes_rest[first + 1 :]:
            if shared := set(wanted[name].values or ()) & set(wanted[other].values or ()):
                raise ConfigError(
                    f"[splits] {name} and {other} both take all of {sorted(map(str, shared))[0]!r}; give one of them a "
                    "count, or other values"
                )
    return [name for name in order if name not in takes_rest] + takes_rest


def _pools(samples: Samples, wanted: Mapping[str, Split], names: Array, member: Array) -> dict[str, Array]:
    """By split, which samples (n,) bool its values admit; all where it names none. Raises ConfigError for a value that
    nothing has, and for a group with rows of a split's parts and of another's."""
    everything = np.ones(len(samples), bool)
    pools = {name: everything for name in wanted}
    given = {name: own.values for name, own in wanted.items() if own.values is not None}
    if not given:
        return pools
    assert samples.parts is not None
    there = np.unique(samples.parts).tolist()
    for name, values in given.items():
        for value in values:
            if value not in there:
                raise ConfigError(f"[splits] {name}.values: there is no {value!r}; {_known(there, value, 'values')}")
        pools[name] = np.isin(samples.parts, values)
    if samples.groups is not None:
        used = np.logical_or.reduce([pools[name] for name in given])
        for name in given:
            both = np.intersect1d(member[pools[name]], member[used & ~pools[name]])
            if len(both):
                raise ConfigError(
                    f"[splits] {name}.values: group {names[both[0]].item()!r} has rows of its values and of another "
                    "split's; splits share no group: correct the column, or leave [task] groups out"
                )
    return pools


def _require_enough(name: str, own: Split, found: int, has_groups: bool, total: int) -> None:
    """Raises ConfigError for a split without a sample, or with fewer than its count."""
    where = f" of {', '.join(map(repr, own.values))}" if own.values is not None else ""
    if found == 0:
        unit = "groups" if has_groups else "samples"
        raise ConfigError(
            f"[splits] {name} is empty: the other splits take all {'' if where else f'{total} '}{unit}{where}; lower "
            "their count, or name others for each"
        )
    if own.count is not None and found < own.count:
        held = "its groups hold" if own.groups is not None else "the other splits leave"
        raise ConfigError(f"[splits] {name}.count = {own.count}, but {held} {found} samples{where}; lower a count")


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


def _known(names: list[Any], group: int | str, what: str = "groups") -> str:
    if isinstance(names[0], str) != isinstance(group, str):
        kind = "text: write it in quotes" if isinstance(names[0], str) else "whole numbers: write it without quotes"
        return f"the data's {what} are {kind}, as {names[0]!r}"
    return f"the data has: {some(names)}"


def some(names: Iterable[object]) -> str:
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
