"""The worker process: it holds one artifact in its runtime and answers one question at a time (worker.Worker asks).

It keeps its first stdout for replies and sends everything else that is printed, by C++ too, to stderr.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence, Tuple

from . import memory, preprocess, runtimes
from .files import remote_error
from .samples import load_shard, random_samples, read_samples, split_samples
from .wire import RemoteError
from .worker import BEAT_S, FIRST_WARM_UP_S, SAMPLE

BLOCK_WARM_UP, BLOCK_WARM_UP_S = 1, 1.0  # queries before each timed block: another process had the caches
FIRST_WARM_UP = 10
EACH_LIMIT_S = 300.0  # for every input by itself
MOST_ARRIVALS = 10_000_000
ROWS_APART = 0.01  # of the largest answer, at most, where a sample stands in another row
UNTIMED_LIMIT_S = 60.0  # for memory and processing of slow models; one query is run in any case
PR_SET_PDEATHSIG = 1
ANSWERED = ("executed", "operators", "warm_up", "block", "work", "arrivals", "each", "processing", "memory", "infer")


class Runner:
    """The child's side: a loaded artifact and its prepared inputs. `beat` is called before every query."""

    def __init__(
        self,
        beat: Callable[[], None],
        artifact: Dict[str, Any],
        shards: List[str],
        most: Optional[int],
        random: int,
        cold: bool,
    ) -> None:
        require_numpy()
        runtime = runtimes.load(artifact["runtime"])
        runtime.require()
        self.beat = beat
        self.raw = read_samples(shards, most)
        memory.require_fit(artifact["path"])
        if cold:
            memory.forget_cached(artifact["path"])
        memory.reset_peak()  # what follows is the model's
        self.bare_rss_bytes = memory.status().get("VmRSS")
        started = time.perf_counter()
        self.batch: int = artifact.get("batch", 1)
        self.session = runtime.load(artifact["path"], artifact["threads"], artifact["options"], self.batch)
        self.load_s = time.perf_counter() - started
        self.takes = self.session.inputs if self.batch == 1 else [one_of(tensor) for tensor in self.session.inputs]
        self.steps: List[Any] = artifact["preprocess"] or [[] for _ in self.session.inputs]
        if random:
            self.raw = random_samples(self.takes, random)
        self.prepared = [self.prepare(sample) for sample in self.raw]
        if self.batch > 1:
            self.prepared = self._in_batches(self.prepared)
        self.first_inference_s = self.query(self.prepared[0])[1] if self.prepared else None
        self.order = list(range(len(self.prepared)))
        self.position = 0

    def prepare(self, sample: List[Any]) -> List[Any]:
        """A sample (1, ...) per input, preprocessed and checked against what the artifact takes."""
        import numpy as np

        self.beat()
        wanted = self.takes
        if len(sample) != len(wanted) or len(self.steps) != len(wanted):
            raise RemoteError(
                "bad-request",
                f"the artifact takes {len(wanted)} inputs; the samples have {len(sample)}, preprocessing has "
                f"{len(self.steps)}",
            )
        ready = []
        for array, steps, tensor in zip(sample, self.steps, wanted):
            array = np.ascontiguousarray(preprocess.apply(steps, array))
            if not fits(array.shape, tensor["shape"]) or array.dtype.name != tensor["dtype"]:
                shown = ["any" if size < 0 else size for size in tensor["shape"]]
                raise RemoteError(
                    "bad-request",
                    f"input '{tensor['name']}' takes {tensor['dtype']} {shown}; preprocessing gave "
                    f"{array.dtype.name} {list(array.shape)}",
                )
            ready.append(array)
        return ready

    def _in_batches(self, samples: List[List[Any]]) -> List[List[Any]]:
        """So many samples a query, the first ones again where they run out. Raises RemoteError('runtime') where a row
        of the answer depends on other rows: the model then computes something else."""
        import numpy as np

        joined = []
        for first in range(0, len(samples), self.batch):
            rows = [samples[(first + number) % len(samples)] for number in range(self.batch)]
            joined.append([np.concatenate(column) for column in zip(*rows)])
        answers = []
        for arrays in ([np.concatenate([array] * self.batch) for array in samples[0]], joined[0]):
            self.query(arrays)
            answers.append(self.session.get_outputs())
        for tensor, alike, mixed in zip(self.session.outputs, *answers):
            is_own = mixed.shape[:1] == (self.batch,)
            if is_own:
                values = np.concatenate([alike, mixed[:1]]).astype(np.float64)
                is_own = bool((abs(values - values[0]) <= ROWS_APART * abs(values).max()).all())
            if not is_own:
                raise RemoteError(
                    "runtime",
                    f"output '{tensor['name']}' {list(mixed.shape)} of {self.batch} samples a query is not one row for "
                    "each of them: the model was made for one",
                )
        return joined

    def query(self, arrays: List[Any]) -> Tuple[float, float]:
        """Seconds of the copy in and of invoke alone."""
        self.beat()
        clock = time.perf_counter
        start = clock()
        self.session.set_inputs(arrays)
        copied = clock()
        self.session.invoke()
        return copied - start, clock() - copied

    def loaded(self) -> Dict[str, Any]:
        return {
            "load_s": self.load_s,
            "first_inference_s": self.first_inference_s,
            "inputs": self.session.inputs,
            "outputs": self.session.outputs,
        }

    def executed(self) -> Dict[str, Any]:
        result: Dict[str, Any] = self.session.executed()
        return result

    def operators(self, runs: int) -> Dict[str, Any]:
        return {"operators": self.session.operators(runs), "executed": self.session.executed()}

    def warm_up(self, seed: int, limit_s: float = FIRST_WARM_UP_S) -> Dict[str, Any]:
        """Shuffle the inputs and run a few; how long the quickest took."""
        random.Random(seed).shuffle(self.order)
        return {"invoke_s": self._warm_up(FIRST_WARM_UP, limit_s)}

    def _warm_up(self, count: int, limit_s: float) -> float:
        end, took = time.perf_counter() + limit_s, []  # type: float, List[float]
        while len(took) < count and (not took or time.perf_counter() < end):
            took.append(self.query(self.prepared[self.order[self.position % len(self.order)]])[1])
        return min(took)

    def work(self, seconds: float) -> Dict[str, Any]:
        """Query for so long, at least once, and keep no samples: only what the model draws may be drawn."""
        n, elapsed, started = 0, 0.0, time.perf_counter()
        while not n or elapsed < seconds:
            self.query(self._next())
            n, elapsed = n + 1, time.perf_counter() - started
        return {"n": n, "began_s": started, "ended_s": started + elapsed}

    def block(
        self,
        seconds: float,
        queries: int,
        out: str,
        limit_s: Optional[float] = None,
        keep: Optional[int] = None,
        start_at: Optional[float] = None,
    ) -> Dict[str, Any]:
        """Query until both `seconds` and `queries` are reached, or `limit_s`; samples are appended to `out`, at most
        about `keep` of them, evenly taken: a long run must not fill the board's disk. `n` of them are kept.
        start_at: begin together with others, by the clock of time.monotonic()."""
        self._warm_up(BLOCK_WARM_UP, BLOCK_WARM_UP_S)
        self._sleep_until(start_at or 0.0)
        samples: List[Tuple[float, float]] = []
        elapsed = 0.0
        started = time.perf_counter()
        while len(samples) < queries or elapsed < seconds:
            if samples and limit_s is not None and elapsed > limit_s:
                break
            samples.append(self.query(self._next()))
            elapsed = time.perf_counter() - started
        kept = samples[:: -(-len(samples) // keep)] if keep else samples
        with open(out, "ab") as file:
            file.write(b"".join(SAMPLE.pack(*sample) for sample in kept))
        when = {"began_s": started, "ended_s": started + elapsed}  # on Linux the clock of time.monotonic(), too
        capped = len(samples) < queries
        return {"n": len(kept), "queries": len(samples), "seconds": elapsed, "capped": capped, **when}

    def arrivals(self, rate: float, seconds: float, seed: int, out: str) -> Dict[str, Any]:
        """Serve queries that arrive at random (Poisson, `rate` a second) over `seconds`, one after the other.

        Each leaves (waited_s, served_s). What is not begun after twice the time is never served.
        """
        clock, draw = time.perf_counter, random.Random(seed)
        offered, served, due, late = 0, 0, draw.expovariate(rate), False
        started = clock()
        with open(out, "wb") as file:
            while due < seconds and offered < MOST_ARRIVALS:
                offered += 1
                if not late:
                    self._sleep_until(started + due)
                    began = clock() - started
                    late = began > 2 * seconds
                if not late:
                    file.write(SAMPLE.pack(began - due, sum(self.query(self._next()))))
                    served += 1
                due += draw.expovariate(rate)
        return {"offered": offered, "served": served, "seconds": max(seconds, clock() - started)}

    def each(self, repeats: int, out: str, seed: int) -> Dict[str, Any]:
        """(number of the input, seconds of its invoke), every input so many times, in random order; fewer times where
        that would take more than EACH_LIMIT_S."""
        draw, end, done = random.Random(seed), time.perf_counter() + EACH_LIMIT_S, 0
        with open(out, "wb") as file:
            while done < repeats:
                rows = []
                for index in draw.sample(range(len(self.prepared)), len(self.prepared)):
                    rows.append(SAMPLE.pack(index, self.query(self.prepared[index])[1]))
                    if time.perf_counter() > end:
                        return {"repeats": done}
                file.write(b"".join(rows))
                done += 1
        return {"repeats": done}

    def _sleep_until(self, moment: float) -> None:
        """By time.perf_counter(), which on Linux is time.monotonic() too; with signs of life."""
        while (early := moment - time.perf_counter()) > 0:
            time.sleep(min(early, BEAT_S))
            self.beat()

    def _next(self) -> List[Any]:
        self.position += 1
        found: List[Any] = self.prepared[self.order[(self.position - 1) % len(self.order)]]
        return found

    def processing(self, count: int) -> Dict[str, List[float]]:
        """Seconds of preparing a sample and of fetching the outputs, up to `count` times each."""
        pre: List[float] = []
        post: List[float] = []
        end = time.perf_counter() + UNTIMED_LIMIT_S
        for i in range(count):
            if pre and time.perf_counter() > end:
                break
            started = time.perf_counter()
            arrays = self.prepare(self.raw[i % len(self.raw)])
            pre.append(time.perf_counter() - started)
            self.query(arrays)
            started = time.perf_counter()
            self.session.get_outputs()
            post.append(time.perf_counter() - started)
        return {"pre_s": pre, "post_s": post}

    def outputs_of(self, inputs: List[Any]) -> List[Any]:
        """Outputs, each (n, ...), for raw inputs, each (n, ...)."""
        import numpy as np

        rows: List[List[Any]] = []
        for sample in split_samples(inputs):
            self.query(self.prepare(sample))
            rows.append([np.array(output, ndmin=1) for output in self.session.get_outputs()])
        return [np.concatenate(column, axis=0) for column in zip(*rows)]

    def memory(self, count: int) -> Dict[str, Any]:
        self._warm_up(count, UNTIMED_LIMIT_S)
        peak = memory.status().get("VmHWM")
        above = peak - self.bare_rss_bytes if peak is not None and self.bare_rss_bytes is not None else None
        return {"peak_rss_bytes": peak, "above_runtime_bytes": above}

    def infer(self, shard: str, out: str) -> Dict[str, Any]:
        """Outputs for every sample of a shard, as an .npz."""
        import numpy as np

        inputs = load_shard(shard)[0]
        outputs = self.outputs_of(inputs)
        with open(out, "wb") as file:
            np.savez(file, **{f"output{i}": array for i, array in enumerate(outputs)})
        return {"n": len(inputs[0])}


def one_of(tensor: Dict[str, Any]) -> Dict[str, Any]:
    """An input of a batch, as one sample of it is."""
    return dict(tensor, shape=[1] + tensor["shape"][1:])


def fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether an array of this shape can be that input; -1 stands for a size that is free."""
    return len(shape) == len(wanted) and all(size < 0 or size == own for own, size in zip(shape, wanted))


def require_numpy() -> None:
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise RemoteError(
            "missing-runtime",
            f"numpy cannot be imported by {sys.executable} ({error}); install it for this Python (numpy<2 beside "
            "tflite-runtime), or name another Python with --board-python",
        ) from error


class Beat:
    """A blank line every few seconds tells the parent that a long operation goes on."""

    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last > BEAT_S:
            self._last = time.monotonic()
            self._replies.write(b"\n")
            self._replies.flush()


def die_with(parent: int) -> None:
    """A job that is killed must not leave its worker behind, beside the next measurement."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError) as error:
        print(f"this worker outlives a killed job until its next question ({error})", file=sys.stderr)
    if os.getppid() != parent:
        sys.exit(1)


def be_first_to_die() -> None:
    """Where memory runs out, the kernel ends this process, and neither its job nor what the board is for."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # a kernel without it, or a /proc that takes nothing: then the kernel chooses


def serve(parent: int) -> None:
    """Answer until stdin ends."""
    die_with(parent)
    be_first_to_die()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    beat, runner = Beat(replies), None  # type: Beat, Optional[Runner]
    for line in sys.stdin.buffer:
        request = json.loads(line.decode("utf-8"))
        op = request.pop("op")
        try:
            if op == "load":
                runner = Runner(beat, **request)
                answer = {"result": runner.loaded()}
            else:
                assert op in ANSWERED, op
                answer = {"result": getattr(runner, op)(**request)}
        except RemoteError as error:
            answer = {"error": {"kind": error.kind, "message": str(error)}}
        except MemoryError:
            answer = {"error": {"kind": "runtime", "message": f"memory ran out during '{op}'"}}
        except OSError as error:
            told = remote_error(error, f"the worker met an error during '{op}'")
            kind = "runtime" if told.kind == "crash" else told.kind
            answer = {"error": {"kind": kind, "message": str(told)}}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": {"kind": "runtime", "message": f"{type(error).__name__}: {error}"}}
        replies.write(json.dumps(answer).encode("utf-8") + b"\n")
        replies.flush()
