"""Samples from files: pictures, sounds, texts. A kind of data is one file here, found by its name, which is its key in
[task]; what it needs to decode is imported on use.

A kind is a module with
    SOURCE: str                      what its key may name, in words
    DISTRIBUTIONS: tuple[str, ...]   the packages that decode, whose versions decide the result
    Prepare(Section)                 the keys of [task.prepare]
    read(source, labels, groups, part) -> list[Item]  what is there, nothing decoded
    input_conflicts(inputs) -> Iterator[Conflict]     which [task] inputs it can fill
    files(prepare, folder) -> list[Path]              other files that decide the result
    decoder(prepare, inputs, folder) -> Decode        raises MissingDependency, ConfigError
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import config
from ..config import Conflict, Section
from ..errors import ConfigError
from ..task import CLASS_METRICS, Array
from .items import Content, Item

Progress = Callable[[int, int], None]
Decode = Callable[[Content], tuple[Array, ...]]  # raises ConfigError from `unfit`


class Kind(Protocol):
    SOURCE: str
    DISTRIBUTIONS: tuple[str, ...]
    Prepare: type[Section]

    def read(self, source: Path, labels: str | None, groups: str | None, part: str | None = None) -> list[Item]: ...
    def input_conflicts(self, inputs: Sequence[str]) -> Iterator[Conflict]: ...
    def files(self, prepare: Any, folder: Path) -> list[Path]: ...
    def decoder(self, prepare: Any, inputs: Sequence[str], folder: Path) -> Decode: ...


HELPERS = ("items", "features")
KINDS = tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS))


def load(kind: str) -> Kind:
    module: Any = importlib.import_module(f"{__name__}.{kind}")
    return module  # type: ignore[no-any-return]


def conflicts(
    kind: str | None, inputs: Sequence[str], metric: str | None, prepare: Mapping[str, Any]
) -> Iterator[Conflict]:
    """What is wrong in a [task] with `kind = …` (None: its samples are arrays) and this [task.prepare]."""
    if kind is None:
        if prepare:
            mend = "remove the table: arrays are prepared before"
            yield Conflict(("prepare",), "a table", f"nothing without one of {', '.join(KINDS)}", mend)
        return
    if metric is not None and metric not in CLASS_METRICS:
        mend = "use arrays or object for labels that are no classes"
        yield Conflict(("metric", kind), f"'{metric}'", ", ".join(CLASS_METRICS), mend)
    module = load(kind)
    yield from module.input_conflicts(inputs)
    _, problems = config.check_data(prepare, module.Prepare)
    for problem in problems:
        keys = tuple(f"prepare.{key}" for key in problem.key.split(" and "))
        yield Conflict(keys, problem.found, problem.allowed, problem.mend)


def source_words(kind: str) -> str:
    """What the key of that kind is for, for `--explain`."""
    return f"Instead of arrays: {load(kind).SOURCE}"


def explain() -> str:
    """The keys of [task.prepare] by kind, for `--explain`."""
    parts = []
    for kind in KINDS:
        parts.append(f"For {kind}:")
        for key in config.keys(load(kind).Prepare):
            default = "required" if key.default is None else f"default: {key.default}"
            parts.append(f"  {key.key}   [{default}]   {key.allowed}. {key.description}")
    return "\n    ".join(parts)


@dataclasses.dataclass(frozen=True)
class Data:
    """Samples before they are decoded: `items`, and how `kind` makes arrays called `inputs` of them."""

    kind: str
    items: list[Item]
    prepare: Section
    inputs: tuple[str, ...]
    folder: Path
    what: str

    def key(self) -> dict[str, Any]:
        """All that decides the decoded arrays but versions and source. Raises ConfigError where a file is gone."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(_hash(item.content, self.what).encode())
        others = load(self.kind).files(self.prepare, self.folder)
        return {
            "kind": self.kind,
            "inputs": list(self.inputs),
            "prepare": self.prepare.model_dump(mode="json"),
            "items": digest.hexdigest(),
            "files": [_hash(path, "[task.prepare]") for path in others],
        }

    def decode(self, out: Path, progress: Progress) -> None:
        """Every sample as a row of out/<number of the input>.npy, one in memory at a time.

        progress: told how many of how many are decoded. Raises ConfigError, MissingDependency.
        """
        decode = load(self.kind).decoder(self.prepare, self.inputs, self.folder)
        rows: list[np.memmap[Any, Any]] = []
        for number, item in enumerate(self.items):
            try:
                made = decode(item.content)
            except ConfigError as error:
                raise ConfigError(f"{self.what}: {item.where}: {error}") from error
            if not rows:
                rows = [_row_file(out / f"{i}.npy", len(self.items), array) for i, array in enumerate(made)]
            for row, array in zip(rows, made, strict=True):
                if row.shape[1:] != array.shape:
                    raise ConfigError(
                        f"{self.what}: {item.where}: found shape {array.shape}; allowed: {row.shape[1:]}, as of "
                        f"{self.items[0].where}; set a size in [task.prepare], or mend that file"
                    )
                row[number] = array
            progress(number + 1, len(self.items))
        for row in rows:
            row.flush()

    def arrays(
        self, decoded: Path, labels: str | None, groups: str | None, column: str | None, classes: Sequence[str]
    ) -> dict[str, Array]:
        """What `decode` wrote, by the names of the inputs, with labels, groups and parts. Raises ConfigError."""
        found: dict[str, Array] = {
            name: np.load(decoded / f"{i}.npy", mmap_mode="r") for i, name in enumerate(self.inputs)
        }
        if labels is not None:
            found[labels] = label_numbers(self.items, classes, self.what)
        if groups is not None:
            found[groups] = group_names(self.items)
        if column is not None:
            found[column] = named([str(item.part) for item in self.items])
        return found


def index(
    kind: str,
    source: Path | Mapping[str, Path],
    prepare: Mapping[str, Any],
    inputs: Sequence[str],
    labels: str | None,
    groups: str | None,
    folder: Path,
    column: str | None = None,
) -> Data:
    """What `[task] <kind> = source` names, a path or one for each part: nothing is decoded yet. `folder`: the run
    file's; `column`: that of the parts, of one path. Raises ConfigError."""
    module = load(kind)
    what = f"[task] {kind}" + (f" = '{source}'" if isinstance(source, Path) else "")
    for name in (labels, groups, column):
        if name in inputs:
            raise ConfigError(f"{what}: found '{name}' as column and as input; allowed: one of them; rename the input")
    items: list[Item] = []
    try:
        if isinstance(source, Path):
            items = module.read(source, labels, groups, column)
        else:
            for part, path in source.items():
                try:
                    own = module.read(path, labels, groups)
                except ConfigError as error:
                    raise ConfigError(f"part '{part}' = '{path}': {error}") from error
                items += [dataclasses.replace(item, part=part, where=f"{part}: {item.where}") for item in own]
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    return Data(kind, items, module.Prepare.model_validate(dict(prepare)), tuple(inputs), folder, what)


def class_names(items: Sequence[Item]) -> tuple[str, ...]:
    """The labels in sorted order, where they are names; nothing where they are numbers."""
    names = {str(item.label) for item in items}
    return () if all(map(_is_number, names)) else tuple(sorted(names))


def label_numbers(items: Sequence[Item], classes: Sequence[str], what: str) -> Array:
    """(n,) int64. A label is a name of `classes`, or a class's number; without `classes` names count in sorted order.

    Raises ConfigError naming the sample.
    """
    names = [str(item.label) for item in items]
    of_class = {name: number for number, name in enumerate(classes)}
    is_number = all(map(_is_number, names)) and not any(map(_is_number, classes))
    if is_number:
        of_class = {name: int(name) for name in set(names) if not classes or 0 <= int(name) < len(classes)}
    elif not classes:
        of_class = {name: number for number, name in enumerate(class_names(items))}
    for item, name in zip(items, names, strict=True):
        if name not in of_class:
            allowed = f"a number from 0 to {len(classes) - 1}" if is_number else f"one of {config.show(list(classes))}"
            mend = config.nearest(name, classes) or "correct the label, or [task] classes"
            raise ConfigError(
                f"{what}: {item.where}: found label '{name}'; allowed by [task] classes: {allowed}; {mend}"
            )
    return np.array([of_class[name] for name in names], np.int64)


def group_names(items: Sequence[Item]) -> Array:
    """(n,), as `named`."""
    return named([str(item.group) for item in items])


def named(names: Sequence[str]) -> Array:
    """(n,) int64 where every name is written as a whole number, else text."""
    return np.array([int(name) for name in names], np.int64) if all(map(_is_number, names)) else np.array(names)


def _is_number(text: str) -> bool:
    """A whole number as Python would write it: 007 is a name."""
    return re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text) is not None


def _row_file(path: Path, n: int, first: Array) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=(n, *first.shape))


def _hash(content: Content, what: str) -> str:
    if isinstance(content, str):
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
    try:
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{what}: {content} cannot be read ({error.strerror}); check that file") from error
