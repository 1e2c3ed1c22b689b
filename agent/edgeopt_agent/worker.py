"""One process per artifact, asked one thing at a time; what it does is runner.py's."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from . import facts
from .files import code_path
from .wire import RemoteError

if TYPE_CHECKING:
    from .power_mode import Caps

SAMPLE = struct.Struct("<dd")  # copy_s, invoke_s of one query
FIRST_WARM_UP_S = 10.0
BEAT_S = 5.0
SILENCE_S = 300.0  # the longest that one query may take
LAUNCH = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.runner import serve; serve(int(sys.argv[2]))"


class Worker:
    """The parent's side. `artifact` is {"path", "runtime", "threads", "preprocess": steps per input, "options"}; with
    `caps`, whatever is asked of it is done under its own "frequency_max_hz"."""

    def __init__(self, artifact: Dict[str, Any], caps: Optional[Caps] = None) -> None:
        self._artifact = artifact
        self._caps = caps
        self._buffer = b""
        self._oom_kills = facts.oom_kills()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, code_path(), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, op: str, timeout_s: float = SILENCE_S, **parameters: Any) -> Dict[str, Any]:
        """The child's answer. Raises RemoteError for its errors, its death and `timeout_s` of silence."""
        self.tell(op, **parameters)
        return self.answer(op, timeout_s)

    def tell(self, op: str, **parameters: Any) -> None:
        """Ask, and let `answer` wait for what it says: meanwhile others can be asked."""
        if self._caps is not None:
            self._caps.set(self._artifact["frequency_max_hz"])
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(dict(parameters, op=op)).encode("utf-8") + b"\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it is dead: `answer` tells

    def answer(self, op: str, timeout_s: float = SILENCE_S) -> Dict[str, Any]:
        line = self._read_line(op, timeout_s)
        while line == b"\n":  # a sign of life
            line = self._read_line(op, timeout_s)
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
        self.tell_load(shards, most, random, cold)
        return self.answer("load")

    def tell_load(self, shards: List[str], most: Optional[int] = None, random: int = 0, cold: bool = False) -> None:
        self.tell("load", artifact=self._artifact, shards=shards, most=most, random=random, cold=cold)

    def pin(self, cpus: Sequence[int]) -> bool:
        """Let it work on these processors only, with all the threads that it has by now; whether they are still there:
        one may be switched off at any time, or be taken away from this job."""
        for thread in os.listdir(f"/proc/{self._process.pid}/task"):
            try:
                os.sched_setaffinity(int(thread), cpus)
            except ProcessLookupError:
                pass  # it has ended
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return False
        return True

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
