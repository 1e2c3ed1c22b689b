"""Data whose splits are given: in parts of their own, each an .npz or a folder, or told by a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def join_parts(parts: Mapping[str, Mapping[str, Array]], names: Sequence[str]) -> dict[str, Array]:
    """The named arrays of all parts, one after the other, and under PART which part a row is of.

    In a part's file an array may be called after the part: x_train or train_x for x. Raises ConfigError.
    """
    found: dict[str, list[Array]] = {name: [] for name in (*names, PART)}
    for part, arrays in parts.items():
        for name in names:
            called = next((own for own in (name, f"{name}_{part}", f"{part}_{name}") if own in arrays), None)
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
