"""A terminal that closes, a CI job that is timed out: both end a command as Ctrl-C does, and in order.

SIGHUP comes when a terminal closes, SIGTERM from whoever ends a process; each may come twice (to the process, and to
its group), so only the first counts. What is written to a terminal that is gone goes nowhere.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from typing import Any, TextIO

ENDS = (signal.SIGTERM, signal.SIGHUP)


def prepare() -> None:
    """From here on both signals raise KeyboardInterrupt, unless they are ignored (nohup), and words to a dead terminal
    raise nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
    sys.stdout = _lasting(sys.stdout)
    sys.stderr = _lasting(sys.stderr)


def open_words(handle: int) -> TextIO:
    """A file descriptor as a UTF-8 text stream, of a terminal too that may go away."""
    return io.TextIOWrapper(io.BufferedWriter(_Lasting(handle, "w")), encoding="utf-8")


def _end(*_: Any) -> None:
    for number in ENDS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs started from here would inherit
    raise KeyboardInterrupt


def _lasting(stream: Any) -> Any:
    """The stream, or what stands in for it on a terminal."""
    if stream is None or not stream.isatty():
        return stream
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True)


class _Lasting(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # the terminal is gone
            return memoryview(data).nbytes
