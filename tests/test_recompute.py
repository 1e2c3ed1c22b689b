"""report --recompute on a real run: every figure again from the raw samples, in whatever folder the run lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_cli

from edgeopt import recompute


@pytest.fixture
def copied(small_run: Path, tmp_path: Path) -> Path:
    """The run alone, far from its cache, its project and its board."""
    return Path(shutil.copytree(small_run, tmp_path / "elsewhere" / "run"))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_copied_run_is_computed_again_and_nothing_is_written(copied: Path) -> None:
    before = state(copied)
    done = run_cli("report", copied, "--recompute", "--json", env={"EDGEOPT_CACHE": str(copied.parent / "none")})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["differences"], found["missing"]) == ([], [])
    assert state(copied) == before
    run = json.loads((copied / "run.json").read_text())
    for trial in run["trials"]:
        place = f"trials.{trial['name']}"
        for key in ("latency", "ratios", "step", "memory", "conditions", "load_s", "first_inference_s", "executed"):
            assert found["again"][f"{place}.{key}"] == trial[key]
        assert found["again"][f"{place}.score.drop_interval"] == trial["score"]["drop_interval"]
        assert found["again"][f"{place}.artifact.sha256"] == trial["artifact"]["sha256"]
    judged = {key: value for key, value in run["final"].items() if key != "metric"}
    assert {f"final.{key}" for key in judged} <= set(found["again"])
    assert found["figures"] > 300


def edit(copied: Path, change: Callable[[dict[str, Any]], None]) -> None:
    run = json.loads((copied / "run.json").read_text())
    change(run)
    (copied / "run.json").write_text(json.dumps(run))


def set_latency(run: dict[str, Any]) -> None:
    run["trials"][1]["latency"]["p50_s"]["value"] *= 0.99


def set_ratio(run: dict[str, Any]) -> None:
    run["trials"][1]["ratios"]["latency_p50_s"]["interval"][0] -= 0.001


def set_drop(run: dict[str, Any]) -> None:
    run["final"]["drop"] -= 1e-6


def set_verdict(run: dict[str, Any]) -> None:
    run["final"]["verdict"] = run["verdict"] = "pass" if run["verdict"] != "pass" else "fail"


def set_marks(run: dict[str, Any]) -> None:
    run["trials"][0]["conditions"]["marks"].append("nothing")


def set_memory(run: dict[str, Any]) -> None:
    run["trials"][1]["memory"]["peak_rss_bytes"] -= 4096


def set_size(run: dict[str, Any]) -> None:
    run["trials"][1]["artifact"]["size_bytes"] -= 1


def set_unmeasured(run: dict[str, Any]) -> None:
    run["trials"][1]["latency"]["p99_s"]["value"] = 0.001


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_latency, "trials.int8.latency.p50_s.value"),
        (set_ratio, "trials.int8.ratios.latency_p50_s.interval.0"),
        (set_drop, "final.drop"),
        (set_verdict, "final.verdict"),
        (set_marks, "trials.fp32.conditions.marks"),
        (set_memory, "trials.int8.memory.peak_rss_bytes"),
        (set_size, "trials.int8.artifact.size_bytes"),
        (set_unmeasured, "trials.int8.latency.p99_s.value"),
    ],
)
def test_a_figure_that_was_changed_is_named(copied: Path, change: Callable[[dict[str, Any]], None], named: str) -> None:
    edit(copied, change)
    found = recompute.recompute(json.loads((copied / "run.json").read_text()), copied)
    assert named in [one["figure"] for one in found["differences"]]


def test_differences_are_exit_5_on_screen(copied: Path) -> None:
    edit(copied, set_latency)
    done = run_cli("report", copied, "--recompute")
    assert done.returncode == 5, done.stderr
    assert "trials.int8.latency.p50_s.value: " in done.stdout
    assert "1 differ, 0 files missing" in done.stdout


def test_samples_that_were_changed_show_in_the_figures(copied: Path) -> None:
    path = copied / "samples" / "final.npz"
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["own"] = arrays["own"].copy()
    arrays["own"][:5] = 1 - arrays["own"][:5]
    np.savez_compressed(path, **arrays)
    found = recompute.recompute(json.loads((copied / "run.json").read_text()), copied)
    assert "final.value" in [one["figure"] for one in found["differences"]]


@pytest.mark.parametrize(
    "file", ["samples/int8.npz", "samples/int8.selection.npz", "samples/final.npz", "candidates/fp32/model.tflite"]
)
def test_a_raw_file_that_is_gone_or_damaged_is_named(copied: Path, file: str) -> None:
    document = json.loads((copied / "run.json").read_text())
    found = copied / next(
        (t["artifact"]["file"] for t in document["trials"] if file.startswith(f"candidates/{t['name']}")), file
    )
    whole = found.read_bytes()
    found.unlink()
    gone = recompute.recompute(document, copied)
    assert any(str(found) in words for words in gone["missing"]), gone["missing"]
    found.write_bytes(whole[: len(whole) // 2])
    damaged = recompute.recompute(document, copied)
    assert any(str(found) in words for words in damaged["missing"]) or damaged["differences"]
    assert run_cli("report", copied, "--recompute").returncode == 5


def test_nothing_outside_the_run_is_read(copied: Path) -> None:
    shutil.copy(copied / "samples" / "int8.npz", copied.parent / "outside.npz")

    def lead_out(run: dict[str, Any]) -> None:
        run["trials"][1]["samples"] = "../outside.npz"

    edit(copied, lead_out)
    done = run_cli("report", copied, "--recompute", "--json")
    assert done.returncode == 5, done.stderr
    missing = json.loads(done.stdout)["missing"]
    assert any("'../outside.npz' is outside the run's folder" in words for words in missing)

    def be_odd(run: dict[str, Any]) -> None:
        run["trials"][0]["samples"] = 7

    edit(copied, be_odd)
    done = run_cli("report", copied, "--recompute", "--json")
    assert done.returncode == 5, done.stderr
    assert "samples" in json.loads(done.stdout)["error"]["message"]


def test_out_takes_what_was_computed(copied: Path) -> None:
    out = copied.parent / "again.json"
    assert run_cli("report", copied, "--recompute", "--out", out).returncode == 0
    assert json.loads(out.read_text())["figures"] > 300
    inside = run_cli("report", copied, "--recompute", "--out", copied / "again.json")
    assert inside.returncode == 2
    assert "is in the run's folder" in inside.stderr
    both = run_cli("report", copied, "--recompute", "--against", copied)
    assert both.returncode == 2
    assert "give one" in both.stderr
