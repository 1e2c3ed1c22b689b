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
from .wire import count, field, seconds
from .worker import Worker

TOGETHER_S = 1.5  # until all streams have warmed up and begin at once
KEPT = 200_000  # samples of a stream


def run(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """The request has artifact, shards (none: random tensors), streams (list of numbers), rates (list of queries a
    second, Poisson), seconds (of each of these), repeats (of every input by itself; 0: not), seed, power_mode.

    The result has `streams`: {"streams", "blocks": what each worker did}, `rates`: {"rate_per_s", "offered", "served"},
    both with files of two doubles a query: (copy_s, invoke_s) and (waited_s, served_s); and `each`: a file of
    (number of the input, seconds).
    """
    artifact = artifact_of(context, field(request, "artifact", dict))
    shards = [context.blob(sha) for sha in field(request, "shards", list)]
    random = 0 if shards else RANDOM_SAMPLES
    if random:
        artifact = dict(artifact, preprocess=[])
    streams, rates = field(request, "streams", list), field(request, "rates", list)
    repeats, length, seed = count(request, "repeats"), seconds(request, "seconds"), count(request, "seed")
    total, watch = len(streams) + len(rates) + bool(repeats), Watch()
    found: Dict[str, Any] = {"streams": [], "rates": [], "each": None}
    with ExitStack() as stack:
        stack.enter_context(held(context, request.get("power_mode") or {}))
        conditions = [watch.look()]
        for number in streams:
            found["streams"].append(_together(context, artifact, shards, random, number, length, seed))
            conditions.append(watch.look())
            context.progress(len(found["streams"]), total, "measuring streams")
        worker = stack.enter_context(Worker(artifact))
        worker.load(shards, random=random)
        worker.ask("warm_up", seed=seed)
        for rate in rates:
            name = f"arrivals-{len(found['rates'])}.f64"
            out = os.path.join(context.folder, name)
            told = worker.ask("arrivals", rate=rate, seconds=length, seed=seed, out=out)
            found["rates"].append(dict(told, rate_per_s=rate, samples=context.output(name)))
            conditions.append(watch.look())
            context.progress(len(streams) + len(found["rates"]), total, "measuring arrivals")
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
    """So many workers of one artifact, all at once."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(artifact)) for _ in range(number)]
        for index, worker in enumerate(workers):
            worker.load(shards, random=random)
            worker.ask("warm_up", seed=seed + index)
        names = [f"streams-{number}-{index}.f64" for index in range(number)]
        outs = [os.path.join(context.folder, name) for name in names]
        block = {"seconds": length, "queries": 1, "keep": KEPT, "start_at": time.monotonic() + TOGETHER_S}
        with ThreadPoolExecutor(number) as pool:
            asked = [pool.submit(worker.ask, "block", out=out, **block) for worker, out in zip(workers, outs)]
            blocks = [one.result() for one in asked]
    return {"streams": number, "blocks": blocks, "samples": [context.output(name) for name in names]}
