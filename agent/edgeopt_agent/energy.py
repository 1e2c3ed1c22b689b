"""A power sensor's raw readings while artifacts work, window by window, and while the board is idle before and after.

Joules, their validity and what the sampling itself costs are the host's to say, from the readings and the marks.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any, Dict, List, Optional

from . import power
from .bench import RANDOM_SAMPLES, artifact_of, caps_of
from .jobs import Context
from .power_mode import held
from .watch import Watch
from .wire import RemoteError, count, field, seconds
from .worker import Worker

READING = struct.Struct("<dd")  # time.monotonic(), the sensor's figure or NaN
COUNTER_PERIOD_S = 0.1  # a counter misses nothing in between
FASTEST_S = 0.02
PRODUCT_EVERY = 20  # readings
SETTLE_S = 1.0  # after work, before the board counts as idle
TELL_S = 0.5
OVERHEAD_S = 0.5
LONGEST_READ_S = 10.0


class Sampler:
    """Reads a sensor in a thread of its own and keeps every reading in a file; a reading that failed is NaN."""

    def __init__(self, sensor: power.Sensor, path: str) -> None:
        self.sensor = sensor
        self.period_s = COUNTER_PERIOD_S if sensor.quantity == "energy_j" else max(FASTEST_S, sensor.interval_s)
        self.failures: Dict[str, int] = {}
        self.products: List[List[float]] = []  # watts, volts, amperes of single moments
        self._until_product = 0
        self.watts: Optional[float] = None
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115  (closed with the sampler)
        self._broken: Optional[OSError] = None
        self._wanted = threading.Event()
        self._end = threading.Event()
        self._before: Optional[List[float]] = None
        self._asked_s: Optional[float] = None  # since when a read has not returned
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._wanted.set()
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._end.set()
        self._wanted.set()
        self._thread.join(LONGEST_READ_S)
        if self._thread.is_alive():  # it ends with the process, or with the read
            return
        try:
            self._file.close()
        except OSError as error:
            self._broken = self._broken or error
        if kind is None:
            self.require_whole()

    def require_whole(self) -> None:
        """Raises OSError where a reading could not be kept, RemoteError where one does not return."""
        asked = self._asked_s
        if asked is not None and time.monotonic() - asked > LONGEST_READ_S:
            raise RemoteError("no-sensor", f"a read of {self.sensor.where} has not returned for {LONGEST_READ_S:g} s")
        if self._broken is not None:
            raise OSError(self._broken.errno, self._broken.strerror, self._path)

    def pause(self) -> None:
        self._wanted.clear()

    def go_on(self) -> None:
        self._wanted.set()

    def _run(self) -> None:
        try:
            self._until_the_end()
        except OSError as error:  # a full disk
            self._broken = error

    def _until_the_end(self) -> None:
        due = time.monotonic()
        while not self._end.is_set():
            if not self._wanted.is_set():
                self._wanted.wait()
                due = time.monotonic()
                continue
            self._take()
            due = max(due + self.period_s, time.monotonic())
            self._end.wait(max(0.0, due - time.monotonic()))

    def _take(self) -> None:
        at = self._asked_s = time.monotonic()
        try:
            value = self.sensor.read()
        except (OSError, ValueError) as error:
            self.failures[str(error)] = self.failures.get(str(error), 0) + 1
            value = math.nan
        self._asked_s = None
        self._file.write(READING.pack(at, value))
        self._until_product -= 1
        if self.sensor.product is not None and self._until_product < 0 and math.isfinite(value):
            self._until_product = PRODUCT_EVERY
            with suppress(OSError, ValueError):
                self.products.append([value, *self.sensor.product()])
        if self.sensor.quantity == "power_w":
            self.watts = value
        elif self._before is not None and value >= self._before[1]:
            self.watts = (value - self._before[1]) / (at - self._before[0])
        self._before = [at, value]


def run(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """Windows of each artifact in turns (A B B A …) between two idle ones, then blocks with the sampler on and off.

    The request has artifacts, shards (none: random tensors), sensor ({"kind", "rail"}, either None; None: the host has
    a meter), windows, window_seconds, idle_seconds, overhead_rounds, seed. In the result `marks` lists what the board
    did when (artifact: None where it was idle), `power` is the file of (time, figure) pairs on the same clock,
    `products` has (watts, volts, amperes) of some moments, and samples-overhead.f64 the (copy_s, invoke_s) pairs of the
    blocks in `overhead`.
    """
    artifacts = [artifact_of(context, entry, number) for number, entry in enumerate(field(request, "artifacts", list))]
    shards = [context.blob(sha) for sha in field(request, "shards", list)]
    windows, rounds = count(request, "windows"), count(request, "overhead_rounds")
    if not artifacts or not windows:
        raise RemoteError("bad-request", "energy needs at least one artifact and one window")
    window_s, idle_s = seconds(request, "window_seconds"), seconds(request, "idle_seconds")
    wanted = request.get("sensor") and field(request, "sensor", dict)
    sensor = power.choose(wanted.get("kind"), wanted.get("rail")) if wanted else None
    random = 0 if shards else RANDOM_SAMPLES
    if random:
        artifacts = [dict(artifact, preprocess=[]) for artifact in artifacts]
    watch = Watch()
    marks: List[Dict[str, Any]] = []
    clocks = [_clocks()]
    with ExitStack() as stack:
        caps = stack.enter_context(held(context, request.get("power_mode") or {}, caps_of(artifacts)))
        conditions = [watch.look()]
        workers = [stack.enter_context(Worker(artifact, caps)) for artifact in artifacts]
        for worker in workers:
            worker.load(shards, random=random)
            worker.ask("warm_up", seed=count(request, "seed"))
        caps.set(None)  # the idle board is as its owner holds it
        path = os.path.join(context.folder, "power.f64")
        sampler = stack.enter_context(Sampler(sensor, path)) if sensor else None
        total = 2 + windows * len(workers)
        marks.append(_idle(context, sampler, idle_s, 0, total))
        order = list(range(len(workers)))
        for number in range(windows):
            for index in order if number % 2 == 0 else order[::-1]:
                done = _working(context, sampler, workers[index], window_s, len(marks), total)
                marks.append({"artifact": index, **done})
            caps.set(None)
            conditions.append(watch.look())
        marks.append(_idle(context, sampler, idle_s, len(marks), total))
        overhead = _overhead(context, sampler, workers[0], rounds) if sampler else []
        executed = [worker.ask("executed") for worker in workers]
    clocks.append(_clocks())
    return {
        "sensor": dict(sampler.sensor.describe(), period_s=sampler.period_s) if sampler else None,
        "marks": marks,
        "clocks": clocks,
        "failures": sampler.failures if sampler else {},
        "products": sampler.products if sampler else [],
        "power": context.output("power.f64") if sampler else None,
        "overhead": overhead,
        "overhead_samples": context.output("samples-overhead.f64") if overhead else None,
        "executed": executed,
        "frequency_max_hz": [caps.kept.get(artifact["frequency_max_hz"]) for artifact in artifacts],
        "conditions": conditions,
        "cores_allowed": len(os.sched_getaffinity(0)),
    }


def _overhead(context: Context, sampler: Sampler, worker: Worker, rounds: int) -> List[Dict[str, Any]]:
    """Blocks with the sampler on and off."""
    time.sleep(2 * sampler.period_s)  # a reading after its end belongs to a window
    return [_with_and_without(context, sampler, worker, number, rounds) for number in range(4 * rounds)]


def _clocks() -> Dict[str, float]:
    return {"monotonic_s": time.monotonic(), "realtime_s": time.time()}


def _idle(context: Context, sampler: Optional[Sampler], seconds: float, done: int, total: int) -> Dict[str, Any]:
    _tell(context, sampler, done, total, "the board comes to rest")
    time.sleep(SETTLE_S)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        _tell(context, sampler, done, total, "the board is idle")
        time.sleep(min(TELL_S, max(0.0, began + seconds - time.monotonic())))
    return {"artifact": None, "n": 0, "began_s": began, "ended_s": time.monotonic()}


def _working(
    context: Context, sampler: Optional[Sampler], worker: Worker, seconds: float, done: int, total: int
) -> Dict[str, Any]:
    _tell(context, sampler, done, total, "measuring energy")
    answer: Dict[str, Any] = worker.ask("work", seconds=seconds)
    return answer


def _with_and_without(context: Context, sampler: Sampler, worker: Worker, number: int, rounds: int) -> Dict[str, Any]:
    """Off, on, on, off, …: what the sampler costs the artifact."""
    sampling = number % 4 in (1, 2)
    sampler.go_on() if sampling else sampler.pause()
    out = os.path.join(context.folder, "samples-overhead.f64")
    answer = worker.ask("block", seconds=OVERHEAD_S, queries=8, out=out)
    context.progress(number + 1, 4 * rounds, "measuring what the sampler costs")
    return {"sampling": sampling, "n": answer["n"]}


def _tell(context: Context, sampler: Optional[Sampler], done: int, total: int, what: str) -> None:
    if sampler:
        sampler.require_whole()
    watts = sampler.watts if sampler else None
    known = watts is not None and math.isfinite(watts)
    context.emit({"event": "progress", "done": done, "of": total, "what": what, "power_w": watts if known else None})
