"""The arrays of an .npz: which are inputs, labels and groups, by name, shape and type."""

from __future__ import annotations

import dataclasses
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..formats import Port
from ..parts import PART, grouped, tells_splits, word_in
from ..task import Array, check_labels, read_npz
from .seen import GROUPS, LABELS, Input, Seen, Unclear, role

Header = tuple[tuple[int, ...], np.dtype[Any]]


def headers(path: Path) -> dict[str, Header]:
    """Shape and type of every array, without reading the arrays. Raises ConfigError."""
    found: dict[str, Header] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                found[member.removesuffix(".npy")] = shape, dtype
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError):
        return {name: (array.shape, array.dtype) for name, array in read_npz(path, "--data").items()}
    return found


@dataclasses.dataclass(frozen=True)
class Held:
    """What one .npz holds, or several that are parts of one whole: headers by name, and how an array is read.

    shown: as the run file names it; parts: by part's name, how many rows.
    """

    where: str
    shown: str | dict[str, str]
    found: dict[str, Header]
    read: Callable[[str], Array]
    parts: dict[str, int] | None = None


def held(path: Path, shown: str) -> Held:
    """An .npz; one whose arrays are called x_train and x_test is two parts. Raises ConfigError."""
    found = headers(path)
    own = grouped(found)
    if own and len({frozenset(names) for names in own.values()}) == 1:
        parts = next(iter(own.values()))
        return held_parts(dict.fromkeys(parts, path), dict.fromkeys(parts, shown))

    def read(name: str) -> Array:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[name])

    return Held(f"--data {path}", shown, found, read)


def held_parts(paths: Mapping[str, Path], shown: Mapping[str, str]) -> Held:
    """One .npz for each part, or one in which arrays are called after them. Raises ConfigError."""
    by_part = {part: headers(path) for part, path in paths.items()}
    names: dict[str, dict[str, str]] = {}
    for part, found in by_part.items():
        for name in found:
            word = word_in(name)
            if word is None or word[0] == part:
                names.setdefault(word[1] if word else name, {})[part] = name
    common = {name: own for name, own in names.items() if len(own) == len(paths)}
    where = f"--data {', '.join(dict.fromkeys(map(str, paths.values())))}"
    merged = {}
    for name, own in common.items():
        shapes = [by_part[part][called][0] for part, called in own.items()]
        if all(shapes) and len({shape[1:] for shape in shapes}) == 1:
            first = by_part[next(iter(own))][next(iter(own.values()))]
            merged[name] = ((sum(shape[0] for shape in shapes), *shapes[0][1:]), first[1])

    def read(name: str) -> Array:
        rows = []
        for part, called in common[name].items():
            with np.load(paths[part], allow_pickle=False) as archive:
                rows.append(archive[called])
        return np.concatenate(rows)

    n = Counter(shape[0] for shape, _ in merged.values()).most_common(1)
    rows_of = next((own for name, own in common.items() if n and name in merged and merged[name][0][0] == n[0][0]), {})
    counts = {part: by_part[part][called][0][0] for part, called in rows_of.items()}
    return Held(where, dict(shown), merged, read, counts)


def look(
    data: Held, ports: Sequence[Port] | None, inputs: Sequence[str], labels: str | None, groups: str | None
) -> Seen:
    """ports: the model's inputs, where they are known.

    Raises ConfigError; Unclear where a name must be given.
    """
    found, where = data.found, data.where
    n = _rows(found, where)
    flat = [name for name, (shape, dtype) in found.items() if shape == (n,) and dtype.kind in "iufU"]
    wide = [name for name, (shape, dtype) in found.items() if len(shape) > 1 and shape[0] == n and dtype.kind in "iuf"]
    column, parts = _given_splits(data, flat, labels)
    notes: list[str] = []
    if column is not None and groups == column:
        groups = None
        notes.append(f"'{column}' holds names of splits, no groups: it is [splits] column")
    groups_name = _groups(found, [name for name in flat if name != column], groups, labels, where)
    taken = (groups_name, column)
    possible = [name for name in (*flat, *wide) if name not in taken and name not in inputs]
    if labels is None:  # without a telling name, a label is one number a sample
        telling = [name for name in possible if LABELS.fullmatch(name)]
        possible = telling or [name for name in flat if name in possible and found[name][1].kind in "iuf"]
    labels_name = role("--labels", labels, possible, LABELS, where, alone=True)
    if labels_name is None:
        raise Unclear(f"{where}: it has {_told(found)}; none looks like labels: name them", "--labels", list(found))
    own = _inputs(found, [name for name in wide if name not in (labels_name, groups_name)], inputs, ports, where)
    truth = data.read(labels_name)
    members = data.read(groups_name) if groups_name else None
    if truth.dtype.kind in "iuU":
        check_labels(truth, "top1", None)
    unused = [name for name in found if name not in (labels_name, *taken, *(one.name for one in own))]
    file = Path(data.shown).name if isinstance(data.shown, str) else "its parts"
    notes += [f"not used of {file}: {', '.join(unused)}"] if unused else []
    task = {"arrays": data.shown}
    return Seen(task, own, n, labels_name, truth, groups_name, members, tuple(notes), column, parts)


def _given_splits(data: Held, flat: Sequence[str], labels: str | None) -> tuple[str | None, Array | None]:
    """(column, its values) of splits that are given, by files of their own or by an array of text; or nothing."""
    if data.parts is not None:
        return PART, np.repeat(list(data.parts), list(data.parts.values()))
    for name in flat:
        if name != labels and data.found[name][1].kind == "U":
            values = data.read(name)
            if tells_splits(np.unique(values).tolist()):
                return name, values
    return None, None


def _rows(found: dict[str, Header], where: str) -> int:
    counts = Counter(shape[0] for shape, _ in found.values() if shape)
    if not counts:
        raise ConfigError(f"{where}: it has {_told(found)}; arrays with one row per sample are needed")
    return counts.most_common(1)[0][0]


def _groups(
    found: dict[str, Header], flat: Sequence[str], groups: str | None, labels: str | None, where: str
) -> str | None:
    possible = [name for name in flat if name != labels and found[name][1].kind in "iuU"]
    return role("--groups", groups, possible, GROUPS, where, alone=False)


def _inputs(
    found: dict[str, Header], wide: Sequence[str], asked: Sequence[str], ports: Sequence[Port] | None, where: str
) -> tuple[Input, ...]:
    """In the model's order where its inputs are known, else in the file's."""
    if missing := [name for name in asked if name not in found]:
        raise ConfigError(f"--inputs {missing[0]}: {where} has {_told(found)}; name one of these")
    names = list(asked or wide)
    by_name = {port.name: port for port in ports or ()}
    if not asked and by_name and set(by_name) <= set(names):
        names = list(by_name)
    if not names or (ports is not None and len(names) != len(ports)):
        takes = f", and the model takes {', '.join(map(str, ports))}" if ports is not None else ""
        raise Unclear(
            f"{where}: it has {_told(found)}{takes}; name the inputs, in the model's order", "--inputs", list(wide)
        )
    known = [by_name.get(name) or ports[place] for place, name in enumerate(names)] if ports else [None] * len(names)
    return tuple(
        Input(name, found[name][0][1:], found[name][1].name, port) for name, port in zip(names, known, strict=True)
    )


def _told(found: dict[str, Header]) -> str:
    parts = [f"{name} {dtype} {list(shape)}" for name, (shape, dtype) in found.items()]
    return ", ".join(parts) or "no array"
