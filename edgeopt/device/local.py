"""This machine as the board: the same commands, run by the local shell."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile

from ..errors import DeviceUnreachable


class ProcessPipe:
    """A process of this machine that is, or carries, the command; `address` is what errors call the board."""

    def __init__(self, command: list[str], address: str) -> None:
        self._address = address
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the host's: the session is told, not killed
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def write(self, data: bytes, timeout_s: float) -> None:
        view = memoryview(data)
        try:
            while view:
                if not select.select([], [self._stdin], [], timeout_s)[1]:
                    raise DeviceUnreachable(f"{self._address} took no data for {timeout_s:g} s")
                view = view[os.write(self._stdin.fileno(), view[: select.PIPE_BUF]) :]
        except BrokenPipeError as error:
            raise DeviceUnreachable(f"{self._address}: the command's session ended") from error

    def finish_input(self) -> None:
        self._stdin.close()

    def read(self, limit: int, timeout_s: float) -> bytes:
        if not select.select([self._stdout], [], [], timeout_s)[0]:
            raise DeviceUnreachable(f"{self._address} was silent for {timeout_s:g} s")
        return os.read(self._stdout.fileno(), limit)

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        try:
            code: int | None = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        self._stderr.seek(0)
        return code, self._stderr.read()[-2000:].decode("utf-8", "replace").strip()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()


class LocalPipe(ProcessPipe):
    def __init__(self, command: str) -> None:
        super().__init__(["/bin/sh", "-c", command], "local")


class LocalTransport:
    address = "local"

    def open(self, command: str) -> LocalPipe:
        return LocalPipe(command)

    def close(self) -> None:
        """Nothing is held between commands."""
