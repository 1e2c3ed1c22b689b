"""Latency, memory and outputs of artifacts, as raw samples: statistics are the host's."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any, Dict, List, Tuple

from . import facts, libraries, store
from .jobs import Context
from .power_mode import Caps, held
from .watch import Watch
from .wire import RemoteError, count, field, is_plain_name, seconds
from .worker import FIRST_WARM_UP_S, Worker

PROCESSING_QUERIES = 32
RENEWAL_S = 60.0
LATER_WARM_UP_S = 1.0  # of workers that follow others: the board is warm
RANDOM_SAMPLES = 16
MEMORY_QUERIES = 8
LEAST_OF_A_BLOCK = 2  # queries, where a round has several turns


def artifact_of(context: Context, entry: Dict[str, Any], number: int = 0) -> Dict[str, Any]:
    """What a worker needs, from what a request says; `number` tells the artifacts of one job apart."""
    main, files = field(entry, "file", str), field(entry, "files", dict)
    if main not in files or not all(is_plain_name(name) for name in files):
        raise RemoteError("bad-request", f"'files' must hold '{main}' and plain names only, not {sorted(files)}")
    libraries.require_own(context.root, field(entry, "runtime", str), field(entry, "options", dict))
    folder = os.path.join(context.folder, f"artifact-{number}")
    store.lay_out({name: context.blob(sha256) for name, sha256 in files.items()}, folder)
    return {
        "path": os.path.join(folder, main),
        "runtime": field(entry, "runtime", str),
        "threads": field(entry, "threads", int),
        "preprocess": field(entry, "preprocess", list),
        "options": field(entry, "options", dict),
        "frequency_max_hz": entry.get("frequency_max_hz"),
    }


def run(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """Alternating blocks (a turn: A B B A; with three A B C C B A), one worker process per artifact.

    The request has artifacts, shards (none: random tensors), min_queries, min_seconds, cap_seconds, rounds, seed,
    `block_seconds`, what a block lasts at least where a round has several turns, `renew`, after how many rounds new
    workers begin, on the next of `shared_cpus` (0: never, and on any processor), `keep`, how many samples of a block
    stay at most (None: all), and `power_mode` (power_mode.held); an artifact with a `frequency_max_hz` works under that
    cap, and a round has one turn then: a clock needs time to change. The result lists the blocks in the order they ran;
    samples-<i>.f64 holds (copy_s, invoke_s) pairs of artifact i in that order.
    """
    artifacts = [artifact_of(context, entry, number) for number, entry in enumerate(field(request, "artifacts", list))]
    shards = [context.blob(sha) for sha in field(request, "shards", list)]
    rounds, renew = count(request, "rounds"), count(request, "renew")
    if not artifacts or not rounds:
        raise RemoteError("bad-request", "a bench needs at least one artifact and one round")
    cap_s = seconds(request, "cap_seconds")
    half_s = seconds(request, "min_seconds") / (2 * rounds)
    random = 0 if shards else RANDOM_SAMPLES
    if random:
        artifacts = [dict(artifact, preprocess=[]) for artifact in artifacts]
    with ExitStack() as stack:
        caps = stack.enter_context(held(context, request.get("power_mode") or {}, caps_of(artifacts)))
        memory = [_memory_of(artifact, shards, random, caps) for artifact in artifacts]
        cpus = shared_cpus(max(artifact["threads"] for artifact in artifacts)) if renew else []
        team = stack.enter_context(Team(artifacts, shards, random, count(request, "seed"), caps, cpus))
        renew = affordable(renew, rounds, team.took_s, 2 * rounds * len(artifacts) * half_s)
        block_s = half_s if caps_of(artifacts) else seconds(request, "block_seconds")
        turns = max(1, int(half_s / max(block_s, LEAST_OF_A_BLOCK * team.invoke_s)))
        block: Dict[str, Any] = {
            "seconds": half_s / turns,
            "queries": -(-count(request, "min_queries") // (2 * rounds * turns)),
            "limit_s": cap_s / (2 * rounds * turns * len(artifacts)),
            "keep": request.get("keep"),
        }
        blocks, conditions, capped = _rounds(context, team, caps, rounds, renew, turns, block, cap_s)
        processing = [worker.ask("processing", count=PROCESSING_QUERIES) for worker in team.workers]
        executed = [worker.ask("executed") for worker in team.workers]
    results = [
        dict(
            team.loaded[i],
            **processing[i],
            executed=executed[i],
            memory={key: value for key, value in memory[i].items() if key != "load_cold_s"},
            load_cold_s=memory[i]["load_cold_s"],
            frequency_max_hz=caps.kept.get(artifacts[i]["frequency_max_hz"]),
            samples=context.output(f"samples-{i}.f64"),
        )
        for i in range(len(artifacts))
    ]
    return {
        "artifacts": results,
        "blocks": blocks,
        "conditions": conditions,
        "capped": capped,
        "turns": turns,
        "shared_cpus": cpus,
        "renew": renew,
        "cores_allowed": len(os.sched_getaffinity(0)),
    }


def _rounds(
    context: Context,
    team: Team,
    caps: Caps,
    rounds: int,
    renew: int,
    turns: int,
    block: Dict[str, Any],
    cap_s: float,
) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]], bool]:
    """(blocks, readings of the board before and after every round, whether the time limit ended it)."""
    caps.set(None)
    watch = Watch()
    blocks, conditions, capped = [], [watch.look()], False
    started, between = time.monotonic(), 0.0
    for number in range(rounds):
        if renew and number and number % renew == 0:
            context.progress(number, rounds, "starting new processes")
            team.renew()
            between += team.took_s
        there = range(len(team.workers))[:: -1 if number % 2 else 1]  # to come first is no advantage
        for index in [*there, *there[::-1]] * turns:
            out = os.path.join(context.folder, f"samples-{index}.f64")
            began = time.monotonic() - started
            done = team.workers[index].ask("block", out=out, **block)
            capped = capped or done["capped"]
            blocks.append(
                {"artifact": index, "round": number, "n": done["n"], "began_s": began, "seconds": done["seconds"]}
            )
        caps.set(None)
        conditions.append(watch.look())
        context.progress(number + 1, rounds, "measuring latency")
        if time.monotonic() - started - between > cap_s and number + 1 < rounds:
            return blocks, conditions, True
    return blocks, conditions, capped


def caps_of(artifacts: List[Dict[str, Any]]) -> List[float]:
    return [artifact["frequency_max_hz"] for artifact in artifacts if artifact["frequency_max_hz"]]


def affordable(renew: int, rounds: int, once_s: float, measuring_s: float) -> int:
    """After how many rounds to begin with new processes: as asked, half as often, or never (0) where starting them
    would take much longer than measuring."""
    limit_s = max(RENEWAL_S, 2 * measuring_s)
    for every in (renew, 2 * renew):
        if every and rounds // every * once_s <= limit_s:
            return every
    return 0


def shared_cpus(threads: int) -> List[List[int]]:
    """Sets of `threads` processors of the fastest kind; none where there is no choice. What happens to one processor,
    such as a neighbour on its core, then meets all artifacts of a round alike."""
    allowed = os.sched_getaffinity(0)
    speeds = {cpu: _speed(cpu) for cpu in allowed}
    fast = sorted((cpu for cpu in allowed if speeds[cpu] == max(speeds.values())), reverse=True)  # 0 has the interrupts
    if len(fast) < threads or len(allowed) == threads:
        return []
    return [fast[first : first + threads] for first in range(0, len(fast) - threads + 1, threads)]


def _speed(cpu: int) -> int:
    """Big and little cores are told apart by either; 0 where the kernel tells neither."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = facts.read(f"/sys/devices/system/cpu/cpu{cpu}/{name}")
        if text is not None:
            return int(text)
    return 0


class Team:
    """A worker process for each artifact, loaded and warm. What a process happens to be given, such as where its memory
    lies, moves all of its latencies alike; new ones tell how much. cpus: sets of processors to go through."""

    def __init__(
        self,
        artifacts: List[Dict[str, Any]],
        shards: List[str],
        random: int,
        seed: int,
        caps: Caps,
        cpus: List[List[int]],
    ) -> None:
        self._caps = caps
        self._artifacts, self._shards, self._random, self._seed = artifacts, shards, random, seed
        self._cpus, self._teams = cpus, 0
        self._stack = ExitStack()
        self.workers: List[Worker] = []
        self.loaded: List[Dict[str, Any]] = []  # of the first ones
        self.took_s, self.invoke_s = 0.0, 0.0  # to begin; of the slowest one

    def __enter__(self) -> Team:
        try:
            self.renew()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def renew(self) -> None:
        """End the workers there are; begin with others, which meet the inputs in another order."""
        began = time.monotonic()
        self._stack.close()
        self.workers = [self._stack.enter_context(Worker(artifact, self._caps)) for artifact in self._artifacts]
        if not self.loaded:
            self.loaded = [worker.load(self._shards, random=self._random) for worker in self.workers]
        else:  # at once: of what is loaded first, the memory lies worse
            for worker in self.workers:
                worker.tell_load(self._shards, random=self._random)
            for worker in self.workers:
                worker.answer("load")
        self._pin()
        limit_s = LATER_WARM_UP_S if self._teams else FIRST_WARM_UP_S
        warm = [worker.ask("warm_up", seed=self._seed, limit_s=limit_s) for worker in self.workers]
        self.invoke_s = max(answer["invoke_s"] for answer in warm)
        self._seed, self._teams = self._seed + 1, self._teams + 1
        self.took_s = time.monotonic() - began

    def _pin(self) -> None:
        """All on the next set of processors that are still there; where none is whole, on any that this job has."""
        for number in range(len(self._cpus)):
            cpus = self._cpus[(self._teams + number) % len(self._cpus)]
            if set(cpus) <= os.sched_getaffinity(0) and all(worker.pin(cpus) for worker in self.workers):
                return
        if self._cpus:
            for worker in self.workers:
                worker.pin(sorted(os.sched_getaffinity(0)))


def _memory_of(artifact: Dict[str, Any], shards: List[str], random: int, caps: Caps) -> Dict[str, Any]:
    with Worker(artifact, caps) as worker:
        loaded = worker.load(shards[:1], most=1, random=min(random, 1), cold=True)
        return dict(worker.ask("memory", count=MEMORY_QUERIES), load_cold_s=loaded["load_s"])


def infer(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """Outputs of one artifact over shards of inputs; outputs-<i>.npz answers shard i."""
    artifact = artifact_of(context, field(request, "artifact", dict))
    shards = [context.blob(sha) for sha in field(request, "shards", list)]
    with Worker(artifact) as worker:
        worker.load([])
        for index, shard in enumerate(shards):
            worker.ask("infer", shard=shard, out=os.path.join(context.folder, f"outputs-{index}.npz"))
            context.progress(index + 1, len(shards), "running the evaluation set")
        executed = worker.ask("executed")
    return {"executed": executed, "outputs": [context.output(f"outputs-{i}.npz") for i in range(len(shards))]}
