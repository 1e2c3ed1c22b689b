"""Runs a command under ptrace and cuts its power: SIGKILL for the whole process tree just before a chosen system call
that changes the file system under a folder. Linux on x86-64.

    python powercut.py FOLDER EVENTS LABEL NTH -- command …

EVENTS: a .jsonl to write. The cut comes before the NTH call with that LABEL (Event.label); 0: never.

A seccomp filter stops exactly the calls of TABLE, in every process and thread of the tree, detached ones too, before
the kernel runs them. The tracer handles one stop at a time, so at the moment of the cut no other process of the tree
is inside or past a later call of the table. Changes through shared writable mappings or io_uring would escape; a
writable mapping of a file under FOLDER counts as an event, and io_uring_setup ends the run with an error.

Exit code: the command's; 99 when the power was cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

CUT = 99
AT_FDCWD = -100

# name -> (number, kind). Kinds tell where the path is: p = path in argument 0; P = dirfd, path in 0, 1; f = descriptor
# in argument 0; and for calls with two paths, which one or two count.
TABLE: dict[str, tuple[int, str]] = {
    "write": (1, "f"),
    "pwrite64": (18, "f"),
    "writev": (20, "f"),
    "pwritev": (296, "f"),
    "pwritev2": (328, "f"),
    "sendfile": (40, "f"),
    "splice": (275, "f2"),
    "copy_file_range": (326, "f2"),
    "fallocate": (285, "f"),
    "ftruncate": (77, "f"),
    "truncate": (76, "p"),
    "open": (2, "p"),
    "creat": (85, "p"),
    "openat": (257, "P"),
    "openat2": (437, "P"),
    "rename": (82, "pp"),
    "renameat": (264, "PP"),
    "renameat2": (316, "PP"),
    "link": (86, "pp"),
    "linkat": (265, "PP"),
    "symlink": (88, "xp"),
    "symlinkat": (266, "xP"),
    "unlink": (87, "p"),
    "unlinkat": (263, "P"),
    "mkdir": (83, "p"),
    "mkdirat": (258, "P"),
    "rmdir": (84, "p"),
    "mknod": (133, "p"),
    "mknodat": (259, "P"),
    "chmod": (90, "p"),
    "fchmod": (91, "f"),
    "fchmodat": (268, "P"),
    "fchmodat2": (452, "P"),
    "chown": (92, "p"),
    "lchown": (94, "p"),
    "fchown": (93, "f"),
    "fchownat": (260, "P"),
    "utime": (132, "p"),
    "utimes": (235, "p"),
    "futimesat": (261, "P"),
    "utimensat": (280, "P"),
    "setxattr": (188, "p"),
    "lsetxattr": (189, "p"),
    "fsetxattr": (190, "f"),
    "removexattr": (197, "p"),
    "lremovexattr": (198, "p"),
    "fremovexattr": (199, "f"),
    "fsync": (74, "f"),
    "fdatasync": (75, "f"),
    "sync_file_range": (277, "f"),
    "syncfs": (306, "f"),
    "sync": (162, "all"),
    "mmap": (9, "map"),
    "io_uring_setup": (425, "never"),
}
# Calls that change nothing without these bits are let through in the kernel: number -> (argument, bits). Opening for
# writing alone changes nothing either; the writes that follow count.
CHANGING = os.O_CREAT | os.O_TRUNC
MAP_SHARED, PROT_WRITE = 1, 2
ONLY_WITH = {2: (1, CHANGING), 257: (2, CHANGING), 9: (3, MAP_SHARED)}
NAMES = {number: name for name, (number, _) in TABLE.items()}


@dataclasses.dataclass(frozen=True)
class Event:
    """One call: `path` is relative to the folder; `source` the first path of a rename or link, or a symlink's text."""

    call: str
    path: str
    source: str | None
    process: int

    @property
    def label(self) -> str:
        """What the call does, without the names that differ from run to run."""
        text = self.call + " " + (f"{self.source} -> " if self.source is not None else "") + self.path
        text = re.sub(r"\.(new|probe)-[A-Za-z0-9_]+", r".\1-*", text)
        return re.sub(r"(activate|rollback)-[0-9a-f]{12,16}\b", r"\1-*", text)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a traced command did; `cut`: the power went before the last event was executed."""

    events: list[Event]
    code: int
    output: str

    @property
    def cut(self) -> bool:
        return self.code == CUT


Point = tuple[str, int]  # a label, and which of the calls that have it: 1 is the first


def points(events: list[Event]) -> list[Point]:
    """Every call of a run as a place to cut another run at; places in a list would move with the length of a pipe."""
    seen: dict[str, int] = {}
    found = []
    for event in events:
        seen[event.label] = seen.get(event.label, 0) + 1
        found.append((event.label, seen[event.label]))
    return found


def trace(command: list[str], folder: Path, scratch: Path, cut: Point = ("", 0)) -> Run:
    """Run `command` under the tracer, in a process of its own: ptrace is bound to a thread."""
    record = scratch / "events.jsonl"
    arguments = [sys.executable, __file__, str(folder), str(record), cut[0], str(cut[1]), "--", *command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    events = [Event(**json.loads(line)) for line in record.read_text().splitlines()]
    return Run(events, done.returncode, done.stdout + done.stderr)


def unusable(scratch: Path) -> str | None:
    """Why this machine cannot trace, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"the tracer knows Linux on x86-64 only, not {sys.platform} on {platform.machine()}"
    probe = trace(["mkdir", str(scratch / "probe")], scratch, scratch)
    if probe.code != 0 or [event.call for event in probe.events] != ["mkdir"]:
        return f"ptrace with seccomp does not work here: exit code {probe.code}, {probe.output.strip()[-200:]}"
    (scratch / "probe").rmdir()
    return None


# ---- the tracer's own process ----

SEIZE, CONT, GETREGS, LISTEN = 0x4206, 7, 12, 0x4208
O_FORK, O_VFORK, O_CLONE, O_EXEC, O_SECCOMP, O_EXITKILL = 0x2, 0x4, 0x8, 0x10, 0x80, 0x100000
EVENT_SECCOMP, EVENT_STOP = 7, 128
GROUP_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
WALL = 0x40000000
REGISTERS = struct.Struct("27Q")  # struct user_regs_struct
ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi rsi rdx r10 r8 r9 in it
ORIG_RAX = 15

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, address: Any = None, data: Any = None) -> None:
    if libc.ptrace(request, pid, address, data) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request:#x}): {os.strerror(error)}")


def filter_program() -> bytes:
    """BPF: RET_TRACE for the calls of TABLE, RET_ALLOW for all others."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, stop, arch = 0x7FFF0000, 0x7FF00000, 0xC000003E
    one = struct.Struct("HBBI").pack
    code = [one(load, 0, 0, 4), one(equal, 1, 0, arch), one(give, 0, 0, allow), one(load, 0, 0, 0)]
    for number, (argument, bits) in ONLY_WITH.items():
        code += [one(equal, 0, 4, number), one(load, 0, 0, 16 + 8 * argument), one(any_bit, 0, 1, bits)]
        code += [one(give, 0, 0, stop), one(give, 0, 0, allow)]
    for number in NAMES:
        code += [one(equal, 0, 1, number), one(give, 0, 0, stop)]
    return b"".join([*code, one(give, 0, 0, allow)])


def start(command: list[str]) -> int:
    """The command's process, seized, with the filter in it."""
    program = filter_program()
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    gate, key = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(gate, 1)
            no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
            for request, value, extra in ((no_new_privileges, 1, None), (set_seccomp, filter_mode, header)):
                if libc.prctl(request, ctypes.c_ulong(value), extra, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
                    raise OSError(ctypes.get_errno(), f"prctl({request})")
            os.execvp(command[0], command)
        except BaseException as error:
            print(f"powercut: {error}", file=sys.stderr, flush=True)
            os._exit(98)
    ptrace(SEIZE, child, None, O_FORK | O_VFORK | O_CLONE | O_EXEC | O_SECCOMP | O_EXITKILL)
    os.write(key, b"x")
    os.close(gate)
    os.close(key)
    return child


class Decoder:
    """Reads a stopped call's arguments; only calls that touch `folder` become events."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        self._processes: dict[int, int] = {}

    def event(self, pid: int) -> Event | None:
        registers = ctypes.create_string_buffer(REGISTERS.size)
        ptrace(GETREGS, pid, None, ctypes.addressof(registers))
        values = REGISTERS.unpack(registers.raw)
        name = NAMES[values[ORIG_RAX]]
        arguments = [values[index] for index in ARGUMENTS]
        kind = TABLE[name][1]
        if kind == "never":
            raise RuntimeError(f"{name} was called: what it changes cannot be seen here")
        if kind == "map" and (ctypes.c_int(arguments[4]).value < 0 or not arguments[2] & PROT_WRITE):
            return None
        source, path = self._paths(pid, kind, arguments)
        if not any(text is not None and self._inside(text) for text in (source, path)):
            return None
        process = self._processes.setdefault(self._group(pid), len(self._processes))
        text = source if kind.startswith("x") else self._relative(source)
        return Event(name, self._relative(path) or "", text, process)

    def _paths(self, pid: int, kind: str, arguments: list[int]) -> tuple[str | None, str | None]:
        """(source, path) of a call, absolute; a symlink's source is its text."""
        if kind == "all":
            return None, self.folder
        if kind in ("f", "f2", "map"):
            descriptor = arguments[{"f": 0, "f2": 2, "map": 4}[kind]]
            return None, self._descriptor(pid, ctypes.c_int(descriptor).value)
        rest = list(arguments)
        found: list[str | None] = []
        for letter in kind:
            folder = ctypes.c_int(rest.pop(0)).value if letter == "P" else AT_FDCWD
            text = self._text(pid, rest.pop(0))
            if letter != "x" and text is None:  # utimensat(fd, NULL): the descriptor itself
                text = self._descriptor(pid, folder)
            elif letter != "x":
                text = self._absolute(pid, folder, str(text))
            found.append(text)
        return (None, found[0]) if len(found) == 1 else (found[0], found[1])

    def _absolute(self, pid: int, folder: int, text: str) -> str:
        base = os.readlink(f"/proc/{pid}/cwd") if folder == AT_FDCWD else self._descriptor(pid, folder)
        whole = os.path.normpath(os.path.join(base or "/", text))
        return os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))

    @staticmethod
    def _descriptor(pid: int, number: int) -> str | None:
        try:
            return os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            return None  # closed: the call will fail

    @staticmethod
    def _text(pid: int, address: int) -> str | None:
        if address == 0:
            return None
        data = b""
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            while b"\0" not in data:
                memory.seek(address + len(data))
                data += memory.read(min(4096 - (address + len(data)) % 4096, 512))
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    @staticmethod
    def _group(pid: int) -> int:
        with open(f"/proc/{pid}/status") as file:
            return int(next(line for line in file if line.startswith("Tgid:")).split()[1])

    def _inside(self, path: str) -> bool:
        return path == self.folder or path.startswith(self.folder + "/")

    def _relative(self, path: str | None) -> str | None:
        if path is None or not self._inside(path):
            return path
        return os.path.relpath(path, self.folder)


def cut_power(pids: set[int]) -> None:
    """SIGKILL for all; a child that was being born is killed at its first stop."""
    for pid in pids:
        kill(pid)
    while True:
        try:
            pid, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return
        if os.WIFSTOPPED(status):
            kill(pid)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def follow(command: list[str], folder: str, cut: Point, record: Any) -> int:
    """Run to the end of every process of the tree, or to the cut; the exit code of the first process, or CUT."""
    decoder = Decoder(folder)
    first = start(command)
    alive, seen, code = {first}, 0, 0
    while True:
        try:
            pid, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return code
        if not os.WIFSTOPPED(status):
            alive.discard(pid)
            if pid == first:
                code = os.waitstatus_to_exitcode(status)
            continue
        alive.add(pid)
        number, what = os.WSTOPSIG(status), status >> 16
        try:
            if what == EVENT_SECCOMP and (event := decoder.event(pid)) is not None:
                record.write(json.dumps(dataclasses.asdict(event)) + "\n")
                seen += event.label == cut[0]
                if seen == cut[1] and event.label == cut[0]:
                    cut_power(alive)
                    return CUT
            if what == EVENT_STOP and number in GROUP_STOPS:
                ptrace(LISTEN, pid)
            else:
                ptrace(CONT, pid, None, None if what else number)
        except (ProcessLookupError, FileNotFoundError):
            continue  # killed while it was stopped, by another of the tree


if __name__ == "__main__":
    folder, record, label, nth, dashes, *command = sys.argv[1:]
    assert dashes == "--"
    with open(record, "w") as file:
        ended = follow(command, folder, (label, int(nth)), file)
    sys.exit(ended)
