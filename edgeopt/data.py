"""The data of a run: read as [task] says, checked, and split; before board and model are needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import decode, formats, model, quantizable, stats
from .cache import Cache, versions
from .errors import ConfigError
from .parts import join_parts, split_of
from .plan import Plan
from .task import (
    CLASS_METRICS,
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
        f"the verdict can only be undecided or fail: with {n} samples in [splits] final a drop of "
        f"{interval[1]:.3g} cannot be excluded though every answer is the source model's, and [ladder] floor_drop is "
        f"{plan.floor_drop:g}; enlarge final or raise floor_drop"
    ]


def _given_splits(final: Samples) -> str:
    """What is often meant by a group that is called after a split."""
    assert final.groups is not None
    name = final.groups[0]
    return f" (is '{name}' a given split? then [splits] column names the array, and values)" if split_of(name) else ""


def read(plan: Plan, cache: Cache, say: Say) -> Samples:
    """All samples that [task] names, before they are split. Raises ConfigError, ModelError, MissingDependency."""
    task = plan.run_file.task
    if isinstance(task.arrays, dict):
        names = [*task.inputs, *(name for name in (task.labels, task.groups) if name is not None)]
        parts = {part: read_npz(plan.folder / path) for part, path in task.arrays.items()}
        joined = join_parts(parts, names)
        return samples_of(joined, task.inputs, task.labels, task.groups, "its parts", plan.column)
    if task.arrays is not None:
        path = plan.folder / task.arrays
        return samples_of(read_npz(path), task.inputs, task.labels, task.groups, f"'{path}'", plan.column)
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
