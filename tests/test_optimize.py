"""optimize through the installed CLI, on the real example: budgets decide, interruptions cost nothing, caches hit."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, SMALL, copy_example, run_cli, run_quick

from edgeopt import bundle as bundles

HEAVY = ("torch", "litert_torch", "ai_edge_quantizer", "ai_edge_litert", "torch_pruning", "scipy", "tensorflow", "jax")

PROFILE = """
schema = 1
name = "{name}"
description = "A board of the tests."
runtimes = ["tflite"]
[cpu]
architecture = "x86_64"
[board]
root = "/var/lib/edgeopt"
python = "python3"
[budget]
{budget}
"""


def optimize(project: Path, tmp: Path, *more: object) -> subprocess.CompletedProcess[str]:
    where = ["--root", tmp / "board", "--cache", tmp / "cache", "--out", tmp / "run"]
    return run_quick("optimize", project, "--allow-undecided", *where, *more)


def test_budgets_lead_to_different_artifacts(tmp_path: Path, watch_data: Path) -> None:
    """Loose: int8 meets the budget and pruning promises too little. Tight: only pruning fits."""
    project = copy_example(
        tmp_path / "project",
        watch_data,
        calibration="{ groups = [1, 2, 3, 4, 5] }",
        selection=SMALL["selection"],
        final=SMALL["final"],
        ratios="[0.3]",
        floor_drop="0.05\nmin_gain = 0.3",
    )
    documents = {}
    for name, budget in (("loose", "latency_p50_s = 1.0"), ("tight", "size_bytes = 150_000")):
        (tmp_path / f"{name}.toml").write_text(PROFILE.format(name=name, budget=budget))
        done = optimize(project, tmp_path, "--profile", tmp_path / f"{name}.toml", "--json")
        assert done.returncode == 0, done.stderr
        documents[name] = json.loads(done.stdout)
    loose, tight = documents["loose"], documents["tight"]
    assert loose["chosen"] == "int8"
    assert "'int8' meets every budget, and prune30-int8 promises about 26% less median latency" in loose["stop"]
    assert tight["chosen"] == "prune30-int8"

    pruned = tight["trials"][-1]
    fp32, int8 = tight["trials"][:2]
    assert pruned["latency"]["n"] >= 64  # it was measured, not estimated
    assert pruned["artifact"]["size_bytes"] <= 150_000 < int8["artifact"]["size_bytes"]
    assert pruned["notes"]["compress"]["macs"][1] < 0.6 * pruned["notes"]["compress"]["macs"][0]
    ratio = pruned["artifact"]["size_bytes"] / int8["artifact"]["size_bytes"]
    assert f"file size is {ratio:.3f} times that of int8" in pruned["reason"]
    assert pruned["score"]["drop"] == pytest.approx(pruned["score"]["reference"] - pruned["score"]["value"])
    assert f"{abs(pruned['score']['drop']):.4f} against the source model (" in pruned["reason"]
    assert "within the floor of 0.05" in pruned["reason"]
    assert pruned["ratios"]["latency_p50_s"]["value"] < 1
    assert fp32["verdict"] == "baseline"
    released = bundles.read(tmp_path / "run" / "smartwatch-activity.edgeopt").manifest.files["model.tflite"]
    assert released.sha256 == pruned["artifact"]["sha256"]


def test_the_run_folder_holds_what_was_found(small_run: Path) -> None:
    run = json.loads((small_run / "run.json").read_text())
    for trial in run["trials"]:
        artifact = small_run / trial["artifact"]["file"]
        assert hashlib.sha256(artifact.read_bytes()).hexdigest() == trial["artifact"]["sha256"]
        with np.load(small_run / trial["samples"]) as samples:
            assert np.median(samples["seconds"]) == trial["latency"]["p50_s"]["value"]
            assert len(samples["block"]) == trial["latency"]["n"]
        assert trial["latency"]["p99_s"]["value"] is None  # rapid gives p50 and p90 only
        assert trial["executed"]["ops"]["CONV_2D"] == 5
    int8 = run["trials"][1]
    assert int8["executed"]["ops"]["QUANTIZE"] == 1
    assert int8["ratios"]["size_bytes"]["value"] < 0.5
    with np.load(small_run / int8["samples"]) as samples:  # the ratio, computed again from its own job's samples
        pairs = {name: [samples[f"{name}seconds"], samples[f"{name}block"]] for name in ("", "fp32.")}
        job = json.loads(samples["job"].tobytes())["result"]
    own, other = (
        np.array([np.median(seconds[block // 2 == turn]) for turn in range(block.max() // 2 + 1)])
        for seconds, block in pairs.values()
    )
    turns = job["turns"] * max(1, job["renew"])  # of the same processes
    rounds = np.split(own / other, np.arange(turns, len(own), turns))
    assert len(rounds) == int8["ratios"]["latency_p50_s"]["n"]
    again = np.median([np.median(ratios) for ratios in rounds])
    assert again == pytest.approx(int8["ratios"]["latency_p50_s"]["value"])
    assert run["final"]["groups"] == 3
    assert run["plan"]["splits"]["final"]["groups"] == [8, 9, 10]
    assert (small_run / "report.html").stat().st_size > 100_000
    shown = run_cli("report", small_run)
    assert shown.returncode == 0
    assert run["sentence"].split(",")[0] in shown.stdout


def test_a_full_cache_hit_loads_no_framework(watch_folder: Path, tmp_path: Path) -> None:
    first = optimize(watch_folder, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "converting to TFLite" in first.stderr
    where = ["--root", tmp_path / "board", "--cache", tmp_path / "cache", "--out", tmp_path / "run"]
    command = [QUICK[0], "-X", "importtime", QUICK[1], "optimize", watch_folder, "--allow-undecided", *where]
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in again.stderr.splitlines() if line.startswith("import time:")}
    assert "numpy" in imported
    assert not imported & set(HEAVY)
    assert "converting to TFLite" not in again.stderr
    assert "measuring" not in again.stderr

    text = (watch_folder / "watch_model.py").read_text()
    (watch_folder / "watch_model.py").write_text(text + "\n# A comment changes the source, not the model.\n")
    touched = optimize(watch_folder, tmp_path)
    assert "loading and exporting the model" in touched.stderr
    assert "converting to TFLite" not in touched.stderr


STAGES = (
    "loading and exporting the model",
    "running the source model on the final split",
    "converting to TFLite",
    "running fp32 on the selection split",
    "measuring fp32 on",
    "quantizing to int8",
    "measuring fp32, int8 on",
    "running int8 on the final split",
)


def test_after_ctrl_c_no_finished_work_is_repeated(watch_folder: Path, tmp_path: Path) -> None:
    """Each start is interrupted one stage later; what was finished before is never announced again."""
    run_file = watch_folder / "edgeopt.toml"
    larger = run_file.read_text().replace("count = 300", "count = 1100")  # the last stage is to be caught at work
    run_file.write_text(larger)
    where = ["--root", tmp_path / "board", "--cache", tmp_path / "cache", "--out", tmp_path / "run"]
    command = list(map(str, [*QUICK, "optimize", watch_folder, "--allow-undecided", *where]))
    seen: list[str] = []
    for number, stage in enumerate(STAGES):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if stage in line:
                process.send_signal(signal.SIGINT)
                break
        lines += process.stderr.readlines()
        process.stderr.close()
        assert process.wait(60) == 130, "".join(lines)
        assert "the same command continues where it was" in lines[-1]
        announced = "".join(lines)
        assert stage in announced
        for finished in STAGES[: max(0, number - 1)]:
            if finished not in ("converting to TFLite", "quantizing to int8"):
                assert finished not in announced, (stage, announced)
        assert "waiting behind" not in announced  # the interrupted measurement was cancelled on the board
        assert not (tmp_path / "run").exists()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".run")] == []
        seen.append(stage)
    done = optimize(watch_folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "measuring" not in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["chosen"] == "int8"


def test_a_candidate_that_cannot_be_made_is_a_failed_trial(tmp_path: Path, watch_data: Path) -> None:
    """Pruning with lanes wider than the layers removes nothing: the ladder says so and goes on without it.

    What the user's code prints, through the file descriptor too, is not in the document.
    """
    project = copy_example(tmp_path / "project", watch_data, **{**SMALL, "rungs": '["fp32", "prune"]'}, round_to="4096")
    with (project / "watch_model.py").open("a") as file:
        file.write('\nimport os\nprint("loaded pretrained weights")\nos.write(1, b"from C")\n')
    done = optimize(project, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert "loaded pretrained weights" in done.stderr
    assert "from C" in done.stderr
    failed = run["trials"][1]
    assert failed["verdict"] == "failed"
    assert "4096" in failed["reason"]
    assert failed["latency"] is None
    assert run["chosen"] == "fp32"


def test_no_candidate_fits(watch_folder: Path, tmp_path: Path) -> None:
    profile = tmp_path / "tiny.toml"
    profile.write_text(PROFILE.format(name="tiny", budget="size_bytes = 1000"))
    done = optimize(watch_folder, tmp_path, "--profile", profile)
    assert done.returncode == 10
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["chosen"] is None
    assert run["verdict"] == "fail"
    near = run["nearest"]
    assert (near["name"], near["final"]) == ("int8", None)
    (miss,) = near["misses"]
    assert (miss["what"], miss["allowed"]) == ("size_bytes", 1000)
    assert miss["over"] == pytest.approx(miss["value"] / 1000)
    assert "int8" in run["sentence"]
    assert "1.00 kB is allowed" in run["sentence"]
    assert not list((tmp_path / "run").glob("*.edgeopt"))
    assert "No candidate fits" in done.stdout
    assert "nearest" in done.stdout
    assert set(run["seconds"]["stages"]) & {"lowered to int8", "measured fp32, int8"}
    anyway = optimize(watch_folder, tmp_path, "--profile", profile, "--bundle-anyway")
    assert anyway.returncode == 10
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["nearest"]["final"]["n"] == 300
    packed = bundles.read(tmp_path / "run" / again["bundle"]["file"])
    assert packed.manifest.verdict == "fail"
    assert again["chosen"] is None


def test_a_folder_that_is_not_a_run_is_never_replaced(watch_folder: Path, tmp_path: Path) -> None:
    before = sorted(watch_folder.iterdir())
    done = run_cli("optimize", watch_folder, "--root", tmp_path / "board", "--out", watch_folder)
    assert done.returncode == 2
    assert f"--out {watch_folder}: something else is there" in done.stderr
    assert sorted(watch_folder.iterdir()) == before


def test_a_factory_that_gives_another_model_each_time_is_refused(watch_folder: Path, tmp_path: Path) -> None:
    text = (watch_folder / "watch_model.py").read_text()
    (watch_folder / "watch_model.py").write_text(text.replace("return model.eval()", "return WatchNet().eval()"))
    done = optimize(watch_folder, tmp_path)
    assert done.returncode == 6
    assert "gives another model each time it is called" in done.stderr
    assert "set its seed" in done.stderr
