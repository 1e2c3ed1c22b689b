"""Without a terminal, a line on stderr at least every ten seconds: what is done now, and for how long.

A process of its own writes it, because libraries that convert a model may hold Python's lock for minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

QUIET_S = 8.0  # on a busy machine two more pass before it runs
SELDOM_S = 0.5

_pipe: int | None = None
_last = ("", 0.0)


@contextlib.contextmanager
def beating(command: str) -> Iterator[None]:
    """Meanwhile, unless stderr is a terminal. Before any thread is started."""
    global _pipe
    if _pipe is not None or sys.stderr is None or sys.stderr.isatty():
        yield
        return
    theirs, ours = os.pipe()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            _watch(theirs, command)
        finally:
            os._exit(0)
    os.close(theirs)
    os.set_blocking(ours, False)
    _pipe = ours
    try:
        yield
    finally:
        _pipe = None
        os.close(ours)
        os.kill(child, signal.SIGKILL)  # another fork of this process may hold the pipe open
        os.waitpid(child, 0)


def note(what: str, count: str = "", said: bool = False) -> None:
    """What is done now ("": nothing that has a name), how far it is; said: a line about it was just written."""
    global _last
    if _pipe is None or (not said and _last[0] == what and time.monotonic() - _last[1] < SELDOM_S):
        return
    _last = what, time.monotonic()
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(_pipe, json.dumps([what, count, said]).encode() + b"\n")


def _watch(pipe: int, command: str) -> None:
    """Until the command has ended, however it ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are the command's
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    parent = os.getppid()
    what, count, since = command, "", time.monotonic()
    quiet, rest = time.monotonic(), b""
    while True:
        if select.select([pipe], [], [], max(0.0, quiet + QUIET_S - time.monotonic()))[0]:
            data = os.read(pipe, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                now, count, said = json.loads(line)
                if (now or command) != what:
                    what, since = now or command, time.monotonic()
                quiet = time.monotonic() if said else quiet
            continue
        if os.getppid() != parent:
            return
        quiet = time.monotonic()
        how_far = f" {count}," if count else ""
        os.write(2, f"{what}:{how_far} {quiet - since:.0f} s so far\n".encode(errors="replace"))
