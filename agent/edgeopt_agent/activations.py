"""Activations: which release was made current after which, and until when it must be confirmed.

<root>/activations/<n>/record.json   and beside it `release`, a symlink, and confirmed.json once that was said
<root>/current -> activations/<n>
What cannot be read here counts as missing: nothing is known then, and a flash mends it.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, Dict, List, Optional

from . import facts
from .files import read_json, remove

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def folder_of(root: str, number: int) -> str:
    return os.path.join(root, "activations", str(number))


def current_number(root: str) -> Optional[int]:
    """None where there is no `current`, or no link of ours."""
    try:
        found = re.fullmatch(r"activations/([1-9][0-9]{0,15})", os.readlink(os.path.join(root, "current")))
    except OSError:
        return None
    return int(found[1]) if found else None


def has_odd_current(root: str) -> bool:
    """Whether something is called `current` that tells no activation."""
    return current_number(root) is None and os.path.lexists(os.path.join(root, "current"))


def current_record(root: str) -> Optional[Dict[str, Any]]:
    number = current_number(root)
    return None if number is None else record_of(root, number)


def record_of(root: str, number: Optional[int]) -> Optional[Dict[str, Any]]:
    """None when there is none, or it is damaged."""
    if number is None:
        return None
    try:
        record = read_json(os.path.join(folder_of(root, number), "record.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return {"confirm_by": None, "previous_activation": None, **record} if _is_record(record, number) else None


def _is_record(found: Any, number: int) -> bool:
    """Whether it is what a host takes for one, and of this activation."""
    from . import replies
    from .requests import LATEST_S
    from .schema import check

    if not isinstance(found, dict) or check(replies.ACTIVATION, {"previous_activation": None, **found}):
        return False
    before, limit = found.get("previous_activation"), found.get("confirm_by")
    if found["number"] != number or (before is not None and not 0 < before < number):
        return False
    if limit is not None:
        if not isinstance(limit, dict) or not isinstance(limit.get("boot_id"), (str, type(None))):
            return False
        if not any(_is_clock(limit.get(name), LATEST_S) for name in ("boottime_s", "monotonic_s")):
            return False
    return True


def _is_clock(value: Any, latest_s: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= latest_s


def last(root: str) -> Optional[Dict[str, Any]]:
    """The record of the current activation; where that cannot be read, of the newest one that can."""
    record = current_record(root)
    if record is None and (current_number(root) is not None or has_odd_current(root)):
        records = [record_of(root, number) for number in sorted(numbers(root), reverse=True)]
        record = next((found for found in records if found is not None), None)
    return record


def numbers(root: str) -> List[int]:
    """Of every activation that is there, those that never became current included."""
    return [int(name) for name in os.listdir(os.path.join(root, "activations")) if _is_ours(name)]


def _is_ours(name: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,15}", name) is not None


def chain(root: str, keep: int) -> List[Dict[str, Any]]:
    """The current activation and the ones that rollbacks lead to, newest first."""
    found: List[Dict[str, Any]] = []
    record = current_record(root)
    while record is not None and len(found) <= keep:
        found.append(record)
        record = record_of(root, record["previous_activation"])
    return found


def sweep(root: str, above: int) -> None:
    """Remove what a power cut left: activations that never became current, and what is none."""
    for name in os.listdir(os.path.join(root, "activations")):
        if not _is_ours(name) or int(name) > above:
            remove(os.path.join(root, "activations", name))


def is_confirmed(root: str, record: Dict[str, Any]) -> bool:
    path = os.path.join(folder_of(root, record["number"]), "confirmed.json")
    return record["confirm_by"] is None or os.path.exists(path)


def clock_s() -> float:
    """Seconds since the board's start, those that it slept included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def limit_after(seconds: Optional[float]) -> Optional[Dict[str, Any]]:
    """The `confirm_by` of a record: by when, in which run of the board."""
    return None if seconds is None else {"boot_id": facts.read(BOOT_ID), "boottime_s": clock_s() + seconds}


def is_over(limit: Dict[str, Any]) -> bool:
    if limit["boot_id"] != facts.read(BOOT_ID):
        return True
    if "boottime_s" in limit:
        return bool(clock_s() >= limit["boottime_s"])
    return bool(time.monotonic() >= limit["monotonic_s"])  # of an older agent
