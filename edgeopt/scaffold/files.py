"""Pictures, sounds and texts: which kind a folder or CSV file holds, and how they are most likely prepared."""

from __future__ import annotations

import csv
import dataclasses
import os
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import tasks
from ..errors import ConfigError
from ..formats import Port
from ..parts import MOST_VALUES, PART, tells_splits
from ..tasks.items import Item
from .seen import GROUPS, LABELS, Input, Seen, role

NAMES = {"images": ("image",), "audio": ("sound",), "text": ("input_ids", "attention_mask")}
SIDE = 224
LENGTH = 128
LOOKED_AT = 200  # sounds of which the length is read
MOST_CLASSES = 100
EXAMPLES = {"images": {"resize": 256, "stretch": [224, 224], "crop": [224, 224], "orientation": "apply"}}
SOUND_EXAMPLES = {"fft": 512, "hop": 256, "mels": 40, "low_hz": 60.0, "high_hz": 7600.0, "floor": 0.01}


def suffixes(folder: Path) -> set[str]:
    """Suffixes of the first files in its sub-folders that a kind of data can have."""
    known = {suffix for kind in ("images", "audio") for suffix in tasks.load(kind).SUFFIXES}  # type: ignore[attr-defined]
    found: set[str] = set()
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))[:5]:
        found |= {path.suffix.lower() for path in list(inner.iterdir())[:20]} & known
    return found


def kind_of(path: Path) -> tuple[str, list[str]]:
    """(kind, a CSV file's columns). Raises ConfigError."""
    if path.is_dir():
        return _kind_by_suffix(sorted(suffixes(path)), f"--data {path}"), []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, first = list(reader.fieldnames or ()), next(reader, None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--data {path}: not a readable CSV file in UTF-8 ({error}); save it again") from error
    if "file" in columns and first is not None:
        return _kind_by_suffix([Path(first["file"] or "").suffix.lower()], f"--data {path}, line 2"), columns
    if "text" in columns:
        return "text", columns
    raise ConfigError(
        f"--data {path}: found the columns {', '.join(columns) or 'none'}; a column 'file' (of pictures or sounds) or "
        "'text' is needed; rename it"
    )


def _kind_by_suffix(found: Sequence[str], where: str) -> str:
    known: Mapping[str, Sequence[str]] = {kind: tasks.load(kind).SUFFIXES for kind in ("images", "audio")}  # type: ignore[attr-defined]
    fitting = [kind for kind, suffixes in known.items() if any(suffix in suffixes for suffix in found)]
    if len(fitting) != 1:
        allowed = "; ".join(f"{kind}: {', '.join(suffixes)}" for kind, suffixes in known.items())
        raise ConfigError(
            f"{where}: found {', '.join(found) or 'no sub-folder with files'}; allowed are an .npz file, or files in "
            f"one sub-folder per class or listed in a CSV file ({allowed})"
        )
    return fitting[0]


def look(
    path: Path | Mapping[str, Path],
    shown: str | Mapping[str, str],
    folder: Path,
    ports: Sequence[Port] | None,
    labels: str | None,
    groups: str | None,
) -> Seen:
    """path: or one for each part. shown: as the run file names it; folder: its own. Raises ConfigError; Unclear."""
    paths = path if isinstance(path, Mapping) else {"": path}
    kind, columns = kind_of(next(iter(paths.values())))
    where = f"--data {', '.join(map(str, paths.values()))}"
    column, notes = None, []
    if columns:
        content = "text" if kind == "text" else "file"
        column = None if isinstance(path, Mapping) else _column(path, [name for name in columns if name != content])
        if column is not None and groups == column:
            groups = None
            notes.append(f"'{column}' holds names of splits, no groups: it is [splits] column")
        others = [name for name in columns if name not in (content, column)]
        groups = role("--groups", groups, [name for name in others if name != labels], GROUPS, where, alone=False)
        labels = role("--labels", labels, [name for name in others if name != groups], LABELS, where, alone=True)
        if labels is None:
            raise ConfigError(f"{where}: found the columns {', '.join(columns)}; a column of labels is needed; add one")
    else:
        labels = labels or "label"
    items = _items(kind, path, labels, groups, column)
    values, check = _prepared(kind, items, folder, ports)
    names = _names(kind, ports)
    truth = np.array([str(item.label) for item in items])
    members = tasks.group_names(items) if groups else None
    given = PART if isinstance(path, Mapping) else column
    parts = tasks.named([str(item.part) for item in items]) if given else None
    classes, more = _classes(truth)
    table = {"kind": tasks.load(kind).Prepare, "values": values, "examples": _examples(kind)}
    inputs = _inputs(kind, names, values, ports)
    task = {kind: shown, "prepare": table, **({"classes": classes} if classes else {})}
    return Seen(task, inputs, len(items), labels, truth, groups, members, (*notes, *check, *more), given, parts)


def _column(path: Path, names: Sequence[str]) -> str | None:
    """The column whose values are names of splits."""
    values: dict[str, set[str]] = {name: set() for name in names}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            for name, own in values.items():
                if len(own) <= MOST_VALUES:
                    own.add(str(row.get(name) or "").strip())
    return next((name for name, own in values.items() if tells_splits(own)), None)


def _items(
    kind: str, path: Path | Mapping[str, Path], labels: str, groups: str | None, column: str | None
) -> list[Item]:
    found: list[Item] = []
    for part, one in path.items() if isinstance(path, Mapping) else [(None, path)]:
        try:
            own = tasks.load(kind).read(one, labels, groups, column)
        except ConfigError as error:
            raise ConfigError(f"--data {one}: {error}") from error
        found += own if part is None else [dataclasses.replace(item, part=part) for item in own]
    return found


def _names(kind: str, ports: Sequence[Port] | None) -> tuple[str, ...]:
    if kind == "text" and ports is not None:
        return tuple(port.name for port in ports)
    return NAMES[kind]


def _classes(truth: np.ndarray[Any, Any]) -> tuple[list[str], tuple[str, ...]]:
    """Names are numbered in sorted order, as torchvision's ImageFolder does; numbers stay as they are."""
    names = sorted(set(truth.tolist()))
    if all(name.isdigit() for name in names) or len(names) > MOST_CLASSES:
        return [], ()
    return names, ("[task] classes: sorted by name; they must be in the order of the model's outputs",)


def _prepared(
    kind: str, items: Sequence[Item], folder: Path, ports: Sequence[Port] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """([task.prepare], what to check)."""
    if kind == "images":
        return _of_pictures(ports)
    if kind == "audio":
        return _of_sounds([Path(item.content) for item in items])
    return _of_texts(folder, ports)


def _of_pictures(ports: Sequence[Port] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    sides = _picture_size(ports)
    width, height = sides or (SIDE, SIDE)
    check = "resize and crop must be those of the training" + ("" if sides else f"; {SIDE} is a guess")
    return {"resize": round(min(width, height) * 256 / 224), "crop": [width, height]}, (f"[task.prepare] {check}",)


def _picture_size(ports: Sequence[Port] | None) -> tuple[int, int] | None:
    """(width, height) that the model's one input has."""
    if ports is None or len(ports) != 1 or len(ports[0].shape) != 4:
        return None
    _, first, second, third = ports[0].shape
    sides = (first, second) if third in (1, 3) else (second, third)
    return (int(sides[1]), int(sides[0])) if sides[0] and sides[1] else None


def _of_sounds(paths: Sequence[Path]) -> tuple[dict[str, Any], tuple[str, ...]]:
    rates, lengths, channels = set(), [], 1
    for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
        for rate, count, frames in _wave(path):
            rates.add(rate)
            lengths.append(frames / rate)
            channels = max(channels, count)
    rate = max(rates, default=16_000)
    length = float(np.ceil(10 * np.quantile(lengths, 0.95)) / 10) if lengths else 1.0
    said = (
        f"length_s: 95 % of the sounds are no longer than {length:g} s"
        if lengths
        else "rate_hz and length_s are guesses"
    )
    check = [f"[task.prepare] {said}; features must be those of the training"]
    if len(rates) > 1:
        check.append(f"the files have rates of {', '.join(map(str, sorted(rates)))} Hz; convert them to one")
    values = {"rate_hz": rate, "length_s": length, **({"channels": "mean"} if channels > 1 else {})}
    return values, tuple(check)


def _wave(path: Path) -> Iterator[tuple[int, int, int]]:
    """(rate, channels, frames) of a .wav file; nothing for what this cannot tell."""
    try:
        with wave.open(os.fspath(path)) as sound:
            yield sound.getframerate(), sound.getnchannels(), sound.getnframes()
    except (wave.Error, OSError, EOFError):
        return


def _of_texts(folder: Path, ports: Sequence[Port] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    found = next((name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file()), None)
    if found is None:
        raise ConfigError(
            "texts need the tokenizer that the model was trained with: put its tokenizer.json or vocab.txt into "
            f"{folder}"
        )
    size = ports[0].shape[1] if ports and len(ports[0].shape) == 2 else None
    values: dict[str, Any] = {"tokenizer": found, "length": size or LENGTH}
    if found == "vocab.txt":
        values["lowercase"] = True
    check = "lowercase and length" if found == "vocab.txt" else "length"
    return values, (f"[task.prepare] {check} must be as in training",)


def _inputs(
    kind: str, names: Sequence[str], values: Mapping[str, Any], ports: Sequence[Port] | None
) -> tuple[Input, ...]:
    known = list(ports) if ports is not None and len(ports) == len(names) else [None] * len(names)
    if kind == "images":
        width, height = values["crop"]
        return (Input(names[0], (height, width, 3), "uint8", known[0]),)
    if kind == "audio":
        return (Input(names[0], (round(values["rate_hz"] * values["length_s"]),), "float32", known[0]),)
    return tuple(Input(name, (values["length"],), "int32", port) for name, port in zip(names, known, strict=True))


def _examples(kind: str) -> dict[str, str]:
    from .text import toml

    given: Mapping[str, Any] = SOUND_EXAMPLES if kind == "audio" else EXAMPLES.get(kind, {})
    return {key: toml(value) for key, value in given.items()}
