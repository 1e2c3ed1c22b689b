"""What `edgeopt init` makes of a look at the data: splits that hold, steps to what the model takes, roles by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeopt import task
from edgeopt.errors import ConfigError
from edgeopt.formats import Port
from edgeopt.scaffold import seen
from edgeopt.scaffold.seen import Input, Seen, Unclear

SIZES = st.lists(st.integers(1, 100), min_size=1, max_size=60).filter(lambda sizes: sum(sizes) >= seen.LEAST_SAMPLES)


@given(SIZES, st.booleans())
@example([100, 1, 1], True)
@example([60, *[1] * 40], True)
@example([5] * 31, True)
def test_proposed_splits_can_always_be_made(sizes: list[int], with_groups: bool) -> None:
    n = sum(sizes)
    members = np.repeat(np.arange(len(sizes)), sizes) if with_groups else None
    looked = Seen({}, (), n, "y", np.zeros(n, int), "g", members)
    refused = ""
    try:
        proposed, notes = looked.splits()
    except ConfigError as error:
        refused = str(error)
    if refused:
        assert with_groups
        assert "by hand" in refused
        return
    used = looked.keys().get("groups")
    assert bool(notes) == (with_groups and used is None)
    samples = task.Samples((np.zeros(n),), None, members if used else None)
    wanted = {
        name: task.Split(tuple(part["groups"]) if "groups" in part else None, part.get("count"))
        for name, part in proposed.items()
    }
    rows = task.split(samples, wanted, 0)
    assert all(len(part) for part in rows.values())
    if "groups" in proposed["final"]:
        assert sum(map(len, rows.values())) == n


@pytest.mark.parametrize("place", range(0, 55, 6))
def test_counts_leave_room_for_one_large_group(place: int) -> None:
    """It falls into one split or another, as the seed will have it, and the others must still be filled."""
    sizes = [2] * 54
    sizes.insert(place, 143)
    members = np.repeat(np.arange(55), sizes)
    proposed, _ = Seen({}, (), len(members), "y", np.zeros(len(members), int), "g", members).splits()
    task.split(
        task.Samples((members,), None, members),
        {name: task.Split(None, part["count"]) for name, part in proposed.items()},
        0,
    )


@pytest.mark.parametrize(
    ("one", "source", "ops"),
    [
        (Input("x", (32, 32, 3), "uint8"), "torch", ["scale", "transpose"]),
        (Input("x", (3, 32, 32), "float32"), "torch", []),
        (Input("x", (16,), "float64"), "torch", ["cast"]),
        (Input("x", (16,), "int64"), "torch", []),
        (Input("x", (16,), "int64", Port("x", (None, 16), "int32")), "onnx", ["cast"]),
        (Input("x", (32, 32, 3), "float32", Port("x", (None, 32, 32, 3), "float32")), "onnx", []),
        (Input("x", (32, 32, 3), "float32", Port("x", (None, 3, None, None), "float32")), "onnx", ["transpose"]),
        (Input("x", (32, 32, 3), "uint8", Port("x", (1, 3, 32, 32), "uint8")), "onnx", ["transpose"]),
    ],
)
def test_steps_to_what_the_model_takes(one: Input, source: str, ops: list[str]) -> None:
    found = seen.steps(one, source)
    assert [step["op"] for step in found if not step.get("off")] == ops
    assert len([step for step in found if step.get("off")]) == (0 if ops else 1)


def test_names_tell_roles() -> None:
    def role(*names: str, alone: bool = True) -> str | None:
        return seen.role("--labels", None, names, seen.LABELS, "data", alone)

    assert role("id", "label", "time") == "label"
    assert role("digit_label", "time") == "digit_label"
    assert role("anything") == "anything"
    assert role("a", "b", alone=False) is None
    for several in (("a", "b"), ("label", "target")):
        with pytest.raises(Unclear) as raised:
            role(*several)
        assert (raised.value.flag, raised.value.choices) == ("--labels", several)
