"""What a board refuses leaves its current release as it was: sick releases, full, read-only and unfit disks."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_folder import Board, tree
from bundle_variants import changed_arrays, variant
from conftest import run_cli

from edgeopt import bundle as bundles


def wrong_outputs(arrays: dict[str, Any]) -> None:
    arrays["expected0"] = np.roll(arrays["expected0"], 1, axis=0)


def wrong_labels(arrays: dict[str, Any]) -> None:
    arrays["labels"] = (arrays["labels"] + 1) % 7


def nan_inputs(arrays: dict[str, Any]) -> None:
    arrays["input0"] = np.full_like(arrays["input0"], np.nan)


@pytest.mark.parametrize(
    ("change", "limits", "said"),
    [
        (wrong_outputs, {}, "outputs differ from the expected ones by"),
        (wrong_labels, {}, "correct of 64, at least"),
        (None, {"greatest_median_latency_s": 1e-9}, "median latency"),
        (nan_inputs, {}, "NaN or infinite"),
    ],
    ids=["outputs", "correct", "latency", "nan"],
)
def test_a_release_that_fails_its_health_check_changes_nothing(
    board: Board,
    versions: list[bundles.Bundle],
    bundle_file: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None] | None,
    limits: dict[str, Any],
    said: str,
) -> None:
    source = bundles.read(bundle_file)
    files = {"model.tflite": (bundle_file.parent / "candidates" / "fp32" / "model.tflite").read_bytes()}
    if change:
        files["health.npz"] = changed_arrays(source.blob(source.manifest.files["health.npz"]), change)
    sick = variant(bundle_file, tmp_path / "sick.edgeopt", files, health=limits)
    first = board.flash(sick, code=4)
    assert said in first.stderr
    assert "no release is current there" in first.stderr
    assert board.status()["current"] is None
    board.flash(versions[0])
    before = tree(board.root, without=("jobs", "store"))
    refused = board.flash(sick, code=4)
    assert said in refused.stderr
    assert f"({versions[0].release[:12]}) is current there" in refused.stderr
    assert tree(board.root, without=("jobs", "store")) == before
    assert board.current() == (versions[0].release, None)


def test_a_board_without_the_runtime_is_told_before_anything_is_sent(
    board: Board, versions: list[bundles.Bundle]
) -> None:
    python = Path(sys.base_prefix) / "bin" / "python3"
    bare = subprocess.run(
        [str(python), "-c", "import ai_edge_litert, tflite_runtime"], capture_output=True, check=False
    )
    if bare.returncode == 0:
        pytest.skip(f"{python} has a TFLite runtime")
    refused = run_cli("flash", versions[0].path, *board.where, "--board-python", python)
    assert refused.returncode == 4
    for word in ("'tflite' is not installed", str(python), "--board-python", "ai-edge-litert"):
        assert word in refused.stderr
    assert list((board.root / "store").iterdir()) == []


@contextlib.contextmanager
def mounted(*arguments: str, at: Path) -> Iterator[None]:
    """A real mount; skips where this user may not."""
    at.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mount {' '.join(arguments)} is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return path


def test_a_full_disk_is_said_and_the_board_goes_on(tmp_path: Path, versions: list[bundles.Bundle]) -> None:
    disk = tmp_path / "disk"
    with mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs", at=disk):
        board = Board(disk / "board")
        filler = fill(disk)
        refused = board.flash(versions[0], code=4)
        assert "free" in refused.stderr
        assert not (board.root / "current").exists()
        filler.unlink()
        board.flash(versions[0])
        before = tree(board.root)
        filler = fill(disk)
        refused = board.flash(versions[1], code=4)
        for word in (str(board.root), "free some space there", "--root", "is current there", versions[0].release[:12]):
            assert word in refused.stderr
        assert tree(board.root) == before
        assert board.current() == (versions[0].release, None)
        os.truncate(filler, filler.stat().st_size - (1 << 20) - 100_000)  # room for a part of what is to come
        refused = board.flash(versions[1], code=4)
        assert "are still to come" in refused.stderr
        assert tree(board.root) == before
        filler.unlink()
        board.flash(versions[1])
        assert board.current() == (versions[1].release, versions[0].release)


def test_a_disk_that_fills_after_the_upload_keeps_the_release(tmp_path: Path, versions: list[bundles.Bundle]) -> None:
    disk = tmp_path / "disk"
    with mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs", at=disk):
        board = Board(disk / "board")
        board.flash(versions[0])
        board.flash(versions[1])
        board.run("rollback")
        filler = fill(disk)
        refused = board.flash(versions[1], code=4)
        for word in (str(board.root), "free some space there", f"({versions[0].release[:12]}) is current there"):
            assert word in refused.stderr
        for pages in (1, 2, 2, 3, 4):  # more room lets the job come a little further
            assert board.current() == (versions[0].release, None)
            os.truncate(filler, filler.stat().st_size - pages * 4096)
            if run_cli("flash", versions[1].path, *board.where).returncode == 0:
                break
        assert board.current()[0] in (versions[0].release, versions[1].release)
        filler.unlink()
        board.flash(versions[1])
        assert board.current() == (versions[1].release, versions[0].release)


def test_a_read_only_root_is_said_and_nothing_changes(tmp_path: Path, versions: list[bundles.Bundle]) -> None:
    disk = tmp_path / "disk"
    with mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs", at=disk):
        board, fresh = Board(disk / "board"), Board(disk / "fresh")
        board.flash(versions[0])
        before = tree(disk, without=())
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for target in (board, fresh):
            refused = target.flash(versions[1], code=4)
            assert str(target.root) in refused.stderr
            assert "writable" in refused.stderr
            assert "--root" in refused.stderr
        looked_at = board.status()["current"]  # it can still be looked at
        assert (looked_at["release"], looked_at["whole"]) == (versions[0].release, True)
        assert tree(disk, without=()) == before


@pytest.mark.parametrize("kind", ["vfat", "exfat"])
def test_a_file_system_without_symlinks_is_refused(tmp_path: Path, versions: list[bundles.Bundle], kind: str) -> None:
    """exfat by FUSE stands in where the kernel has no vfat; both lack symlinks."""
    tools = {"vfat": ["mkfs.vfat"], "exfat": ["mkfs.exfat", "mount.exfat-fuse"]}[kind]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = [shutil.which(tool, path=path) for tool in tools]
    if not all(found):
        pytest.skip(f"{' and '.join(tools)} are not installed")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run([str(found[0]), str(image)], check=True, capture_output=True)
    loop = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False)
    if loop.returncode != 0:
        pytest.skip(f"no loop device: {loop.stderr.strip()}")
    device = loop.stdout.strip()
    try:
        filesystem = "exfat-fuse" if kind == "exfat" else kind
        with mounted("-t", filesystem, device, at=tmp_path / "disk"):
            board = Board(tmp_path / "disk" / "board")
            refused = board.flash(versions[0], code=4)
            for word in (str(board.root), "symlinks", "rename", "fsync", "ext4"):
                assert word in refused.stderr
            assert not {"store", "releases", "activations", "jobs"} & {path.name for path in board.root.iterdir()}
            assert [path.name for path in board.root.glob(".probe-*")] == []
    finally:
        subprocess.run(["losetup", "-d", device], check=False)
