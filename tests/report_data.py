"""A run as `optimize` writes it, with samples, for the tests of the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edgeopt import intervals, slices, stats
from edgeopt.report import terminal

HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">"]}\';\u202e\x1b[31m[bold]</script>'


def latencies(median_s: float, seed: int, n: int = 700) -> np.ndarray[Any, Any]:
    """Right-skewed seconds (n,) with a few stalls, as a small board gives them."""
    rng = np.random.default_rng(seed)
    seconds = median_s * (0.94 + 0.06 * rng.lognormal(0, 0.5, n))
    seconds[rng.random(n) < 0.02] *= 1.6
    return seconds


def _latency(seconds: np.ndarray[Any, Any]) -> dict[str, Any]:
    unasked = {"pre_s": None, "post_s": None, "copy_s": None}
    return stats.summary_to_json(stats.summarize(seconds, "quick")) | unasked


def _lower(scheme: str) -> dict[str, Any]:
    return {"kind": "lower", "runtime": "tflite", "scheme": scheme}


def _trial(name: str, rung: str, steps: list[dict[str, Any]], median_s: float, size: int) -> dict[str, Any]:
    seconds = latencies(median_s, seed=len(name))
    return {
        "name": name,
        "rung": rung,
        "steps": steps,
        "artifact": {
            "file": f"candidates/{name}/model.tflite",
            "sha256": "ab" * 32,
            "size_bytes": size,
            "runtime": "tflite",
            "threads": 1,
            "files": {"model.tflite": "ab" * 32},
            "options": {},
        },
        "latency": _latency(seconds),
        "load_s": 0.0042 * size / 300_000,
        "first_inference_s": 1.7 * median_s,
        "memory": {"peak_rss_bytes": 31_000_000 + 4 * size, "above_runtime_bytes": 1_000_000 + 2 * size},
        "energy": None,
        "executed": {
            "threads": 1,
            "delegate_nodes": 1,
            "ops": {"CONV_2D": 6, "FULLY_CONNECTED": 1},
            "precision": None,
            "macs": {"float32": 10_732_416} if rung == "fp32" else {"int8": 10_721_536, "float32": 10_880},
        },
        "notes": _notes(rung),
        "conditions": {"marks": [], "governor": "schedutil", "frequency_hz": 1_500_000_000, "temperature_c": 52.1},
        "samples": f"samples/{name}.npz",
    }


def _score(value: float, agreement: float) -> dict[str, Any]:
    interval = list(intervals.wilson(round(value * 512), 512))
    measured = {"metric": "top1", "value": value, "interval": interval, "n": 512}
    return measured | {"drop": 0.874 - value, "agreement": agreement, "reference": 0.874}


def _ratios(latency: tuple[float, float, float], size: float, memory: float) -> dict[str, Any]:
    against = {"n": 12, "how": "measured", "invalid": None, "against": "fp32"}
    return {
        "latency_p50_s": {"value": latency[0], "interval": list(latency[1:]), **against},
        "size_bytes": {"value": size, "interval": None, **against},
        "peak_memory_bytes": {"value": memory, "interval": None, **against},
    }


CLASSES = ["pendulum", "abduction", "forward elevation", "internal rotation", "rotator cuff raise", "trapezius", "row"]


def _decided() -> dict[str, Any]:
    """per_class, per_group and confusion of 607 samples: the last class and the last group have 7 of them."""
    rng = np.random.default_rng(3)
    labels = np.concatenate([np.repeat(np.arange(6), 100), np.full(7, 6)])
    groups = np.concatenate([np.arange(600) % 3 + 8, np.full(7, 11)])
    source = np.where(rng.random(607) < 0.1, (labels + 1) % 6, labels)
    own = np.where(rng.random(607) < np.where(labels == 4, 0.2, 0.03), 5, source)
    right = (own == labels).astype(float), (source == labels).astype(float)
    return {
        "per_class": slices.by_label(*right, labels, CLASSES),
        "per_group": slices.by_label(*right, groups),
        "confusion": slices.confusion(own, source, labels, CLASSES),
    }


def _notes(scheme: str) -> dict[str, Any]:
    stage = {"max_abs_error": 2.1e-6, "sqnr_db": 128.3, "samples": 8}
    parity = [{"stage": "conversion to TFLite", **stage}]
    if scheme != "fp32":
        parity.append({"stage": "int8 quantization", "max_abs_error": 0.41, "sqnr_db": 24.6, "samples": 8})
    return {"scheme": scheme, "parity": parity, "transposes_and_pads": {"TRANSPOSE": 1}, "compress": None}


def trials() -> list[dict[str, Any]]:
    """Four: baseline, one kept, one rejected, one chosen."""
    prune = {"kind": "prune", "ratio": 0.3, "round_to": 8}
    recover = {"kind": "recover", "epochs": 3, "learning_rate": 1e-3, "batch": 64, "seed": 0}
    fp32 = _trial("fp32", "fp32", [_lower("fp32")], 1.83e-3, 301_000)
    fp32 |= {"score": _score(0.874, 1.0), "ratios": _ratios((1, 1, 1), 1, 1)}
    fp32 |= {"verdict": "baseline", "reason": "the reference that every ratio is taken against"}
    int8 = _trial("int8", "int8", [_lower("int8")], 0.91e-3, 88_000)
    int8 |= {"score": _score(0.870, 0.984), "ratios": _ratios((0.497, 0.489, 0.506), 0.292, 0.63)}
    int8 |= {"verdict": "kept", "reason": "median latency 0.50 of fp32, and the drop of 0.4 points is within the floor"}
    pruned = _trial("prune30-int8", "prune", [prune, recover, _lower("int8")], 0.60e-3, 52_000)
    pruned |= {"score": _score(0.868, 0.968), "ratios": _ratios((0.328, 0.321, 0.336), 0.173, 0.52)}
    pruned |= {
        "verdict": "kept",
        "reason": "median latency 0.66 of int8, and the drop of 0.6 points is within the floor",
    }
    half = _trial("prune50-int8", "prune", [prune | {"ratio": 0.5}, recover, _lower("int8")], 0.44e-3, 33_000)
    half |= {"score": _score(0.829, 0.921), "ratios": _ratios((0.241, 0.234, 0.249), 0.11, 0.45)}
    half |= {"verdict": "rejected", "reason": "the drop of 4.5 points is outside the floor of 1.0 points"}
    half["conditions"]["marks"] = ["second half 7 % slower than the first"]
    return [fp32, int8, pruned, half]


def run() -> dict[str, Any]:
    """The whole run.json of a search that ended well."""
    splits = {"calibration": {"n": 256, "groups": [1, 2]}, "selection": {"n": 512, "groups": [3, 7]}}
    return {
        "schema": 1,
        "name": "smartwatch-activity",
        "created": "2026-11-22T10:00:00Z",
        "edgeopt": "0.1.0",
        "verdict": "undecided",
        "sentence": "prune30-int8 runs 3.0 times as fast as fp32 at a sixth of its size and meets every budget; "
        "whether its drop stays within 1.0 points is undecided on 3 held-out subjects.",
        "plan": {
            "profile": {
                "name": "Raspberry Pi 4 Model B",
                "runtimes": ["tflite"],
                "cpu": {"architecture": "aarch64", "model": "Cortex-A72", "cores": {"value": 4, "source": "x"}},
            },
            "objective": "latency_p50_s",
            "budgets": {"latency_p50_s": 0.0008, "latency_p95_s": 0.001, "size_bytes": 60_000},
            "floor_drop": 0.01,
            "min_gain": 0.05,
            "rungs": ["fp32", "int8", "prune"],
            "mode": "quick",
            "splits": splits | {"final": {"n": 600, "groups": [8, 9, 10]}},
            "seed": 0,
            "metric": "top1",
            "threads": 1,
        },
        "board": {
            "hostname": "bench-pi",
            "model": "Raspberry Pi 4 Model B Rev 1.4",
            "cpu_model": "Cortex-A72",
            "cores": 4,
            "memory_bytes": 3_980_000_000,
            "kernel": "6.6.31+rpt-rpi-v8",
            "machine": "aarch64",
            "governor": None,
            "runtimes": {"tflite": {"package": "ai-edge-litert", "version": "2.3.0"}},
        },
        "trials": trials(),
        "stop": "every budget is met and the next rung is expected to gain less than 5 %",
        "chosen": "prune30-int8",
        "final": {
            "metric": "top1",
            "value": 0.861,
            "interval": [0.80, 0.91],
            "n": 600,
            "reference": 0.866,
            "drop": 0.005,
            "drop_interval": [-0.009, 0.019],
            "test": "group jackknife, 3 groups",
            "groups": 3,
            "agreement": 0.967,
            "verdict": "undecided",
            "reason": "point estimate inside the floor; needs about 8 groups (n=1,600)",
            "worst_class": {"label": "rotator cuff raise", "value": 0.73, "n": 100, "invalid": None, "too_few": 1},
            **_decided(),
        },
        "bundle": {"file": "smartwatch-activity.edgeopt", "release": "c0ffee" + "0" * 58, "size_bytes": 71_204},
        "manifest": {"schema": 1, "files": {"model.tflite": "ab" * 32}, "limits": {"latency_p50_s": 0.0012}},
    }


def bare() -> dict[str, Any]:
    """A run that broke off: every field that may be null is."""
    trial = dict.fromkeys(run()["trials"][0]) | {"name": "fp32", "rung": "fp32", "steps": [], "ratios": {}}
    trial |= {"verdict": "failed", "reason": "the board has no tflite runtime"}
    given = run() | dict.fromkeys(("board", "final", "chosen", "bundle", "manifest"))
    given["plan"] = run()["plan"] | {"budgets": {}}
    return given | {"trials": [trial], "verdict": "fail", "sentence": "Nothing was chosen.", "stop": "fp32 failed"}


def hostile() -> dict[str, Any]:
    """The same run with markup, terminal escapes and bidirectional marks in every text that users can choose."""
    given = run()
    for key in ("name", "sentence", "stop"):
        given[key] = HOSTILE
    given["chosen"] = HOSTILE
    for trial in given["trials"]:
        trial["reason"] = HOSTILE
        trial["conditions"]["marks"] = [HOSTILE]
    given["trials"][2]["name"] = HOSTILE
    given["board"] = {HOSTILE: HOSTILE, "model": HOSTILE}
    given["plan"]["profile"]["name"] = HOSTILE
    given["final"]["worst_class"]["label"] = HOSTILE
    for row in (*given["final"]["per_class"], *given["final"]["per_group"]):
        row["label"] = HOSTILE
    for pair in given["final"]["confusion"]["pairs"]:
        pair["decided"] = HOSTILE
    for trial in given["trials"]:
        trial["notes"]["parity"][0]["stage"] = HOSTILE
        trial["executed"] |= {"precision": HOSTILE, "macs": {HOSTILE: 3}}
    given["manifest"] = {HOSTILE: [HOSTILE]}
    return given


def write(run_dir: Path, given: dict[str, Any]) -> Path:
    """run.json and samples/ as a run leaves them; gives the folder back."""
    (run_dir / "samples").mkdir(parents=True, exist_ok=True)
    for trial in given["trials"]:
        if trial.get("samples"):
            seconds = latencies(trial["latency"]["p50_s"]["value"], seed=len(trial["name"]))
            block = np.repeat(np.arange(14, dtype=np.int32), len(seconds) // 14)
            np.savez(run_dir / trial["samples"], seconds=seconds, block=block, started=np.arange(14.0))
    (run_dir / "run.json").write_text(json.dumps(given), encoding="utf-8")
    return run_dir


RUNS = {"full": run, "bare": bare, "hostile": hostile, "empty": dict}


def screen(run: dict[str, Any], width: int = 100, full: bool = False) -> str:
    """The terminal's screen as text."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    terminal.render(run, console, Path("runs/x"), full)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    return str(written)
