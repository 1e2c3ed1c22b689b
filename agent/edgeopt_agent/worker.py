"""One process per artifact: the child holds a runtime session, the parent asks it one thing at a time.

The child keeps its first stdout for replies and sends everything else that is printed, by C++ too, to stderr.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence, Tuple

from . import facts, memory, preprocess, runtimes
from .files import code_path
from .samples import load_shard, random_samples, read_samples, split_samples
from .wire import RemoteError

SAMPLE = struct.Struct("<dd")  # copy_s, invoke_s of one query
BLOCK_WARM_UP, BLOCK_WARM_UP_S = 3, 1.0  # queries before each timed block: another process had the caches
FIRST_WARM_UP, FIRST_WARM_UP_S = 10, 10.0
EACH_LIMIT_S = 300.0  # for every input by itself
MOST_ARRIVALS = 10_000_000
UNTIMED_LIMIT_S = 60.0  # for memory and processing of slow models; one query is run in any case
BEAT_S = 5.0
SILENCE_S = 300.0  # the longest that one query may take
PR_SET_PDEATHSIG = 1
LAUNCH = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.worker import serve; serve(int(sys.argv[2]))"


class Worker:
    """The parent's side. `artifact` is {"path", "runtime", "threads", "preprocess": steps per input, "options"}."""

    def __init__(self, artifact: Dict[str, Any]) -> None:
        self._artifact = artifact
        self._buffer = b""
        self._oom_kills = facts.oom_kills()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, code_path(), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, op: str, timeout_s: float = SILENCE_S, **parameters: Any) -> Dict[str, Any]:
        """The child's answer. Raises RemoteError for its errors, its death and `timeout_s` of silence."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(dict(parameters, op=op)).encode("utf-8") + b"\n")
            stdin.flush()
            line = self._read_line(op, timeout_s)
            while line == b"\n":  # a sign of life
                line = self._read_line(op, timeout_s)
        except BrokenPipeError:
            line = b""
        if not line:
            raise RemoteError("runtime", f"the worker died during '{op}': {self._death()}")
        answer = json.loads(line.decode("utf-8"))
        if "error" in answer:
            raise RemoteError(answer["error"]["kind"], answer["error"]["message"])
        result: Dict[str, Any] = answer["result"]
        return result

    def load(
        self, shards: List[str], most: Optional[int] = None, random: int = 0, cold: bool = False
    ) -> Dict[str, Any]:
        """Load the artifact (cold: from the disk, not from the page cache), and the first `most` samples (None: all) or
        so many random ones, already in its layout."""
        return self.ask("load", artifact=self._artifact, shards=shards, most=most, random=random, cold=cold)

    def _read_line(self, op: str, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([handle], [], [], timeout_s)[0]:
                raise RemoteError("runtime", f"the worker gave no sign of life for {timeout_s:g} s during '{op}'")
            data = os.read(handle, 1 << 16)
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code == -signal.SIGKILL:
            if facts.oom_kills() != self._oom_kills:
                return "the kernel killed it because memory ran out; the model needs more than this board has free"
            return "killed by signal 9; the board may be out of memory"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}; see the job's log"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Runner:
    """The child's side: a loaded artifact and its prepared inputs. `beat` is called before every query."""

    def __init__(
        self,
        artifact: Dict[str, Any],
        shards: List[str],
        most: Optional[int],
        random: int,
        cold: bool,
        beat: Callable[[], None],
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
        self.session = runtime.load(artifact["path"], artifact["threads"], artifact["options"])
        self.load_s = time.perf_counter() - started
        self.steps: List[Any] = artifact["preprocess"] or [[] for _ in self.session.inputs]
        if random:
            self.raw = random_samples(self.session.inputs, random)
        self.prepared = [self.prepare(sample) for sample in self.raw]
        self.first_inference_s = self.query(self.prepared[0])[1] if self.prepared else None
        self.order = list(range(len(self.prepared)))
        self.position = 0

    def prepare(self, sample: List[Any]) -> List[Any]:
        """A sample (1, ...) per input, preprocessed and checked against what the artifact takes."""
        import numpy as np

        self.beat()
        wanted = self.session.inputs
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

    def query(self, arrays: List[Any]) -> Tuple[float, float]:
        """Seconds of the copy in and of invoke alone."""
        self.beat()
        clock = time.perf_counter
        start = clock()
        self.session.set_inputs(arrays)
        copied = clock()
        self.session.invoke()
        return copied - start, clock() - copied

    def warm_up(self, count: int, limit_s: float) -> None:
        end = time.perf_counter() + limit_s
        for _ in range(count):
            self.query(self.prepared[self.order[self.position % len(self.order)]])
            if time.perf_counter() > end:
                return

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
        self.warm_up(BLOCK_WARM_UP, BLOCK_WARM_UP_S)
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
        self.warm_up(count, UNTIMED_LIMIT_S)
        peak = memory.status().get("VmHWM")
        above = peak - self.bare_rss_bytes if peak is not None and self.bare_rss_bytes is not None else None
        return {"peak_rss_bytes": peak, "above_runtime_bytes": above}


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


def _load(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    runner = Runner(
        request["artifact"], request["shards"], request["most"], request["random"], request["cold"], state["beat"]
    )
    state["runner"] = runner
    return {
        "load_s": runner.load_s,
        "first_inference_s": runner.first_inference_s,
        "inputs": runner.session.inputs,
        "outputs": runner.session.outputs,
    }


def _executed(state: Dict[str, Any], _request: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = state["runner"].session.executed()
    return result


def _operators(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    session = state["runner"].session
    return {"operators": session.operators(request["runs"]), "executed": session.executed()}


def _warm_up(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    random.Random(request["seed"]).shuffle(state["runner"].order)
    state["runner"].warm_up(FIRST_WARM_UP, request.get("limit_s", FIRST_WARM_UP_S))
    return {}


def _block(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = state["runner"].block(
        *(request[name] for name in ("seconds", "queries", "out")),
        *(request.get(name) for name in ("limit_s", "keep", "start_at")),
    )
    return result


def _arrivals(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = state["runner"].arrivals(
        request["rate"], request["seconds"], request["seed"], request["out"]
    )
    return result


def _each(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = state["runner"].each(request["repeats"], request["out"], request["seed"])
    return result


def _processing(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = state["runner"].processing(request["count"])
    return result


def _memory(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = state["runner"].memory(request["count"])
    return result


def _infer(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    import numpy as np

    inputs = load_shard(request["shard"])[0]
    outputs = state["runner"].outputs_of(inputs)
    with open(request["out"], "wb") as file:
        np.savez(file, **{f"output{i}": array for i, array in enumerate(outputs)})
    return {"n": len(inputs[0])}


ANSWERS = {
    "load": _load,
    "executed": _executed,
    "operators": _operators,
    "warm_up": _warm_up,
    "block": _block,
    "arrivals": _arrivals,
    "each": _each,
    "work": lambda state, request: state["runner"].work(request["seconds"]),
    "processing": _processing,
    "memory": _memory,
    "infer": _infer,
}


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


def serve(parent: int) -> None:
    """Answer until stdin ends."""
    die_with(parent)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    state: Dict[str, Any] = {"beat": Beat(replies)}
    for line in sys.stdin.buffer:
        request = json.loads(line.decode("utf-8"))
        try:
            answer = {"result": ANSWERS[request["op"]](state, request)}
        except RemoteError as error:
            answer = {"error": {"kind": error.kind, "message": str(error)}}
        except MemoryError:
            answer = {"error": {"kind": "runtime", "message": f"memory ran out during '{request['op']}'"}}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": {"kind": "runtime", "message": f"{type(error).__name__}: {error}"}}
        replies.write(json.dumps(answer).encode("utf-8") + b"\n")
        replies.flush()
