"""Memory of this process, of the board and of the control group that this process is kept in.

Not of the arena that a runtime keeps its tensors in, which is within the peak: none tells Python its size on a CPU
(LiteRT 2.3, OpenVINO 2026.4, ONNX Runtime 1.31), and the sum of the tensors is more, since they take turns in it.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Dict, List, Optional, Tuple

from .facts import parse_meminfo, read
from .wire import RemoteError

CGROUPS = "/sys/fs/cgroup"


def status() -> Dict[str, int]:
    """VmRSS and VmHWM of this process in bytes, where /proc tells them."""
    found = re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", read("/proc/self/status") or "", re.MULTILINE)
    return {name: int(value) * 1024 for name, value in found}


def reset_peak() -> None:
    """Forget the peak that importing left, so that the next peak is the model's; a kernel without it keeps the old."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")
    except OSError as error:
        print(f"the peak counter cannot be reset ({error}); the peak may include the import", file=sys.stderr)


def free_bytes() -> Optional[int]:
    """What a process here may still take: the board's available memory, or less where a control group limits it."""
    board = parse_meminfo(read("/proc/meminfo") or "").get("MemAvailable")
    groups = [free for free in map(_left, _groups(read("/proc/self/cgroup") or "")) if free is not None]
    known = groups + ([] if board is None else [board])
    return min(known) if known else None


def require_fit(path: str) -> None:
    """Raises RemoteError('runtime') where an artifact's files alone are more than the memory that is free: a runtime
    needs at least its weights there, and trying would end other programs of this board first."""
    free = free_bytes()
    needed = sum(os.path.getsize(file) for file in _files(path))
    if free is not None and needed > free:
        raise RemoteError(
            "runtime",
            f"the model's files have {needed / 1e6:.1f} MB and this board has {free / 1e6:.1f} MB of memory free: it "
            "was not tried; end other programs there, or take a smaller model",
        )


def forget_cached(path: str) -> None:
    """Drop an artifact's files from the page cache, so that the next load reads them from the disk."""
    for file in _files(path):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not written yet cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            print(f"{file} stays in the page cache ({error}); the cold load may be a warm one", file=sys.stderr)
        finally:
            os.close(handle)


def _files(path: str) -> List[str]:
    folder = os.path.dirname(path)
    return [os.path.realpath(os.path.join(folder, name)) for name in os.listdir(folder)]


def _groups(text: str) -> List[Tuple[str, str, str]]:
    """/proc/self/cgroup: (folder, name of the limit, name of what is used) of this process's group and those above."""
    found = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = f"{CGROUPS}/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = path.strip("/").split("/") if path.strip("/") else []
        found += [("/".join([base, *parts[:depth]]), *names) for depth in range(len(parts), -1, -1)]
    return found


def _left(group: Tuple[str, str, str]) -> Optional[int]:
    """Bytes that a group may still take; its page cache can be taken back. None: it has no limit."""
    folder, limit_name, used_name = group
    limit, used = read(f"{folder}/{limit_name}"), read(f"{folder}/{used_name}")
    if limit is None or used is None or not limit.isdigit() or int(limit) > 1 << 60:
        return None
    cached = re.findall(r"^(?:total_)?(?:in)?active_file (\d+)$", read(f"{folder}/memory.stat") or "", re.MULTILINE)
    return max(0, int(limit) - int(used) + sum(map(int, cached[-2:])))
