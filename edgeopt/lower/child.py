"""A library that can end its process, by abort() in its C++ or by taking all memory, runs in a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeopt.errors import LoweringFault
from edgeopt.lower import Progress

LAST_WORDS = 300  # characters of what a library said before it died


def run(what: str, function: Callable[..., Any], *arguments: Any, progress: Progress) -> Any:
    """What function(*arguments, progress) returns, computed in a fresh Python whose death is an error here.

    function: of a module of ours; its arguments and what it returns can be pickled. what: what it does, in words.
    Raises what the function raises, and LoweringFault when its process died, with what was said and done last.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-child-") as text:
        folder = Path(text)
        (folder / "request").write_bytes(pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL))
        command = [sys.executable, "-m", "edgeopt.lower.child", str(folder)]
        own = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
        doing = what
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=said, cwd=folder, env={**os.environ, "PYTHONPATH": path}
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    doing, done, total = json.loads(line)
                    progress(doing, done, total)
                code = process.wait()
            finally:
                process.kill()
                process.wait()
        if not (folder / "answer").exists():
            raise LoweringFault(f"{what}: {_death(code, doing, (folder / 'said').read_text('utf-8', 'replace'))}")
        is_error, answer = pickle.loads((folder / "answer").read_bytes())
        if is_error:
            raise answer
        return answer


def _death(code: int, doing: str, said: str) -> str:
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    cause = {"SIGKILL": ": the system ended it, as it does when memory runs out", "SIGABRT": ": it aborted"}
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith(("INFO:", "WARNING:"))]
    words = f"its last words: {' '.join(lines[-2:])[-LAST_WORDS:]}" if lines else "it said nothing"
    return f"the library ended its process ({name}{cause.get(name, '')}) while {doing}; {words}"


def _main(folder: Path) -> None:
    """The child's side: stdout is the parent's pipe for progress, and what libraries print goes to stderr."""
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    function, arguments = pickle.loads((folder / "request").read_bytes())

    def progress(what: str, done: int = 0, total: int = 0) -> None:
        wire.write(json.dumps([what, done, total]) + "\n")

    try:
        answer = (False, function(*arguments, progress))
    except Exception as error:
        answer = (True, error)
    part = folder / "answer.part"
    part.write_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
    part.rename(folder / "answer")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
