"""An artifact under load: several streams at once, queries that arrive at random times, and every input by itself."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Dict, List

from .bench import RANDOM_SAMPLES, artifact_of
from .jobs import Context
from .power_mode import held
from .watch import Watch
from .wire import RemoteError, count, field, seconds
from .worker import Worker

TOGETHER_S = 1.5  # until all streams have warmed up and begin at once
KEPT = 200_000  # samples of a stream


def run(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """The request has artifact, shards (none: random tensors), streams (list of numbers), batches (list of samples a
    query, one stream each), rates (list of queries a second, Poisson), seconds (of each of these), repeats (of every
    input by itself; 0: not), seed, power_mode.

    The result has `streams` and `batches`: {"streams", "batch", "blocks": what each worker did}, or {"batch",
    "refused": why}; `rates`: {"rate_per_s", "offered", "served"}; all with files of two doubles a query: (copy_s,
    invoke_s) and (waited_s, served_s); and `each`: a file of (number of the input, seconds).
    """
    artifact = artifact_of(context, field(request, "artifact", dict))
    shards = [context.blob(sha) for sha in field(request, "shards", list)]
    random = 0 if shards else RANDOM_SAMPLES
    if random:
        artifact = dict(artifact, preprocess=[])
    streams, batches, rates = (field(request, name, list) for name in ("streams", "batches", "rates"))
    repeats, length, seed = count(request, "repeats"), seconds(request, "seconds"), count(request, "seed")
    together = [(number, 1) for number in streams] + [(1, number) for number in batches]
    total, watch = len(together) + len(rates) + bool(repeats), Watch()
    found: Dict[str, Any] = {"streams": [], "batches": [], "rates": [], "each": None}
    with ExitStack() as stack:
        stack.enter_context(held(context, request.get("power_mode") or {}))
        conditions = [watch.look()]
        for done, (number, batch) in enumerate(together, 1):
            try:
                told = _together(context, dict(artifact, batch=batch), shards, random, number, length, seed)
            except RemoteError as error:
                if batch == 1:
                    raise
                told = {"batch": batch, "refused": str(error)}  # the runtime, the model or the memory
            found["streams" if batch == 1 else "batches"].append(told)
            conditions.append(watch.look())
            context.progress(done, total, "measuring streams and batches")
        worker = stack.enter_context(Worker(artifact))
        worker.load(shards, random=random)
        worker.ask("warm_up", seed=seed)
        for rate in rates:
            name = f"arrivals-{len(found['rates'])}.f64"
            out = os.path.join(context.folder, name)
            told = worker.ask("arrivals", rate=rate, seconds=length, seed=seed, out=out)
            found["rates"].append(dict(told, rate_per_s=rate, samples=context.output(name)))
            conditions.append(watch.look())
            context.progress(len(together) + len(found["rates"]), total, "measuring arrivals")
        if repeats:
            told = worker.ask("each", repeats=repeats, out=os.path.join(context.folder, "each.f64"), seed=seed)
            found["each"] = dict(told, samples=context.output("each.f64"))
            conditions.append(watch.look())
            context.progress(total, total, "measuring every input")
        executed = worker.ask("executed")
    return dict(found, executed=executed, conditions=conditions, cores_allowed=len(os.sched_getaffinity(0)))


def _together(
    context: Context, artifact: Dict[str, Any], shards: List[str], random: int, number: int, length: float, seed: int
) -> Dict[str, Any]:
    """So many workers of one artifact, all at once, each with the artifact's `batch` of samples a query."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(artifact)) for _ in range(number)]
        for index, worker in enumerate(workers):
            worker.load(shards, random=random)
            worker.ask("warm_up", seed=seed + index)
        batch = artifact["batch"]
        names = [f"streams-{number}-batch-{batch}-{index}.f64" for index in range(number)]
        outs = [os.path.join(context.folder, name) for name in names]
        block = {"seconds": length, "queries": 1, "keep": KEPT, "start_at": time.monotonic() + TOGETHER_S}
        with ThreadPoolExecutor(number) as pool:
            asked = [pool.submit(worker.ask, "block", out=out, **block) for worker, out in zip(workers, outs)]
            blocks = [one.result() for one in asked]
    return {"streams": number, "batch": batch, "blocks": blocks, "samples": [context.output(name) for name in names]}
