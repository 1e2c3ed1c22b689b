"""The data of a run: read as [task] says, checked, and split; before board and model are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import decode, formats, model, quantizable, stats, tasks
from .cache import Cache, versions
from .errors import ConfigError
from .parts import called_in, join_parts, split_of, tells_splits
from .plan import Plan
from .task import (
    CLASS_METRICS,
    Array,
    Samples,
    TaskObject,
    check_labels,
    plain_arrays,
    read_npz,
    samples_of,
    split,
)

Say = Callable[[dict[str, Any]], None]


def opened(plan: Plan, cache: Cache, say: Say) -> dict[str, Samples]:
    """The splits, read and checked, before board and model are needed; an ONNX model's files must be there.

    Raises ConfigError, ModelError.
    """
    task = plan.run_file.task
    if plan.run_file.model.onnx is not None:
        contents = formats.read(plan.folder / plan.run_file.model.onnx, "onnxruntime")
        for rung in sorted({"int8", "npu"} & set(plan.rungs)):
            mend = f"leave '{rung}' out of [ladder] rungs; the others take it as it is"
            quantizable.require_float(contents, f"the rung '{rung}'", mend)
    samples = read(plan, cache, say)
    rows = split(samples, plan.splits, plan.run_file.splits.seed)
    splits = {name: samples.take(indices) for name, indices in rows.items()}
    for own in splits.values():
        if task.metric is not None:
            check_labels(own.labels, task.metric, len(task.classes) or None)
        own.take(np.arange(min(2, len(own)))).prepared(plan.preprocess)
    return splits


def preview(plan: Plan) -> tuple[dict[str, int], list[str]]:
    """(how many samples each split has, what is foreseen) from labels, groups and parts alone: nothing is decoded, and
    no code of the user's is run, so that of a Python task nothing is told. Raises ConfigError."""
    task = plan.run_file.task
    if task.object is not None:
        return {}, []
    names = [name for name in (task.labels, task.groups) if name is not None]
    if task.kind is not None:
        items = decode.index(plan, task.kind).items
        groups = tasks.named([str(item.group) for item in items]) if task.groups else None
        parts = tasks.named([str(item.part) for item in items]) if plan.column else None
        samples = Samples((np.zeros(len(items)),), None, groups, parts)
    else:
        samples = samples_of(_arrays(plan, names), names[:1], None, task.groups, "the data", plan.column)
    rows = split(samples, plan.splits, plan.run_file.splits.seed)
    return {name: len(own) for name, own in rows.items()}, foreseen(plan, samples.take(rows["final"]))


def _arrays(plan: Plan, names: Sequence[str]) -> dict[str, Array]:
    """The named arrays of [task] arrays, with the column of given splits. Raises ConfigError."""
    given, column = plan.run_file.task.arrays, plan.run_file.splits.column
    if isinstance(given, dict):
        parts = {part: read_npz(plan.folder / path, only=called_in(part, names)) for part, path in given.items()}
        return join_parts(parts, names)
    return read_npz(plan.folder / str(given), only=[*names, *([column] if column else [])])


def foreseen(plan: Plan, final: Samples) -> list[str]:
    """Why a run of this plan can only end undecided, in words, before anything is measured; nothing where it can pass.

    Of one group no interval tells of others; and where every decision is the source model's, the interval still has
    the width of its count.
    """
    n, groups = len(final), None if final.groups is None else len(np.unique(final.groups))
    if groups == 1:
        return [
            f"the verdict can only be undecided: [splits] final holds one group of [task] groups = "
            f"'{plan.run_file.task.groups}', which says nothing of others; give final several groups, or leave groups "
            "out" + _given_splits(final)
        ]
    if plan.run_file.task.metric not in CLASS_METRICS:
        return []
    same = np.ones(n)
    drop = stats.paired_drop(same, same, final.groups)
    interval = drop["drop_interval"]
    if stats.verdict(0.0, interval, plan.floor_drop, n, groups)[0] == "pass":
        return []
    return [
        f"the verdict will be undecided though every answer were the source model's: with {n} samples in [splits] "
        f"final a drop of {interval[1]:.2g} cannot be excluded, but [ladder] floor_drop is {plan.floor_drop:g}; enlarge"
        " final, or raise floor_drop"
    ]


def _given_splits(final: Samples) -> str:
    """What is often meant by a group that is called after a split."""
    assert final.groups is not None
    name = final.groups[0]
    return f" (is '{name}' a given split? then [splits] column names the array, and values)" if split_of(name) else ""


def _mixed(plan: Plan, found: Mapping[str, Array]) -> list[str]:
    """Arrays of text that tell given splits, where the run file names none."""
    spec = plan.run_file.splits
    if plan.column is not None or any(section.groups for section in spec.sections().values()):
        return []
    texts = [name for name, array in found.items() if array.ndim == 1 and array.dtype.kind == "U"]
    return [name for name in texts if tells_splits(np.unique(found[name]).tolist())]


def read(plan: Plan, cache: Cache, say: Say) -> Samples:
    """All samples that [task] names, before they are split. Raises ConfigError, ModelError, MissingDependency."""
    task = plan.run_file.task
    if isinstance(task.arrays, dict):
        names = [*task.inputs, *(name for name in (task.labels, task.groups) if name is not None)]
        return samples_of(_arrays(plan, names), task.inputs, task.labels, task.groups, "its parts", plan.column)
    if task.arrays is not None:
        path = plan.folder / task.arrays
        found = read_npz(path)
        for name in _mixed(plan, found):
            said = f"'{name}' in {path} holds names of splits, and the run file mixes them: name it in [splits] column"
            say({"event": "warning", "what": said})
        return samples_of(found, task.inputs, task.labels, task.groups, f"'{path}'", plan.column)
    if task.kind is not None:
        return decode.samples(plan, cache, task.kind, say)
    spec = str(task.object)

    def build(folder: Path) -> None:
        made = model.call_factory(spec, plan.folder, {}, "[task] object")
        if not isinstance(made, TaskObject):
            raise ConfigError(f"[task] object = '{spec}' returned {type(made).__name__}, which has no arrays() method")
        if task.metric is None and not callable(getattr(made, "score", None)):
            raise ConfigError(f"[task] object = '{spec}' has no score() method, and [task] metric is absent; give one")
        with model.user_code(f"arrays() of [task] object = '{spec}'"):
            given = made.arrays()
        arrays: dict[str, Any] = plain_arrays(given, f"arrays() of [task] object = '{spec}'")
        np.savez(folder / "arrays.npz", **arrays)

    inputs = {
        "object": spec,
        "folder": str(plan.folder),
        "needs_score": task.metric is None,
        "versions": versions(["numpy"]),
    }
    folder = cache.traced("task", inputs, build)
    return samples_of(read_npz(folder / "arrays.npz"), task.inputs, task.labels, task.groups, f"'{spec}'", plan.column)
