"""What stays in the board's store: all that a release uses, and of the rest what was used last, within a quota."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from edgeopt_agent import room, store
from hypothesis import given
from hypothesis import strategies as st

DAY_S = 86400.0


def blobs(root: Path, ages: list[float], size: int = 1000) -> list[str]:
    """Blobs of `size` bytes that were used so many seconds ago."""
    folder = root / "store"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, age in enumerate(ages):
        data = number.to_bytes(4, "big") * (size // 4)
        names.append(hashlib.sha256(data).hexdigest())
        (folder / names[-1]).write_bytes(data)
        os.utime(folder / names[-1], (time.time() - age,) * 2)
    return names


def left(root: Path) -> set[str]:
    return set(os.listdir(root / "store"))


def test_the_longest_unused_goes_first_and_a_releases_blob_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "QUOTA_BYTES", 2500)
    names = blobs(tmp_path, [5 * DAY_S, 4 * DAY_S, 3 * DAY_S, 2 * DAY_S])
    store.trim(str(tmp_path), used={names[0]})
    assert left(tmp_path) == {names[0], names[2], names[3]}


def test_what_may_belong_to_an_upload_under_way_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "QUOTA_BYTES", 0)
    names = blobs(tmp_path, [10.0, 2 * DAY_S])
    store.trim(str(tmp_path), used=set())
    assert left(tmp_path) == {names[0]}


def test_a_blob_that_is_used_counts_as_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "QUOTA_BYTES", 0)
    names = blobs(tmp_path, [3 * DAY_S, 2 * DAY_S])
    store.whole(str(tmp_path), names[0])
    store.trim(str(tmp_path), used=set())
    assert left(tmp_path) == {names[0]}


def test_nothing_goes_while_a_release_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "QUOTA_BYTES", 0)
    names = blobs(tmp_path, [2 * DAY_S])
    (tmp_path / "releases" / "r").mkdir(parents=True)
    (tmp_path / "releases" / "r" / "manifest.json").write_text("{")
    (tmp_path / "activations").mkdir()
    room.tidy(str(tmp_path))
    assert left(tmp_path) == set(names)


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 12), st.data())
def test_within_the_quota_and_no_more_than_needed(days: list[int], quota: int, data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as text, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "QUOTA_BYTES", quota * 1000)
        names = blobs(Path(text), [DAY_S + day * DAY_S for day in days])
        used = set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set()
        store.trim(text, used)
        loose = left(Path(text)) - used
        assert used <= left(Path(text))
        assert len(loose) == min(quota, len(names) - len(used))
