"""Power sensors, one file each; a file's name is the `kind` by which profiles call its sensors. Its contract:

find() -> list of Sensor    every rail or domain that this board shows and this user may read; [] where there is none;
                            raises OSError with words for people where there should be some and none can be read

A sensor gives its raw figure in SI units. Energy, idle power, gaps and readings that cannot be are the host's to judge.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import select
import signal
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from ..wire import RemoteError

SYS = "/sys"
LIMIT_S = 3.0  # for the sensors of one kind to say what they are

_reading: Optional[int] = None  # where a process that may hang writes which file it reads


class Sensor:
    """One figure that the board tells about itself.

    quantity: "power_w", or "energy_j", a counter. range_j: where that counter begins again at 0; None: not told.
    resolution: its smallest step, in the quantity's unit; None: not told. interval_s: how often it changes at most.
    read(): the figure; raises OSError or ValueError where this reading gave none. product(): (volts, amperes) of the
    same rail, where it tells them beside its power.
    """

    def __init__(
        self,
        kind: str,
        rail: str,
        where: str,
        read: Callable[[], float],
        quantity: str = "power_w",
        interval_s: float = 0.1,
        resolution: Optional[float] = None,
        range_j: Optional[float] = None,
        product: Optional[Callable[[], Tuple[float, float]]] = None,
    ) -> None:
        self.kind, self.rail, self.where, self.read, self.product = kind, rail, where, read, product
        self.quantity, self.interval_s, self.resolution, self.range_j = quantity, interval_s, resolution, range_j

    def describe(self) -> Dict[str, Any]:
        names = ("kind", "rail", "where", "quantity", "interval_s", "resolution", "range_j")
        return {name: getattr(self, name) for name in names}


def kinds() -> List[str]:
    return sorted(found.name for found in pkgutil.iter_modules(__path__))


def described(limit_s: float = LIMIT_S) -> Tuple[List[Dict[str, Any]], List[str]]:
    """(what every sensor of this board says of itself, why others may be missing).

    A read may never return, where a bus or a driver hangs; so each kind is asked by a process of its own, which is left
    behind after `limit_s`.
    """
    found: List[Dict[str, Any]] = []
    problems: List[str] = []
    for kind in kinds():
        said = _asked(kind, limit_s)
        found += said.get("sensors", [])
        problems += [f"{kind}: {said['problem']}"] if "problem" in said else []
    return found, problems


def _asked(kind: str, limit_s: float) -> Dict[str, Any]:
    """What a forked process finds of one kind: {"sensors": [...]} or {"problem": words}."""
    ours, its = os.pipe()
    child = os.fork()
    if not child:
        _answer(kind, its)
    os.close(its)
    lines, until = b"", time.monotonic() + limit_s
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            part = pipe.read(65536)
            if not part:
                _, status = os.waitpid(child, 0)
                last = lines.splitlines()[-1:]
                if status or not last:
                    return {"problem": f"the process that asked ended with status {status}"}
                return json.loads(last[0])  # type: ignore[no-any-return]
            lines += part
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, os.WNOHANG)  # one that waits for a device goes when that answers
    at = lines.splitlines()[-1].decode("utf-8", "replace") if lines else "the first file"
    return {"problem": f"a read of {at} did not return within {limit_s:g} s"}


def _answer(kind: str, pipe: int) -> None:
    """Which file is being read, a line each, then what was found as JSON; the process ends here."""
    global _reading
    status = 1
    try:
        _reading = pipe
        try:
            answer: Dict[str, Any] = {"sensors": [sensor.describe() for sensor in of_kind(kind)]}
        except OSError as error:
            answer = {"problem": str(error)}
        with os.fdopen(pipe, "wb") as file:
            file.write(json.dumps(answer).encode("utf-8") + b"\n")
        status = 0
    finally:
        os._exit(status)


def of_kind(kind: str) -> List[Sensor]:
    """The sensors of one kind. A read may hang: `described` first. Raises OSError as the contract says."""
    found: List[Sensor] = importlib.import_module(f"{__name__}.{kind}").find()
    return found


def choose(kind: Optional[str], rail: Optional[str]) -> Sensor:
    """The one that is asked for; else the board's only one. Raises RemoteError with the names there are."""
    there, problems = described()
    fitting = [told for told in there if kind in (None, told["kind"]) and rail in (None, told["rail"])]
    if len(fitting) == 1:
        own = [sensor for sensor in of_kind(fitting[0]["kind"]) if sensor.rail == fitting[0]["rail"]]
        if len(own) == 1:
            return own[0]
    asked = " ".join(word for word in (kind, rail) if word) or "any"
    names = ", ".join(f"'{told['kind']} {told['rail']}'" for told in there) or "none that this user may read"
    what = "no such power sensor" if not fitting else "more than one power sensor fits"
    unasked = "".join(f"; {problem}" for problem in problems)
    raise RemoteError(
        "no-sensor", f"{what} for '{asked}'; this board has: {names}. Name one with --sensor KIND:RAIL{unasked}"
    )


def text_of(path: str) -> str:
    """Raises OSError."""
    if _reading is not None:  # whoever waits for us may want to know for what
        os.write(_reading, path.encode("utf-8", "replace") + b"\n")
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def number_of(path: str) -> float:
    """Raises OSError, ValueError."""
    return float(int(text_of(path)))


def readable(path: str) -> bool:
    """Whether a figure comes from there: that the file exists says little, drivers refuse when they are asked."""
    try:
        number_of(path)
    except (OSError, ValueError):
        return False
    return True


def both(voltage: str, current: str, per_unit: float) -> Optional[Callable[[], Tuple[float, float]]]:
    """A reader of (volts, amperes) from two files, in which `per_unit` make a volt and an ampere; None without them."""
    if not (readable(voltage) and readable(current)):
        return None
    return lambda: (number_of(voltage) / per_unit, abs(number_of(current)) / per_unit)


def optional(path: str) -> Optional[str]:
    try:
        return text_of(path) or None
    except OSError:
        return None


def folders(*parts: str) -> List[str]:
    """The entries of a folder of sysfs, in the order of their numbers."""
    place = os.path.join(SYS, *parts)
    names = os.listdir(place) if os.path.isdir(place) else []
    return [os.path.join(place, name) for name in sorted(names, key=_numbered)]


def _numbered(name: str) -> List[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
