"""Samples that are files, decoded through the cache: a run that changed nothing loads no decoder."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import tasks
from .cache import Cache, source_of, versions
from .plan import Plan
from .task import Array, Samples, samples_of

Say = Callable[[dict[str, Any]], None]

GOLDEN_SAMPLES = 4
GOLDEN_BYTES = 4 << 20
GOLDEN_CANDIDATES = 16


def with_classes(plan: Plan) -> Plan:
    """The plan with the classes that its samples' labels name, where the run file names none. Raises ConfigError."""
    task = plan.run_file.task
    if task.kind is None or task.classes or task.labels is None:
        return plan
    names = tasks.class_names(index(plan, task.kind).items)
    run_file = plan.run_file.model_copy(update={"task": task.model_copy(update={"classes": names})})
    return dataclasses.replace(plan, run_file=run_file)


def samples(plan: Plan, cache: Cache, kind: str, say: Say) -> Samples:
    """The samples of `[task] <kind> = …` (a file of edgeopt/tasks), raw, their arrays mapped from the cache's files.

    Raises ConfigError naming the file at fault, MissingDependency.
    """
    task = plan.run_file.task
    data, arrays = _decoded(plan, cache, kind, say)
    return samples_of(arrays, task.inputs, task.labels, task.groups, data.what, plan.column)


def golden(plan: Plan, cache: Cache, kind: str) -> bytes:
    """A few samples as they were found and as they must be once decoded, for the test of an application's own decoder.

    An .npz: `raw<i>` uint8 (bytes,) of the file or of the text in UTF-8, `name<i>`, `input<j>` (k, ...) with a row for
    each, and `prepare`, [task.prepare] as JSON. Raises ConfigError.
    """
    data, arrays = _decoded(plan, cache, kind, lambda _: None)
    chosen = dict(_few(data))
    found: dict[str, Any] = {"prepare": np.array(json.dumps({"kind": kind, **data.prepare.model_dump(mode="json")}))}
    for number, (row, raw) in enumerate(chosen.items()):
        found[f"raw{number}"] = np.frombuffer(raw, np.uint8)
        found[f"name{number}"] = np.array(data.items[row].where)
    for number, name in enumerate(data.inputs):
        found[f"input{number}"] = arrays[name][list(chosen)]
    buffer = io.BytesIO()
    np.savez(buffer, **found)
    return buffer.getvalue()


def index(plan: Plan, kind: str) -> tasks.Data:
    """Which samples there are, nothing decoded. Raises ConfigError."""
    task = plan.run_file.task
    given = getattr(task, kind)
    source: Path | dict[str, Path] = (
        {part: plan.folder / Path(path).expanduser() for part, path in given.items()}
        if isinstance(given, dict)
        else plan.folder / Path(given).expanduser()
    )
    column = plan.run_file.splits.column
    return tasks.index(kind, source, task.prepare, task.inputs, task.labels, task.groups, plan.folder, column)


def _decoded(plan: Plan, cache: Cache, kind: str, say: Say) -> tuple[tasks.Data, dict[str, Array]]:
    task, data = plan.run_file.task, index(plan, kind)
    inputs = {
        **data.key(),
        "versions": versions(tasks.load(kind).DISTRIBUTIONS),
        "code": source_of(*(f"edgeopt/tasks/{name}.py" for name in ("__init__", *tasks.HELPERS, kind))),
    }

    def build(folder: Path) -> None:
        def told(done: int, total: int) -> None:
            say({"event": "progress", "what": f"decoding {kind}", "done": done, "of": total})

        data.decode(folder, told)

    decoded = cache.stage(f"decoded {kind}", inputs, build)
    return data, data.arrays(decoded, task.labels, task.groups, plan.column, task.classes)


def _few(data: tasks.Data) -> Iterator[tuple[int, bytes]]:
    """(row, bytes) of samples from all over the data that are small together, of one at least."""
    rows = sorted({round(place) for place in np.linspace(0, len(data.items) - 1, GOLDEN_CANDIDATES)})
    contents = {row: data.items[row].content for row in rows}
    sizes = {row: len(c.encode()) if isinstance(c, str) else c.stat().st_size for row, c in contents.items()}
    smallest = min(rows, key=lambda row: sizes[row])
    fitting = [row for row in rows if sizes[row] <= GOLDEN_BYTES // GOLDEN_SAMPLES] or [smallest]
    for place in sorted({round(place) for place in np.linspace(0, len(fitting) - 1, GOLDEN_SAMPLES)}):
        content = contents[fitting[place]]
        yield fitting[place], content.encode() if isinstance(content, str) else content.read_bytes()
