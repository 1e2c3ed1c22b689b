"""What a look at the data tells: which arrays or files there are, what each is for, and what follows for a run file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import nearest
from ..errors import ConfigError
from ..formats import Port
from ..parts import PART, split_of
from ..task import SPLITS, Array, Samples, Split, split

LABELS = re.compile(r"(.*[_-])?(y|labels?|targets?|class(es)?|category|truth|answers?)(_id|_index)?", re.IGNORECASE)
GROUPS = re.compile(
    r"(.*[_-])?(groups?|subjects?|speakers?|patients?|persons?|users?|sites?|cameras?|sessions?|devices?|hosts?)(_ids?)?",
    re.IGNORECASE,
)
FEW_GROUPS = 30  # up to so many are listed, split by split
LEAST_SAMPLES = 12
SHARES = {"calibration": 0.4, "selection": 0.2, "final": 0.4}
COUNTS = {"calibration": (0.2, 300), "selection": (0.3, 1000), "final": (0.5, 5000)}
RANGES = 500  # samples of calibration that ranges take: as [splits] ranges
MOST_TRAINED = 20_000
MARGIN = 0.8  # of the samples: whole groups overshoot a count


class Unclear(ConfigError):
    """A look at the data does not settle what `flag` should name; `choices` are what there is."""

    def __init__(self, message: str, flag: str, choices: Sequence[str]) -> None:
        super().__init__(message)
        self.flag, self.choices = flag, tuple(choices)


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of the task as its raw array is: shape without the sample's axis; port: the model's, where known."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    port: Port | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """task: keys of [task] as they will be written, but inputs, labels and groups. labels, groups: (n, …), (n,).

    unit: of a label that is a number, its standard deviation. check: what its author must look at. column, parts: of
    splits that are given, (n,); column is PART where each has a file or folder of its own.
    """

    task: Mapping[str, Any]
    inputs: tuple[Input, ...]
    n: int
    labels_name: str
    labels: Array
    groups_name: str | None
    groups: Array | None
    check: tuple[str, ...] = ()
    column: str | None = None
    parts: Array | None = None

    @property
    def is_classes(self) -> bool:
        return self.labels.dtype.kind in "iuU"

    def keys(self) -> dict[str, Any]:
        """Of [task]."""
        found = {**self.task, "inputs": [one.name for one in self.inputs], "labels": self.labels_name}
        if self.groups_name is not None and self._keeps_groups():
            found["groups"] = self.groups_name
        return {**found, "metric": "top1" if self.is_classes else "negative_mae"}

    def _keeps_groups(self) -> bool:
        """Whether the groups can be kept apart: in given splits, none may be in two, and final needs several."""
        if self.groups is None or self.parts is None:
            return self._group_count() >= len(SPLITS)
        pairs = {(str(group), str(part)) for group, part in zip(self.groups, self.parts, strict=True)}
        last = sum(1 for _, part in pairs if split_of(part) == "final")
        return last > 1 and len(pairs) == len({group for group, _ in pairs})

    def floor_drop(self) -> float:
        """One point of a share; of numbers, 1 % of their spread."""
        spread = 0.0 if self.is_classes else float(np.std(self.labels.astype(np.float64)))
        return 0.01 if self.is_classes or not spread else float(f"{0.01 * spread:.2g}")

    def splits(self, trains: bool = False) -> tuple[dict[str, Any], tuple[str, ...]]:
        """([splits] by key, what to check). trains: the model can be trained.

        Raises ConfigError where there are too few samples."""
        if self.n < LEAST_SAMPLES:
            raise ConfigError(
                f"--data: found {self.n} samples; at least {LEAST_SAMPLES} are needed for three splits, and hundreds "
                "for a verdict"
            )
        if self.parts is not None:
            return self._given(trains)
        count = self._group_count()
        notes: tuple[str, ...] = ()
        if self.groups is not None and count < len(SPLITS):
            notes = (f"'{self.groups_name}' has {count} groups, too few for three splits, so it is left out",)
        if self.groups is not None and len(SPLITS) <= count <= FEW_GROUPS:
            return self._by_group(trains), notes
        groups = self.groups if count > FEW_GROUPS else None
        return self._by_count(groups, trains), notes

    def _given(self, trains: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Splits of the parts that are called after them; what is missing is drawn of another that is there."""
        assert self.parts is not None
        names, sizes = np.unique(self.parts, return_counts=True)
        rows = dict(zip(names.tolist(), sizes.tolist(), strict=True))
        own: dict[str, list[Any]] = {}
        for name in rows:
            own.setdefault(split_of(name) or "", []).append(name)
        notes = [f"rows of {', '.join(map(repr, own['']))} are in no split"] if "" in own else []
        if self.groups_name is not None and not self._keeps_groups():
            notes.append(f"'{self.groups_name}' is left out: the given splits share its groups, or final has only one")
        if "final" not in own:
            own["final"] = own.pop("selection" if "selection" in own else "calibration")
            notes.append(f"no part is called test, so {', '.join(map(repr, own['final']))} is the final split")
        pool = next(own[name] for name in ("train", "selection", "calibration", "final") if name in own)
        total = sum(rows[name] for name in pool)
        found: dict[str, Any] = {"column": self.column} if self.column not in (None, PART) else {}
        if trains and "train" in own:
            found["train"] = {"values": own["train"]}
        for name in SPLITS:
            share, most = COUNTS[name]
            drawn = {"values": pool, "count": max(1, min(int(share * total), most))}
            found[name] = {"values": own[name]} if name in own else drawn
            if name not in own:
                notes.append(f"[splits] {name} is drawn from {', '.join(map(repr, pool))}: no part is called after it")
        if trains and "calibration" not in own and "train" not in own:
            found["calibration"]["count"] = max(1, min(int(0.5 * total), MOST_TRAINED))
        return found, tuple(notes)

    def _group_count(self) -> int:
        return 0 if self.groups is None else len(np.unique(self.groups))

    def _by_group(self, trains: bool) -> dict[str, Any]:
        """Whole groups in their order, about 40, 20 and 40 % of the samples; each split has at least one. Where the
        first has more than ranges need, most of it becomes train."""
        assert self.groups is not None
        names, sizes = np.unique(self.groups, return_counts=True)
        ends, before = [], 0
        for place in range(len(SPLITS) - 1):
            reach = sum(SHARES[earlier] for earlier in SPLITS[: place + 1]) * sizes.sum()
            nearest_end = int(np.abs(np.cumsum(sizes) - reach).argmin()) + 1
            before = min(max(nearest_end, before + 1), len(names) - (len(SPLITS) - 1 - place))
            ends.append(before)
        parts = np.split(names, ends)
        found = {name: {"groups": part.tolist()} for name, part in zip(SPLITS, parts, strict=True)}
        reached = np.cumsum(sizes[: len(parts[0])])
        enough = max(int(np.searchsorted(reached, RANGES)) + 1, -(-len(parts[0]) // 3))
        if not trains or reached[-1] < 2 * RANGES or enough >= len(parts[0]):
            return found
        first = found.pop("calibration")["groups"]
        return {"train": {"groups": first[enough:]}, "calibration": {"groups": first[:enough]}, **found}

    def _by_count(self, groups: Array | None, trains: bool) -> dict[str, Any]:
        """Counts in proportion, as many as whole groups leave room for; train has what they leave, if that is much."""
        room = 1.0 if groups is None else MARGIN
        samples = Samples((np.zeros(self.n),), None, groups)
        for _ in range(8):
            counts = {name: max(1, int(min(room * share * self.n, most))) for name, (share, most) in COUNTS.items()}
            left = min(int(room * self.n) - sum(counts.values()), MOST_TRAINED)
            if trains and left >= RANGES:
                counts = {"train": left, **counts}
            try:
                split(samples, {name: Split(None, count) for name, count in counts.items()}, 0)
            except ConfigError:
                room *= MARGIN
                continue
            return {name: {"count": count} for name, count in counts.items()}
        raise ConfigError(
            f"--data: its groups '{self.groups_name}' are too unlike in size to be split by count; write [splits] with "
            "groups for each by hand"
        )


def steps(one: Input, source: str) -> list[dict[str, Any]]:
    """Preprocess steps from a raw array to what the model most likely takes, each with a note.

    A step whose note begins with CHECK is a guess that its author must look at.
    """
    found: list[dict[str, Any]] = []
    wanted = one.port.dtype if one.port is not None else "float32" if source == "torch" else None
    if one.dtype == "uint8" and wanted in ("float32", None):
        found.append(
            {"op": "scale", "by": 1 / 255, "offset": 0.0, "note": "CHECK: bytes become 0 to 1; as in training?"}
        )
    elif wanted is not None and one.dtype != wanted and not (source == "torch" and one.dtype[0] in "iu"):
        found.append({"op": "cast", "dtype": wanted, "note": f"The model takes {wanted}."})
    if _is_channels_last(one, source):
        known = one.port is not None
        note = "The model takes channels first." if known else "CHECK: channels first, as torch's layers take them."
        found.append({"op": "transpose", "axes": [0, 3, 1, 2], "note": note})
    if not found:
        note = "Example: what training did to its samples."
        example = {"op": "normalize", "mean": [0.0], "std": [1.0], "axis": 1}
        found.append({**example, "note": note, "off": True})
    return found


def misfit(one: Input, source: str) -> str | None:
    """In words, where the samples have another shape than the model takes, and no step here mends it."""
    if one.port is None or _is_channels_last(one, source):
        return None
    sizes = one.port.shape[1:]
    if len(sizes) == len(one.shape) and all(size in (None, own) for size, own in zip(sizes, one.shape, strict=True)):
        return None
    return f"[task] inputs: a sample of '{one.name}' is {list(one.shape)}, and the model takes {one.port}"


def _is_channels_last(one: Input, source: str) -> bool:
    if len(one.shape) != 3:
        return False
    height, width, channels = one.shape
    turned = (channels, height, width)
    if one.port is not None and len(one.port.shape) == 4:
        sizes = one.port.shape[1:]
        fits = all(size in (None, own) for size, own in zip(sizes, one.shape, strict=True))
        return not fits and all(size in (None, own) for size, own in zip(sizes, turned, strict=True))
    return source == "torch" and channels in (1, 3, 4) and min(height, width) > 4


def role(
    flag: str, asked: str | None, names: Sequence[str], pattern: re.Pattern[str], where: str, alone: bool
) -> str | None:
    """The name that is meant: as asked, else the one whose name says so, else the only one if `alone`.

    Raises Unclear where several could be meant, ConfigError where the one asked for is not there.
    """
    if asked is not None:
        if asked in names:
            return asked
        mend = nearest(asked, names) or "name one of these"
        raise ConfigError(f"{flag} {asked}: {where} has {', '.join(names) or 'nothing of that kind'}; {mend}")
    said = [name for name in names if pattern.fullmatch(name)]
    if len(said) == 1:
        return said[0]
    if not said and len(names) == 1 and alone:
        return names[0]
    if said or (alone and names):
        choices = said or list(names)
        raise Unclear(f"{where}: {', '.join(choices)} could be meant by {flag}; name one", flag, choices)
    return None
