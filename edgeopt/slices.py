"""A score by class and by group, and which class was taken for which: pure functions over per-sample scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 20  # samples below which a class or group says its n and nothing else
MOST_PAIRS = 2000


def by_label(
    own: NDArray[Any], reference: NDArray[Any], labels: NDArray[Any], names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Mean scores of the samples that share a label, in the labels' order: [{label, n, value, reference, drop,
    invalid}].

    own, reference, labels: (n,), scores on the board and of the source model. names: by label, where labels are whole
    numbers. Below 20 samples the three figures are None and `invalid` says "n=…, needs 20".
    """
    found, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = [np.bincount(index.ravel(), weights=scores) / counts for scores in (own, reference)]
    rows = []
    for number, count in enumerate(counts.tolist()):
        value, expected = (float(mean[number]) for mean in means)
        figures = {"value": value, "reference": expected, "drop": expected - value, "invalid": None}
        if count < LEAST:
            figures = dict.fromkeys(figures) | {"invalid": f"n={count}, needs {LEAST}"}
        rows.append({"label": named(found[number].item(), names), "n": count, **figures})
    return rows


def confusion(
    own: NDArray[Any], reference: NDArray[Any], labels: NDArray[Any], names: Sequence[str] = ()
) -> dict[str, Any]:
    """How often a class was taken for which: {"pairs": [{label, decided, n, reference}], "left_out"}.

    own, reference, labels: (n,) whole numbers, the decisions on the board and of the source model, and the truth.
    pairs: right ones too, the most frequent first; n and reference count samples. left_out: pairs beyond 2,000.
    """
    counts: dict[tuple[int, int], list[int]] = {}
    for place, decisions in enumerate((own, reference)):
        pairs, times = np.unique(np.stack([labels, decisions], axis=1), axis=0, return_counts=True)
        for (label, decided), count in zip(pairs.tolist(), times.tolist(), strict=True):
            counts.setdefault((label, decided), [0, 0])[place] += count
    ordered = sorted(counts.items(), key=lambda item: (-item[1][0], -item[1][1], item[0]))
    return {
        "pairs": [
            {"label": named(label, names), "decided": named(decided, names), "n": n, "reference": before}
            for (label, decided), (n, before) in ordered[:MOST_PAIRS]
        ],
        "left_out": max(0, len(ordered) - MOST_PAIRS),
    }


def named(label: Any, names: Sequence[str]) -> Any:
    """The name of a class, or the label as it is where it has none."""
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else label
