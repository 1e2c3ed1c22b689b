"""Data whose splits are given: in parts of their own, each an .npz or a folder, or told by a column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .errors import ConfigError
from .task import Array, some

# What given splits are called, in lower case, by the split that they are meant for; none stands for two.
SPLIT_WORDS = {
    "train": ("train", "training", "tr", "trn", "fit", "learn"),
    "calibration": ("calibration", "calib", "cal"),
    "selection": ("val", "valid", "validation", "dev", "devel", "development", "selection", "tune"),
    "final": ("test", "testing", "final", "holdout", "held-out", "heldout", "eval", "evaluation"),
}
PART = "part of [task]"  # the name of the column that parts of the data make; no array of a file is called so


def called_in(part: str, names: Sequence[str]) -> list[str]:
    """What arrays may be called in the file of a part: x, x_train or train_x."""
    return [own for name in names for own in (name, f"{name}_{part}", f"{part}_{name}")]


def join_parts(parts: Mapping[str, Mapping[str, Array]], names: Sequence[str]) -> dict[str, Array]:
    """The named arrays of all parts, one after the other, and under PART which part a row is of.

    In a part's file they may be called after it (called_in). Raises ConfigError.
    """
    found: dict[str, list[Array]] = {name: [] for name in (*names, PART)}
    for part, arrays in parts.items():
        for name in names:
            called = next((own for own in called_in(part, [name]) if own in arrays), None)
            if called is None:
                raise ConfigError(
                    f"[task] arrays, part '{part}': found no array '{name}', '{name}_{part}' or '{part}_{name}'; it "
                    f"has: {some(arrays)}"
                )
            found[name].append(arrays[called])
        rows = found[names[0]][-1]
        found[PART].append(np.full(len(rows) if rows.ndim else 0, part))
    joined = {}
    for name, own in found.items():
        if len({array.shape[1:] for array in own}) > 1:
            shapes = ", ".join(f"{part}: {list(array.shape)}" for part, array in zip(parts, own, strict=True))
            raise ConfigError(f"[task] arrays: '{name}' has other sizes in its parts ({shapes}); mend the files")
        joined[name] = np.concatenate(own)
    return joined


def split_of(word: object) -> str | None:
    """The split that is meant by what a part of the data is called ("dev" is for selection); None where none is."""
    plain = str(word).strip().lower()
    return next((name for name, words in SPLIT_WORDS.items() if plain in words), None)


MOST_VALUES = 12  # a column with more of them tells no splits


def tells_splits(values: Iterable[object]) -> bool:
    """Whether these values of a column are names of splits: of two or more, and few others beside them."""
    names = {str(value) for value in values}
    known = [name for name in names if split_of(name)]
    return len({split_of(name) for name in known}) >= 2 and len(names) <= min(MOST_VALUES, 2 * len(known))


def word_in(name: str) -> tuple[str, str] | None:
    """(the part that a name ends or begins with, the name without it): x_train is ("train", "x"); None without one."""
    words = re.split(r"[_.\- ]+", name)
    for place in (len(words) - 1, 0):
        if split_of(words[place]):
            rest = words[:place] + words[place + 1 :]
            return words[place], "_".join(rest)
    return None


def grouped(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """By what is left of a name without its part: {part: name}; only where there are two splits or more."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if word := word_in(name):
            found.setdefault(word[1], {}).setdefault(word[0], name)
    return {rest: own for rest, own in found.items() if len({split_of(part) for part in own}) >= 2}


def paired(names: Iterable[str]) -> dict[str, str]:
    """{part: name} of names that are called after parts, whatever else stands in them: x_train and test; {} unless
    there are two splits or more, and one name for each."""
    told = [(word[0], name) for name in names if (word := word_in(name))]
    splits = [split_of(part) for part, _ in told]
    return dict(told) if len(splits) == len(set(splits)) >= 2 else {}
