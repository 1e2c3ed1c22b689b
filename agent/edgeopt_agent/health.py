"""What the board must decide alone: it runs a small shard and compares counts with limits that the host wrote."""

from __future__ import annotations

import math
import os
import statistics
from typing import Any, Dict, List, Optional

from . import libraries, preprocess, store
from .samples import load_shard
from .wire import RemoteError
from .worker import SAMPLE, Worker

TIMED_QUERIES = 32


def check(
    root: str, manifest: Dict[str, Any], paths: Dict[str, str], folder: str, refuse_slow: bool = True
) -> Dict[str, Any]:
    """Run the release's artifact on its health shard; `folder` takes the outputs.

    refuse_slow False: a broken limit of the latency is told as `slow`, no more: on the way back, a busy board is no
    reason to stay. Raises RemoteError('health') with every limit that broke.
    """
    artifact = manifest["artifact"]
    limits = manifest["health"]
    libraries.require_own(root, artifact["runtime"], artifact.get("options", {}))
    beside = os.path.join(folder, "release")
    store.lay_out(paths, beside)
    entry = {
        "path": os.path.join(beside, artifact["file"]),
        "runtime": artifact["runtime"],
        "threads": artifact["threads"],
        "preprocess": artifact["preprocess"],
        "options": artifact.get("options", {}),
    }
    shard = paths[limits["file"]]
    outputs_file, samples_file = os.path.join(folder, "health-outputs.npz"), os.path.join(folder, "health-samples.f64")
    with Worker(entry) as worker:
        worker.load([shard])
        worker.ask("infer", 300.0, shard=shard, out=outputs_file)
        worker.ask("block", 300.0, seconds=0.0, queries=TIMED_QUERIES, out=samples_file)
    found = _compare(limits, shard, outputs_file)
    with open(samples_file, "rb") as file:
        found["median_latency_s"] = statistics.median(invoke for _, invoke in SAMPLE.iter_unpack(file.read()))
    slow = _slow(limits, found)
    found["slow"] = slow
    broken = _broken(limits, found) + ([slow] if slow and refuse_slow else [])
    if broken:
        raise RemoteError("health", "the health check failed: " + "; ".join(broken))
    return found


def _compare(limits: Dict[str, Any], shard: str, outputs_file: str) -> Dict[str, Any]:
    import numpy as np

    _, labels, arrays = load_shard(shard)
    with np.load(outputs_file, allow_pickle=False) as archive:
        outputs = [archive[f"output{i}"] for i in range(len(archive.files))]
    finite = all(bool(np.isfinite(output.astype(np.float64)).all()) for output in outputs)
    correct = None
    if limits["metric"] is not None and labels is not None and finite:
        correct = int(preprocess.score(limits["metric"], outputs, labels).sum())
    error = 0.0
    for index, output in enumerate(outputs):
        if f"expected{index}" not in arrays:
            continue  # a bundle made without a board: nobody knows what it answers
        expected = arrays[f"expected{index}"].astype(np.float64)
        span = float(expected.max() - expected.min()) or 1.0
        difference = float(np.abs(output.astype(np.float64) - expected).max()) / span
        error = max(error, difference) if math.isfinite(difference) else math.inf
    return {"correct": correct, "finite": finite, "output_error": error if math.isfinite(error) else None}


def _slow(limits: Dict[str, Any], found: Dict[str, Any]) -> Optional[str]:
    slowest, median = limits["greatest_median_latency_s"], found["median_latency_s"]
    if slowest is None or median <= slowest:
        return None
    return f"median latency {median:.6f} s, at most {slowest:.6f} s is allowed"


def _broken(limits: Dict[str, Any], found: Dict[str, Any]) -> List[str]:
    broken = []
    if not found["finite"]:
        broken.append("an output is NaN or infinite")
    least = limits["least_correct"]
    if least is not None and (found["correct"] is None or found["correct"] < least):
        broken.append(f"{found['correct']} correct of {limits['of']}, at least {least} are needed")
    greatest = limits["greatest_output_error"]
    if greatest is not None and (found["output_error"] is None or found["output_error"] > greatest):
        broken.append(
            f"outputs differ from the expected ones by {found['output_error']} of their range, at most {greatest} "
            "is allowed"
        )
    return broken
