"""One process per artifact: the child holds a runtime session, the parent asks it one thing at a time.

The child keeps its first stdout for replies and sends everything else that is printed, by C++ too, to stderr.
"""

from __future__ import annotations

import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from . import preprocess, runtimes
from .wire import RemoteError

SAMPLE = struct.Struct("<dd")  # copy_s, invoke_s of one query
BLOCK_WARM_UP = 3  # queries run before each timed block: another process had the caches
FIRST_WARM_UP = 10
LAUNCH = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.worker import serve; serve()"


def code_path() -> str:
    """The archive (or folder) that this agent runs from."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Worker:
    """The parent's side. `artifact` is {"path", "runtime", "threads", "preprocess": steps per input}."""

    def __init__(self, artifact: Dict[str, Any]) -> None:
        self._artifact = artifact
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, code_path()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, op: str, timeout_s: float, **parameters: Any) -> Dict[str, Any]:
        """The child's answer. Raises RemoteError for its errors, its death and its silence."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(dict(parameters, op=op)).encode("utf-8") + b"\n")
            stdin.flush()
            if not select.select([stdout], [], [], timeout_s)[0]:
                raise RemoteError("runtime", f"the worker did not finish '{op}' within {timeout_s:.0f} s")
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RemoteError("runtime", f"the worker died during '{op}': {self._death()}")
        answer = json.loads(line.decode("utf-8"))
        if "error" in answer:
            raise RemoteError(answer["error"]["kind"], answer["error"]["message"])
        result: Dict[str, Any] = answer["result"]
        return result

    def load(self, shards: List[str], random: int = 0) -> Dict[str, Any]:
        """Load the artifact and prepare the samples of `shards`, or so many random ones (already in its layout)."""
        return self.ask("load", 300.0, artifact=self._artifact, shards=shards, random=random)

    def _death(self) -> str:
        code = self._process.wait(timeout=10)
        if code == -9:
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


def load_shard(path: str) -> Tuple[List[Any], Optional[Any], Dict[str, Any]]:
    """An .npz of input0, input1, … and perhaps labels: (inputs, labels, everything). Pickles are refused."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    inputs = [arrays[f"input{i}"] for i in range(sum(name.startswith("input") for name in arrays))]
    return inputs, arrays.get("labels"), arrays


class Runner:
    """The child's side: a loaded artifact and its prepared inputs."""

    def __init__(self, artifact: Dict[str, Any], shards: List[str], random_count: int = 0) -> None:
        runtime = runtimes.load(artifact["runtime"])
        self.artifact = artifact
        self.bare_rss_bytes = self._import(runtime)
        started = time.perf_counter()
        self.session = runtime.load(artifact["path"], artifact["threads"])
        self.load_s = time.perf_counter() - started
        self.raw = [sample for shard in shards for sample in split_samples(load_shard(shard)[0])]
        if random_count:
            self.raw = split_samples(random_inputs(self.session.inputs, random_count))
        self.prepared = [self.prepare(sample) for sample in self.raw]
        self.first_inference_s = self.query(self.prepared[0])[1] if self.prepared else None
        self.order = list(range(len(self.prepared)))
        self.position = 0

    @staticmethod
    def _import(runtime: Any) -> Optional[int]:
        """Import the runtime without a model; the resident bytes after it, with the peak counter reset."""
        if runtime.__name__.endswith("tflite"):
            runtime._interpreter_class()
        import numpy  # noqa: F401

        reset_peak()
        return memory_status().get("VmRSS")

    def prepare(self, sample: List[Any]) -> List[Any]:
        """A sample (1, ...) per input, preprocessed and checked against what the artifact takes."""
        import numpy as np

        wanted = self.session.inputs
        if len(sample) != len(wanted):
            raise RemoteError("bad-request", f"the artifact takes {len(wanted)} inputs, the samples have {len(sample)}")
        ready = []
        for array, steps, tensor in zip(sample, self.artifact["preprocess"] or [[]] * len(wanted), wanted):
            array = np.ascontiguousarray(preprocess.apply(steps, array))
            if list(array.shape) != tensor["shape"] or array.dtype.name != tensor["dtype"]:
                raise RemoteError(
                    "bad-request",
                    f"input '{tensor['name']}' takes {tensor['dtype']} {tensor['shape']}; preprocessing gave "
                    f"{array.dtype.name} {list(array.shape)}",
                )
            ready.append(array)
        return ready

    def query(self, arrays: List[Any]) -> Tuple[float, float]:
        """Seconds of the copy in and of invoke alone."""
        clock = time.perf_counter
        start = clock()
        self.session.set_inputs(arrays)
        copied = clock()
        self.session.invoke()
        return copied - start, clock() - copied

    def warm_up(self, count: int) -> None:
        for _ in range(count):
            self.query(self.prepared[self.order[self.position % len(self.order)]])

    def block(self, seconds: float, queries: int, out: str) -> Dict[str, Any]:
        """Query until both `seconds` and `queries` are reached; samples are appended to the file `out`."""
        self.warm_up(BLOCK_WARM_UP)
        samples: List[Tuple[float, float]] = []
        started = time.perf_counter()
        while len(samples) < queries or time.perf_counter() - started < seconds:
            samples.append(self.query(self.prepared[self.order[self.position % len(self.order)]]))
            self.position += 1
        elapsed = time.perf_counter() - started
        with open(out, "ab") as file:
            file.write(b"".join(SAMPLE.pack(*sample) for sample in samples))
        return {"n": len(samples), "seconds": elapsed}

    def processing(self, count: int) -> Dict[str, List[float]]:
        """Seconds of preparing a sample and of fetching the outputs, `count` times each."""
        pre, post = [], []
        for i in range(count):
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
            rows.append([np.array(output) for output in self.session.get_outputs()])
        return [np.concatenate(column, axis=0) for column in zip(*rows)]

    def memory(self, count: int) -> Dict[str, Any]:
        self.warm_up(count)
        peak = memory_status().get("VmHWM")
        above = peak - self.bare_rss_bytes if peak is not None and self.bare_rss_bytes is not None else None
        return {"peak_rss_bytes": peak, "above_runtime_bytes": above}


def random_inputs(tensors: List[Dict[str, Any]], count: int) -> List[Any]:
    """Uniform numbers of mean 0 and variance 1, or over an integer type's range: (count, ...) per tensor, always the
    same. Without numpy.random, whose memory would count as the model's."""
    import numpy as np

    source = random.Random(0)
    arrays = []
    for tensor in tensors:
        shape, dtype = [count] + tensor["shape"][1:], np.dtype(tensor["dtype"])
        size = int(np.prod(shape))
        bits = np.frombuffer(source.getrandbits(32 * size).to_bytes(4 * size, "little"), dtype=np.uint32)
        if dtype.kind == "f":
            values = (bits / 2.0**31 - 1.0) * 3.0**0.5
        else:
            limits = np.iinfo(dtype)
            values = bits.astype(np.int64) % (min(limits.max, 2**31) - max(limits.min, -(2**31))) + limits.min
        arrays.append(values.astype(dtype).reshape(shape))
    return arrays


def split_samples(inputs: List[Any]) -> List[List[Any]]:
    return [[array[i : i + 1] for array in inputs] for i in range(len(inputs[0]))] if inputs else []


def memory_status() -> Dict[str, int]:
    """VmRSS and VmHWM of this process in bytes, where /proc tells them."""
    found = {}
    with open("/proc/self/status") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key in ("VmRSS", "VmHWM"):
                found[key] = int(value.split()[0]) * 1024
    return found


def reset_peak() -> None:
    """Forget the peak that importing left, so that the next peak is the model's; a kernel without it keeps the old."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError as error:
        print(f"the peak counter cannot be reset ({error}); the peak may include the import", file=sys.stderr)


def _load(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    runner = Runner(request["artifact"], request["shards"], request["random"])
    state["runner"] = runner
    return {
        "load_s": runner.load_s,
        "first_inference_s": runner.first_inference_s,
        "inputs": runner.session.inputs,
        "outputs": runner.session.outputs,
        "executed": runner.session.executed(),
    }


def _warm_up(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    random.Random(request["seed"]).shuffle(state["runner"].order)
    state["runner"].warm_up(FIRST_WARM_UP)
    return {}


def _block(state: Dict[str, Any], request: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = state["runner"].block(request["seconds"], request["queries"], request["out"])
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
    "warm_up": _warm_up,
    "block": _block,
    "processing": _processing,
    "memory": _memory,
    "infer": _infer,
}


def serve() -> None:
    """Answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    state: Dict[str, Any] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line.decode("utf-8"))
        try:
            answer = {"result": ANSWERS[request["op"]](state, request)}
        except RemoteError as error:
            answer = {"error": {"kind": error.kind, "message": str(error)}}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": {"kind": "runtime", "message": f"{type(error).__name__}: {error}"}}
        replies.write(json.dumps(answer).encode("utf-8") + b"\n")
        replies.flush()
