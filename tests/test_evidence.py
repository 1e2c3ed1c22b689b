"""What a verdict on accuracy tells beside itself: worst class and group, agreement, errors of every output."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgeopt import evidence
from edgeopt.errors import IntegrityError
from edgeopt.evidence import Scored
from edgeopt.report import accounts, measured, terminal
from edgeopt.task import Samples


def right(outputs: Any, labels: Any) -> Any:
    return (outputs[0].argmax(axis=1) == labels).astype(float)


def made(group_sizes: dict[str, int], wrong_in: str) -> tuple[Scored, dict[str, Any]]:
    """Three classes, two outputs; every answer of the board within `wrong_in` is wrong."""
    groups = np.repeat(list(group_sizes), list(group_sizes.values()))
    labels = np.arange(len(groups)) % 3
    source = (np.eye(3, dtype=np.float32)[labels] * 4, np.linspace(-1, 1, 2 * len(groups)).reshape(-1, 2))
    board = np.where((groups == wrong_in)[:, None], np.roll(source[0], 1, axis=1), source[0])
    outputs = (board, source[1] + 0.01)
    scored = Scored.of(outputs, source, Samples((source[0],), labels, groups), right, True)
    return scored, evidence.judged(scored, 0.01, ["a", "b", "c"])


@pytest.mark.parametrize(("size", "worst"), [(19, "large"), (20, "small")])
def test_fewer_than_20_samples_are_never_the_worst(size: int, worst: str) -> None:
    _, found = made({"large": 60, "small": size, "other": 40}, "small")
    assert found["worst_group"]["label"] == worst
    assert found["worst_group"]["too_few"] == (size < 20)
    row = next(row for row in found["per_group"] if row["label"] == "small")
    assert row["value"] == (None if size < 20 else 0.0)
    assert row["invalid"] == ("n=19, needs 20" if size < 20 else None)
    screen = "\n".join(f"{head}: {said}" for head, said in terminal.worst(found, "top1"))
    assert ("small: 0.0 %" in screen) == (size >= 20)
    assert ("1 with fewer than 20 samples" in screen) == (size < 20)


def test_no_class_of_20_is_no_worst_class() -> None:
    _, found = made({"one": 30, "two": 27}, "one")
    assert found["worst_class"] == {"label": None, "value": None, "n": 19, "invalid": "n=19, needs 20", "too_few": 3}
    assert accounts.worst(found["worst_class"], "top1") == "invalid (n=19, needs 20)"
    assert {row["invalid"] for row in found["per_class"]} == {"n=19, needs 20"}


def test_agreement_and_errors_by_hand() -> None:
    _, found = made({"one": 75, "two": 25}, "two")
    assert found["agreement"] == 0.75
    first, second = found["output_error"]
    assert (first["max"], first["mean"]) == (4.0, pytest.approx(25 * 8 / 300))
    assert first["sqnr_db"] == pytest.approx(10 * np.log10(100 * 16 / (25 * 32)))
    assert (second["max"], second["mean"]) == (pytest.approx(0.01), pytest.approx(0.01))
    signal = (np.linspace(-1, 1, 200) ** 2).sum()
    assert second["sqnr_db"] == pytest.approx(10 * np.log10(signal / (200 * 1e-4)))


def test_what_is_equal_has_no_noise() -> None:
    scored, _ = made({"one": 30, "two": 30}, "none")
    assert evidence.output_errors(scored)[0] == {"max": 0.0, "mean": 0.0, "sqnr_db": None}
    assert accounts.errors({"output_error": evidence.output_errors(scored)[:1]}) == [
        ("output error", "at most 0, mean 0, no difference, or no signal")
    ]


def test_validation_screen_has_agreement_errors_and_the_worst() -> None:
    _, final = made({"one": 75, "two": 25}, "two")
    figure = {"value": 0.001, "interval": None, "n": 64, "invalid": None}
    found = {
        **{"verdict": "fail", "name": "net", "release": "ab" * 32, "device": "here", "reasons": ["score"]},
        **{"final": dict(final, metric="top1"), "memory": None, "conditions": {"marks": []}},
        "latency": {"p50_s": figure, "p90_s": figure},
    }
    console = Console(file=io.StringIO(), width=120)
    measured.render_validation(found, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "75.0 %" in said
    assert re.search(r"error of output 2 +at most 0.01, mean 0.01, signal to noise", said)
    assert "two: 0.0 %" in said


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    scored, found = made({"one": 75, "two": 25}, "two")
    scored.write(tmp_path / "final.npz")
    assert evidence.judged(Scored.read(tmp_path / "final.npz"), 0.01, ["a", "b", "c"]) == found
    (tmp_path / "final.npz").write_bytes(b"PK nonsense")
    with pytest.raises(IntegrityError, match="not arrays of samples"):
        Scored.read(tmp_path / "final.npz")


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", own=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(IntegrityError):
        Scored.read(tmp_path / "x.npz")


def test_regression_has_no_classes_and_no_review() -> None:
    values = np.linspace(0, 1, 50)[:, None]
    samples = Samples((values,), values[:, 0], None)
    scored = Scored.of([values + 0.1], [values], samples, lambda out, y: -np.abs(out[0][:, 0] - y), False)
    found = evidence.judged(scored, 0.2, threshold=0.8)
    assert (found["review"], found["agreement"], found["worst_class"], found["worst_group"]) == (None,) * 4
    assert found["drop"] == pytest.approx(0.1)
