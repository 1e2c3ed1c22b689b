"""How far answers are from their reference: the worst output, the worst group of channels, shares of whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import evidence, fidelity, parity
from edgeopt.diagnose import compare
from edgeopt.errors import LoweringFault
from edgeopt.report import accounts
from edgeopt.task import Samples

RNG = np.random.default_rng(0)
BOXES, SCORES = RNG.uniform(0, 640, (8, 4, 64)), RNG.uniform(0, 1, (8, 3, 64))
HEAD = np.concatenate([BOXES, SCORES], 1)
LOST = np.concatenate([BOXES + 0.5, np.where(SCORES > 0.5, 1.5, 0)], 1)  # what one step of int8 for both leaves


def layouts(head: np.ndarray) -> dict[str, np.ndarray]:
    last = head.transpose(0, 2, 1)
    return {"first": head, "last": last, "flat": head.reshape(8, -1), "woven": last.reshape(8, -1)}


@pytest.mark.parametrize("layout", ["first", "last", "flat", "woven"])
def test_scores_that_are_lost_beside_boxes_are_seen(layout: str) -> None:
    true, found = layouts(HEAD)[layout], layouts(LOST)[layout]
    boxes, scores = fidelity.groups(true)
    assert (boxes.of(true).size, scores.of(true).size) == (BOXES.size, SCORES.size)
    (told,) = fidelity.errors([found], [true])
    assert told["sqnr_db"] > 50  # over both together
    worst = fidelity.worst([told])
    assert worst is not None
    assert worst["sqnr_db"] < 5
    assert worst["largest"] == pytest.approx(1, abs=0.01)
    assert "the floor is 10 dB" in str(fidelity.refusal([told]))


def test_which_channels_are_named() -> None:
    stage = parity.compare([LOST], [HEAD], "int8 quantization", None)
    assert "output 0, channels 4-6 of axis 1 (values to 1): signal to noise" in str(parity.refusal([stage]))
    assert stage["sqnr_db"] == min(group["sqnr_db"] for group in stage["outputs"][0]["groups"])


@given(st.integers(0, 10_000))
def test_channels_of_one_size_are_one_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(8, 10)) * rng.uniform(0.2, 2, 10)
    shares = np.exp(20 * logits) / np.exp(20 * logits).sum(axis=1, keepdims=True)  # rare classes are near zero
    assert fidelity.groups(logits) == fidelity.groups(shares) == ()


def test_sizes_that_fall_step_by_step_part_where_they_are_lost() -> None:
    values = RNG.normal(size=(64, 4)) * [1000, 100, 10, 1]
    assert [group.channels for group in fidelity.groups(values)] == [(0, 1), (2, 3)]
    chain = RNG.uniform(0, 1, (64, 7)) * [640, 160, 40, 10, 2.5, 0.6, 0.15]  # no gap anywhere
    assert [group.channels for group in fidelity.groups(chain)] == [(0, 1, 2, 3), (4, 5, 6)]
    assert fidelity.groups(values[:4]) == ()  # too few to tell a small channel from chance


def test_what_a_mask_hides_is_no_answer() -> None:
    """A sampler's filter leaves three logits of each sample; beside -1e9 no error of theirs would count."""
    logits = RNG.normal(size=(16, 10))
    hidden = logits < np.sort(logits, axis=1)[:, -3:-2]
    true, found = np.where(hidden, -1e9, logits), np.where(hidden, -1.1e9, logits.round())
    (told,) = fidelity.errors([found], [true])
    shown = 10 * np.log10((logits[~hidden] ** 2).sum() / ((logits - logits.round())[~hidden] ** 2).sum())
    assert fidelity.worst([told])["sqnr_db"] <= shown + 1e-6  # type: ignore[index]
    (same,) = fidelity.errors([np.where(hidden, -2e9, logits)], [true])
    assert fidelity.figure(fidelity.worst([same]) or {}) == "equal"
    (seen,) = fidelity.errors([logits], [true])  # what the mask hides in one and not in the other
    assert fidelity.refusal([seen]) is not None


ONES = np.ones((8, 4), np.float32)
CLASSES = np.arange(8)[:, None] % 3


@pytest.mark.parametrize(
    ("found", "reference", "says"),
    [
        (ONES, 0 * ONES, "not zero, as the source model's is"),
        (0 * ONES, ONES, "0.0 dB"),
        (ONES, ONES * 1.05, None),
        (1e-8 * ONES, 0 * ONES, None),
        (0 * ONES, 0 * ONES, None),
        (CLASSES, CLASSES, None),
        ((CLASSES + 1) % 3, CLASSES, "0.0 % of values equal"),
        (np.where(np.arange(8)[:, None] < 3, 0, CLASSES).astype(np.int32), CLASSES, None),
        (CLASSES == 0, CLASSES == 1, "25.0 % of values equal"),
    ],
)
def test_what_is_no_answer(found: Any, reference: Any, says: str | None) -> None:
    good = np.linspace(1, 2, 80).reshape(8, 10)
    stage = parity.compare([good, found], [good, reference], "made up", None)
    why = parity.refusal([stage])
    assert (why is None) == (says is None)
    assert why is None or (says in why and "output 1" in why)
    if reference.dtype.kind in "bi":
        assert stage["equal_share"] == pytest.approx(float((found == reference).mean()))
        assert stage["sqnr_db"] is None  # the other output is equal; classes have no decibels


def test_a_tolerance_is_of_each_group_and_one_choice_may_differ() -> None:
    near = HEAD.copy()
    near[:, 4:] += 0.1  # a thousandth of the boxes' tolerance
    with pytest.raises(LoweringFault, match="channels 4-6"):
        parity.compare([near], [HEAD], "conversion to X", parity.FP32_TOLERANCE)
    other = CLASSES.copy()
    other[0] += 1
    assert parity.compare([other], [CLASSES], "conversion to X", parity.FP32_TOLERANCE)["equal_share"] == 7 / 8
    other[1] += 1
    with pytest.raises(LoweringFault, match=r"75\.0 % of values equal"):
        parity.compare([other], [CLASSES], "conversion to X", parity.FP32_TOLERANCE)


def test_what_a_run_keeps_tells_the_same_of_the_board(tmp_path: Any) -> None:
    """The groups of final and selection, from samples that were written and read again."""
    classes = CLASSES.astype(np.int64)

    def score(outputs: Any, _labels: Any) -> Any:
        return np.ones(len(outputs[0]))

    scored = evidence.Scored.of((LOST, classes), (HEAD, classes[::-1]), Samples((HEAD,), None, None), score, False)
    scored.write(tmp_path / "final.npz")
    again = evidence.output_errors(evidence.Scored.read(tmp_path / "final.npz"))
    assert again == evidence.output_errors(scored)
    (told,) = fidelity.errors([LOST], [HEAD])
    for own, other in zip(again[0]["groups"], told["groups"], strict=True):
        assert (own["channels"], own["count"]) == (other["channels"], other["count"])
        assert own["sqnr_db"] == pytest.approx(other["sqnr_db"])
    assert again[1]["equal_share"] == pytest.approx(float((classes == classes[::-1]).mean()))
    said = dict(accounts.errors({"output_error": again}))
    assert "% of values equal" in said["error of output 2"]
    assert "below the floor" in str(accounts.errors({"output_error": again}))
    assert [words.split(" is noise")[0] for words in evidence.lost(again)] == [
        "output 0, channels 4-6 of axis 1 (values to 1)",
        "output 1",
    ]
    odd: list[Any] = [{"groups": 3}, {"groups": [1, {"channels": 7}, {"channels": [[1], ["a", "b"]]}]}]
    assert accounts.errors({"output_error": odd})


def test_a_diagnosis_looks_at_every_output() -> None:
    good = np.linspace(1, 2, 80).reshape(8, 10)
    told = compare.answers((good, LOST), (good, HEAD), by_group=True)
    assert told["output"] == 1
    assert "channels 4-6" in told["part"]
    assert told["sqnr_db"] < 5
    assert compare.answers((good, LOST), (good, HEAD), by_group=False)["sqnr_db"] > 50
    assert compare.answers((good, CLASSES), (good, CLASSES + 1), by_group=True)["equal_share"] == 0
