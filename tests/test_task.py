"""Samples, files of arrays, labels, and splits that share neither sample nor group."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeopt import task
from edgeopt.errors import ConfigError
from edgeopt.task import SPLITS, Samples, Split

names = st.one_of(
    st.lists(st.integers(-5, 9), min_size=1, max_size=60),
    st.lists(st.sampled_from(["ann", "bob", "cem", "d", "é", "10", "2"]), min_size=1, max_size=60),
)


def samples(groups: Any = None, n: int | None = None) -> Samples:
    """One input whose rows hold their own number."""
    groups = None if groups is None else np.asarray(groups)
    count = len(groups) if groups is not None else n
    assert count is not None
    return Samples((np.arange(count),), None, groups)


@st.composite
def wanted(draw: st.DrawFn, groups: list[Any] | None, n: int) -> dict[str, Split]:
    """A split of the data, by names of groups, by counts, or by both."""
    left = sorted(set(groups)) if groups is not None else []
    found = {}
    for name in SPLITS:
        own = draw(st.lists(st.sampled_from(left), unique=True, min_size=1)) if left and draw(st.booleans()) else None
        left = [group for group in left if group not in (own or ())]
        count = draw(st.integers(1, n) if own is None else st.none() | st.integers(1, n))
        found[name] = Split(tuple(own) if own else None, count)
    return found


def split_or_refusal(data: Samples, asked: dict[str, Split], seed: int) -> tuple[dict[str, task.Array] | None, str]:
    try:
        return task.split(data, asked, seed), ""
    except ConfigError as error:
        return None, str(error)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.none() | names, st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_splits_share_nothing_and_hold_what_was_asked(
    data: st.DataObject, groups: list[Any] | None, n: int, seed: int
) -> None:
    given_samples = samples(groups, n)
    asked = data.draw(wanted(groups, len(given_samples)))
    found, refusal = split_or_refusal(given_samples, asked, seed)
    if found is None:
        assert "[splits]" in refusal
        assert any(name in refusal for name in SPLITS)
        return
    together = np.concatenate([found[name] for name in SPLITS])
    assert len(np.unique(together)) == len(together)
    for name in SPLITS:
        own, spec = given_samples.take(found[name]), asked[name]
        assert list(found[name]) == sorted(found[name])
        assert len(own) == spec.count if spec.count is not None else len(own) > 0
        if groups is not None:
            assert own.groups is not None
            others = {group for other in SPLITS if other != name for group in np.asarray(groups)[found[other]].tolist()}
            assert not others & set(own.groups.tolist())
            if spec.groups is not None:
                assert set(own.groups.tolist()) <= set(spec.groups)
                if spec.count is None:
                    assert len(own) == sum(group in spec.groups for group in groups)
    again = task.split(given_samples, asked, seed)
    assert all(np.array_equal(found[name], again[name]) for name in SPLITS)


@settings(max_examples=100, deadline=None)
@given(names, st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_choose_the_groups(groups: list[Any], seed: int, random: Any) -> None:
    third = max(1, len(groups) // 4)
    asked = {name: Split(None, third) for name in SPLITS}
    shuffled = groups.copy()
    random.shuffle(shuffled)
    try:
        first, second = (task.split(samples(order), asked, seed) for order in (groups, shuffled))
    except ConfigError:
        assume(False)
    for name in SPLITS:
        others = [np.asarray(shuffled)[second[other]] for other in SPLITS if other != name]
        assert not set(np.asarray(groups)[first[name]]) & set(np.concatenate(others))


def test_an_impossible_split_is_refused_only_when_it_is_impossible() -> None:
    """Ten groups of ten: three splits of 30, 30 and 40 fit, one more sample does not."""
    data = samples(np.repeat(np.arange(10), 10))
    asked = {"calibration": Split(None, 30), "selection": Split(None, 30), "final": Split(None, 40)}
    found = task.split(data, asked, 0)
    assert [len(found[name]) for name in SPLITS] == [30, 30, 40]
    with pytest.raises(ConfigError, match=r"final.count = 41, but the other splits leave 40"):
        task.split(data, asked | {"final": Split(None, 41)}, 0)
    with pytest.raises(ConfigError, match=r"final.count = 31, but the other splits leave 30"):
        task.split(data, asked | {"selection": Split(None, 31), "final": Split(None, 31)}, 0)


def test_seeds_differ_and_large_data_is_quick() -> None:
    asked = {name: Split(None, 20_000) for name in SPLITS}
    data = samples(n=300_000)
    first, second = task.split(data, asked, 0), task.split(data, asked, 1)
    assert not np.array_equal(first["final"], second["final"])
    assert len(np.intersect1d(first["final"], second["final"])) < 3000


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64])
def test_numbers_of_a_file_and_numbers_of_a_run_file_are_the_same_groups(kind: Any) -> None:
    data = samples(np.array([1, 1, 2, 3], dtype=kind))
    asked = {"calibration": Split((1,), None), "selection": Split((2,), None), "final": Split((3,), None)}
    assert task.split(data, asked, 0)["calibration"].tolist() == [0, 1]


def test_text_groups() -> None:
    data = samples(np.array(["ann", "bob", "bob", "10"]))
    asked = {"calibration": Split(("ann",), None), "selection": Split(("bob",), 1), "final": Split(("10",), None)}
    found = task.split(data, asked, 0)
    assert found["final"].tolist() == [3]
    with pytest.raises(ConfigError, match=r"no group 10; the data's groups are text: write it in quotes, as '10'"):
        task.split(data, asked | {"final": Split((10,), None)}, 0)
    with pytest.raises(ConfigError, match=r"no group '1'; the data's groups are whole numbers: .* without quotes"):
        task.split(samples([1, 2, 3, 3]), asked | {"calibration": Split(("1",), None)}, 0)


def test_many_groups_are_not_all_listed() -> None:
    asked = {"calibration": Split((-1,), None), "selection": Split((1,), None), "final": Split((2,), None)}
    with pytest.raises(ConfigError, match=r"the data has: 0, 1, .*, 19 and 980 more$"):
        task.split(samples(np.arange(1000)), asked, 0)


def test_take_keeps_rows_together() -> None:
    data = Samples((np.arange(6).reshape(3, 2), np.arange(3)), np.arange(3) * 10, np.array(["a", "b", "c"]))
    some = data.take(np.array([2, 0]))
    assert len(some) == 2
    assert [array.tolist() for array in some.inputs] == [[[4, 5], [0, 1]], [2, 0]]
    assert some.labels is not None
    assert some.groups is not None
    assert (some.labels.tolist(), some.groups.tolist()) == ([20, 0], ["c", "a"])


def test_prepared_applies_the_steps_of_each_input() -> None:
    data = Samples((np.ones((2, 3), np.uint8), np.ones((2, 3), np.uint8)), None, None)
    first, second = data.prepared([[{"op": "scale", "by": 2.0, "offset": 1.0}, {"op": "expand", "axis": 1}], []])
    assert (first.dtype, first.shape, first.max()) == (np.float32, (2, 1, 3), 3.0)
    assert second is data.inputs[1]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"op": "normalize", "mean": [0, 0], "std": [1, 1], "axis": 1}, r"input 0: .*step 1 \(normalize\).*\[2, 3\]"),
        ({"op": "expand", "axis": 0}, r"turns \(2, 3\) into \(1, 2, 3\); axis 0 is the sample"),
        ({"op": "argmax", "axis": 0}, r"turns \(2, 3\) into \(3,\)"),
    ],
)
def test_steps_that_do_not_fit_are_named(step: dict[str, Any], said: str) -> None:
    data = Samples((np.ones((2, 3), np.float32),), None, None)
    with pytest.raises(ConfigError, match=said):
        data.prepared([[{"op": "scale", "by": 1.0, "offset": 0.0}, step]])


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_whole_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed, cut or added anywhere: the arrays that were saved (or others), or a ConfigError; nothing else."""
    content = bytearray(npz(x=np.arange(40, dtype=np.float32), y=np.arange(40)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=30))
    file = tmp_path_factory.getbasetemp() / f"damaged-{os.getpid()}.npz"
    file.write_bytes(content)
    with contextlib.suppress(ConfigError):
        found = task.read_npz(file)
        assert all(isinstance(array, np.ndarray) for array in found.values())


def huge() -> bytes:
    """An array whose header promises a petabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 47,)})
    return archive({"x.npy": header.getvalue()})


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, content in files.items():
            out.writestr(name, content)
    return buffer.getvalue()


def torn_stream() -> bytes:
    """Its first compressed block is of a kind that there is not."""
    content = bytearray(archive({"x.npy": bytes(1000)}, zipfile.ZIP_DEFLATED))
    content[30 + len("x.npy")] = 0x07
    return bytes(content)


def encrypted() -> bytes:
    content = bytearray(archive({"x.npy": npz(x=np.zeros(3))}))
    for start in (content.index(b"PK\x03\x04") + 6, content.rindex(b"PK\x01\x02") + 8):
        content[start] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"PK", "cannot be read"),
        (b"\x80\x04K\x01.", "cannot be read"),
        (archive({"x.npy": b"\x93NUMPY\x01\x00\xff\xff"}), "array 'x'"),
        (archive({"notes.txt": b"hello"}), "holds 'notes.txt', which is no array"),
        (huge(), "array 'x' .*memory"),
        (encrypted(), "array 'x' .*encrypted"),
        (torn_stream(), "array 'x' .*invalid block type"),
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        task.read_npz(file, "--inputs")
    with pytest.raises(ConfigError, match=f"--inputs = '{file}'"):
        task.read_npz(file, "--inputs")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        task.read_npz(tmp_path)


@pytest.mark.parametrize(
    ("labels", "metric", "classes", "said"),
    [
        (None, "top1", 3, "absent"),
        (None, "negative_mae", None, "absent"),
        (np.array([0, 1, 3]), "top1", 3, "run from 0 to 3, but there are 3 classes: labels 0 to 2"),
        (np.array([1, 8]), "top1", 8, "run from 1 to 8, but there are 8 classes: labels 0 to 7 .* counted from 1"),
        (np.array([-1, 1]), "top5", None, "run from -1 to 1"),
        (np.array([0.0, 1.0]), "top1", 2, "float64"),
        (np.array([True, False]), "top1", 2, "bool"),
        (np.array(["a", "b"]), "top1", 2, "<U1"),
        (np.eye(2, dtype=int), "top1", 2, r"int64 \(2, 2\)"),
        (np.array([0.0, np.nan]), "negative_mae", None, "NaN or infinity in 1 of 2 samples, first in sample 1"),
        (np.array(["a"]), "negative_mae", None, "numbers"),
    ],
)
def test_labels_that_do_not_match(labels: Any, metric: str, classes: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task.check_labels(labels, metric, classes)


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 10))
def test_labels_are_allowed_exactly_below_the_number_of_classes(labels: list[int], classes: int) -> None:
    if max(labels) < classes:
        task.check_labels(np.array(labels, np.uint8), "top1", classes)
    else:
        with pytest.raises(ConfigError):
            task.check_labels(np.array(labels, np.uint8), "top1", classes)


def test_outputs_must_be_what_the_metric_scores() -> None:
    labels = np.array([0, 1, 2, 5])
    task.check_outputs([np.zeros((4, 6))], labels, "top5", 6)
    for width, metric, classes, said in (
        (5, "top1", 0, "5 classes: labels 0 to 4"),
        (6, "top1", 7, "classes names 7, but the model has 6 outputs"),
        (5, "top5", 0, "always right"),
    ):
        with pytest.raises(ConfigError, match=said):
            task.check_outputs([np.zeros((4, width))], labels, metric, classes)
    task.check_outputs([np.zeros((4, 2))], np.zeros((4, 2)), "negative_mae", 0)
    with pytest.raises(ConfigError, match=r"labels: \(4,\); .*output \(4, 1\)"):
        task.check_outputs([np.zeros((4, 1))], np.zeros(4), "negative_mae", 0)


def test_samples_of_picks_by_name_and_brings_foreign_byte_order_home() -> None:
    big = np.arange(6, dtype=">f4").reshape(3, 2)
    found = task.samples_of({"x": big, "y": np.arange(3), "who": np.array(["a", "b", "c"])}, ["x"], "y", "who", "'f'")
    assert found.inputs[0].dtype == np.dtype("f4")
    assert np.array_equal(found.inputs[0], big)
    assert found.inputs[0].dtype.isnative


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": np.float32(1)}, "x: 0, y: 3"),
        ({"x": np.zeros(3, complex)}, "'x' in 'f' has type complex128"),
        ({"x": np.zeros(3, np.longdouble)}, "'x' in 'f' has type float128"),
        ({"x": np.zeros(3, bool)}, "'x' in 'f' has type bool"),
        ({"who": np.zeros((3, 1), int)}, r"groups = 'who' in 'f' has shape \(3, 1\)"),
        ({"who": np.array([b"a"] * 3)}, r"type \|S1; one whole number or text"),
    ],
)
def test_samples_of_names_what_is_wrong(changed: dict[str, Any], said: str) -> None:
    arrays = {"x": np.zeros(3), "y": np.arange(3), "who": np.arange(3), **changed}
    with pytest.raises(ConfigError, match=said):
        task.samples_of(arrays, ["x"], "y", "who", "'f'")


@pytest.mark.parametrize(
    ("given_arrays", "said"),
    [
        ([1, 2], "arrays.. returned list"),
        ({"x": [[1], [1, 2]]}, "gave 'x', which is no regular array"),
        ({"x": np.array([{}])}, "gave 'x' as objects"),
        ({"x": np.array([(1, {})], dtype=[("a", int), ("b", object)])}, "gave 'x' as objects"),
    ],
)
def test_arrays_of_a_task_object(given_arrays: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^mine: .*{said}"):
        task.plain_arrays(given_arrays, "mine")
    assert task.plain_arrays({"x": [1, 2]}, "mine")["x"].tolist() == [1, 2]
