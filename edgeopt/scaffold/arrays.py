"""The arrays of an .npz: which are inputs, labels and groups, by name, shape and type."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..formats import Port
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


def look(
    path: Path,
    shown: str,
    ports: Sequence[Port] | None,
    inputs: Sequence[str],
    labels: str | None,
    groups: str | None,
) -> Seen:
    """shown: the path as the run file names it. ports: the model's inputs, where they are known.

    Raises ConfigError; Unclear where a name must be given.
    """
    found = headers(path)
    where = f"--data {path}"
    n = _rows(found, where)
    flat = [name for name, (shape, dtype) in found.items() if shape == (n,) and dtype.kind in "iufU"]
    wide = [name for name, (shape, dtype) in found.items() if len(shape) > 1 and shape[0] == n and dtype.kind in "iuf"]
    groups_name = _groups(found, flat, groups, labels, where)
    possible = [name for name in (*flat, *wide) if name != groups_name and name not in inputs]
    if labels is None:  # without a telling name, a label is one number a sample
        telling = [name for name in possible if LABELS.fullmatch(name)]
        possible = telling or [name for name in flat if name in possible and found[name][1].kind in "iuf"]
    labels_name = role("--labels", labels, possible, LABELS, where, alone=True)
    if labels_name is None:
        raise Unclear(f"{where}: it has {_told(found)}; none looks like labels: name them", "--labels", list(found))
    own = _inputs(found, [name for name in wide if name not in (labels_name, groups_name)], inputs, ports, where)
    with np.load(path, allow_pickle=False) as archive:
        truth = archive[labels_name]
        members: Array | None = archive[groups_name] if groups_name else None
    if truth.dtype.kind in "iuU":
        check_labels(truth, "top1", None)
    unused = [name for name in found if name not in (labels_name, groups_name, *(one.name for one in own))]
    notes = (f"not used of {path.name}: {', '.join(unused)}",) if unused else ()
    return Seen({"arrays": shown}, own, n, labels_name, truth, groups_name, members, notes)


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
