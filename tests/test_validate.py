"""Pass, fail and undecided on a real board's folder, measured, with real bundles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_folder import Answer, Board, Way
from bundle_variants import changed_arrays, variant
from conftest import made_once, run_cli, run_quick
from loopback_board import LoopbackBoard

from edgeopt import bundle as bundles
from edgeopt.device import registry


def validate(board: Board, bundle: bundles.Bundle, *options: str) -> Answer:
    return run_quick("validate", bundle.path, *board.where, *options)


def few_samples(data: bytes) -> bytes:
    """The first 90 samples of a shard, in three groups: enough to judge, quick to run."""

    def take(arrays: dict[str, Any]) -> None:
        for name, array in arrays.items():
            arrays[name] = array[:90]
        arrays["groups"] = np.repeat([0, 1, 2], 30)

    return changed_arrays(data, take)


@pytest.fixture(scope="session")
def small_bundle(bundle_file: Path, shared_tmp: Path) -> bundles.Bundle:
    """A bundle whose floor anything holds."""

    def build(folder: Path) -> None:
        source = bundles.read(bundle_file)
        assert source.manifest.evaluation is not None
        shard = few_samples(source.blob(source.manifest.evaluation.shards[0]))
        variant(
            bundle_file,
            folder / "small.edgeopt",
            evaluation_shard=shard,
            evaluation={"floor_drop": 1.0, "n": 90},
            budgets={},
        )

    return bundles.read(made_once(shared_tmp / "validate-bundle", build) / "small.edgeopt")


@pytest.fixture(scope="session")
def passed(way: Way, small_bundle: bundles.Bundle, shared_tmp: Path) -> dict[str, Any]:
    """What `validate --json` says of it."""

    def build(folder: Path) -> None:
        board = Board(way.folder(folder / "board"), way)
        board.flash(small_bundle)
        done = validate(board, small_bundle, "--json")
        assert done.returncode == 0, done.stderr
        (folder / "found.json").write_text(done.stdout)

    found: dict[str, Any] = json.loads(
        (made_once(shared_tmp / f"validate-passed-{way.name}", build) / "found.json").read_text(),
        parse_constant=lambda word: pytest.fail(f"{word} is not JSON"),
    )
    return found


def test_pass(passed: dict[str, Any], small_bundle: bundles.Bundle) -> None:
    assert (passed["verdict"], passed["release"], passed["rollback"]) == ("pass", small_bundle.release, None)
    final = passed["final"]
    assert final["n"] == 90
    assert final["groups"] == 3
    assert final["drop"] == pytest.approx(final["reference"] - final["value"])
    assert final["drop_interval"][0] <= final["drop"] <= final["drop_interval"][1] < 1.0
    assert passed["latency"]["p50_s"]["value"] > 0
    assert passed["memory"]["above_runtime_bytes"] > 0


def test_undecided_is_11_unless_allowed(
    board: Board, passed: dict[str, Any], small_bundle: bundles.Bundle, tmp_path: Path
) -> None:
    """The floor is put into the interval that was measured, so these samples cannot decide."""
    low, high = passed["final"]["drop_interval"]
    assert low < high
    floor = {"floor_drop": (max(low, passed["final"]["drop"]) + high) / 2}
    doubtful = variant(small_bundle.path, tmp_path / "doubtful.edgeopt", evaluation=floor)
    board.flash(doubtful)
    done = validate(board, doubtful)
    assert done.returncode == 11, done.stderr
    assert "UNDECIDED" in done.stdout
    assert "point estimate inside the floor" in done.stdout
    assert "same answer as the source model" in done.stdout  # its lineage names no other reference
    allowed = validate(board, doubtful, "--allow-undecided", "--json")
    assert allowed.returncode == 0
    assert json.loads(allowed.stdout)["verdict"] == "undecided"


def test_a_broken_floor_is_10_and_returns_to_the_earlier_release(
    board: Board, small_bundle: bundles.Bundle, tmp_path: Path
) -> None:
    worse = variant(small_bundle.path, tmp_path / "worse.edgeopt", evaluation={"floor_drop": -1.0})
    board.flash(small_bundle)
    board.flash(worse)
    kept = validate(board, worse, "--allow-undecided")
    assert kept.returncode == 10, kept.stderr
    assert "outside the floor" in kept.stdout
    assert board.current()[0] == worse.release
    done = validate(board, worse, "--rollback-on-fail")
    assert done.returncode == 10
    assert f"rolled back to {small_bundle.release[:12]}" in done.stdout
    assert board.current()[0] == small_bundle.release


def test_a_broken_budget_is_10_with_its_figures(board: Board, small_bundle: bundles.Bundle, tmp_path: Path) -> None:
    budgets = {"size_bytes": 1000.0, "latency_p50_s": 1e-9, "energy_j": 1.0}
    slow = variant(small_bundle.path, tmp_path / "slow.edgeopt", budgets=budgets)
    board.flash(slow)
    done = validate(board, slow, "--rollback-on-fail", "--json")
    assert done.returncode == 10, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "fail"
    reasons = " ".join(found["reasons"])
    size = slow.manifest.files["model.tflite"].size_bytes
    assert f"size_bytes {size:.6g} is over the budget of 1000" in reasons
    assert "latency_p50_s" in reasons
    assert f"not judged here: energy_j; `edgeopt power {slow.path} --budget-j 1` judges it" in reasons
    assert "no earlier release" in found["rollback"]["error"]  # said, and the verdict is told all the same
    assert board.current()[0] == slow.release


def test_outputs_that_are_not_numbers_fail(
    board: Board, small_bundle: bundles.Bundle, bundle_file: Path, tmp_path: Path
) -> None:
    assert small_bundle.manifest.evaluation is not None
    shard = small_bundle.blob(small_bundle.manifest.evaluation.shards[0])

    def lose(arrays: dict[str, Any]) -> None:
        arrays["input0"][:2] = np.nan

    sick = variant(
        small_bundle.path,
        tmp_path / "sick.edgeopt",
        {"model.tflite": (bundle_file.parent / "candidates" / "fp32" / "model.tflite").read_bytes()},
        changed_arrays(shard, lose),
        health={"greatest_output_error": None, "greatest_median_latency_s": None},
    )
    board.flash(sick)
    done = validate(board, sick, "--json")
    assert done.returncode == 10, done.stderr
    found = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert "2 of 90 samples gave NaN or infinite outputs" in found["reasons"][0]


def test_another_release_is_current(board: Board, small_bundle: bundles.Bundle, other_bundle_file: Path) -> None:
    other = bundles.read(other_bundle_file)
    nothing = validate(board, small_bundle)
    assert nothing.returncode == 4
    assert "no release is current" in nothing.stderr
    board.flash(other)
    refused = validate(board, small_bundle)
    assert refused.returncode == 4
    for word in (other.release[:12], small_bundle.release[:12], str(small_bundle.path), "flash that bundle first"):
        assert word in refused.stderr
    assert list((board.root / "jobs").glob("bench-*")) == []  # told before anything is measured
    blob = board.root / "store" / other.manifest.files["model.tflite"].sha256
    blob.write_bytes(b"damaged")
    damaged = validate(board, other)
    assert damaged.returncode == 4
    assert "model.tflite" in damaged.stderr


def test_a_bundle_without_a_usable_pack_says_so(board: Board, small_bundle: bundles.Bundle, tmp_path: Path) -> None:
    bare = variant(small_bundle.path, tmp_path / "bare.edgeopt", evaluation=None)
    board.flash(bare)
    refused = validate(board, bare)
    assert refused.returncode == 2
    assert "evaluation pack" in refused.stderr
    foreign = variant(small_bundle.path, tmp_path / "foreign.edgeopt", evaluation_shard=b"not arrays")
    board.flash(foreign)
    refused = validate(board, foreign)
    assert refused.returncode == 5
    assert str(foreign.path) in refused.stderr


def test_a_p95_budget_is_measured_long_enough_by_default(
    board: Board, small_bundle: bundles.Bundle, tmp_path: Path
) -> None:
    """rapid gives no p95: asking for it is refused, and the default is a mode that gives one."""
    loose = variant(small_bundle.path, tmp_path / "loose.edgeopt", budgets={"latency_p95_s": 1.0})
    board.flash(loose)
    refused = validate(board, loose, "--mode", "rapid")
    assert refused.returncode == 2
    assert "use quick or normal" in refused.stderr
    done = validate(board, loose, "--allow-undecided", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["latency"]["mode"] == "quick"
    assert 0 < found["latency"]["p95_s"]["value"] <= 1.0


def test_several_boards_have_a_verdict_each(
    loopback: LoopbackBoard, small_bundle: bundles.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One holds the floor; one has another release; the table and the exit code say both."""
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "devices.toml"))
    shared = {"identity": str(loopback.identity), "known_hosts": str(loopback.known_hosts), "python": sys.executable}
    for name in ("good", "empty"):
        registry.put(name, registry.Entry(address=loopback.address, root=str(tmp_path / name), **shared))
    flashed = run_cli("flash", small_bundle.path, "--device", "good")
    assert flashed.returncode == 0, flashed.stderr
    done = run_cli("validate", small_bundle.path, "--all-devices", "--json")
    assert done.returncode == 4, done.stderr
    found = {entry["board"]["name"]: entry for entry in json.loads(done.stdout)["devices"]}
    assert (found["good"]["outcome"], found["good"]["exit_code"]) == ("pass", 0)
    assert found["good"]["final"]["n"] == 90
    assert found["empty"]["exit_code"] == 4
    assert "no release is current" in found["empty"]["error"]["message"]
