"""The board's frequency governor and cap, set for one job and given back whatever happens to it.

A guardian, a process of its own, gives the old values back when the pipe to it closes: at the job's end, or when the
job is killed. Should the guardian be killed too, the next job or status does it, from the record in the root; after a
restart of the board there is nothing to give back.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import glob
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Optional, Tuple

from .facts import read
from .files import code_path, note, read_json, set_aside, write_json
from .watch import cooling
from .wire import RemoteError

if TYPE_CHECKING:
    from .jobs import Context

POLICIES = "/sys/devices/system/cpu/cpufreq/policy*"
RECORD = "power-mode.json"
LAUNCH = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.power_mode import guard; guard(sys.argv[2])"
GIVE_BACK_S = 30.0


class Caps:
    """Frequency caps that change within a job: `set` one (Hz), or None, which is how the job holds the board."""

    def __init__(self, settings: Dict[float, List[Tuple[str, str]]]) -> None:
        usual = {path: read(path) or "" for own in settings.values() for path, _ in own}
        self._settings: Dict[Optional[float], List[Tuple[str, str]]] = {None: list(usual.items())}
        for cap_hz, own in settings.items():  # never above what the board is held at anyhow
            self._settings[cap_hz] = [(path, str(min(int(value), int(usual[path])))) for path, value in own]
        self._now: Optional[float] = None
        self.kept: Dict[Optional[float], float] = {}  # the highest cap that the board told after each was set, Hz

    def set(self, cap_hz: Optional[float]) -> None:
        if cap_hz != self._now:
            there = [(path, value) for path, value in self._settings[cap_hz] if not _is_off(path)]
            for path, value in there:
                _write(path, value)
            self._now = cap_hz
            self.kept[cap_hz] = 1000.0 * max((int(read(path) or 0) for path, _ in there), default=0)


@contextmanager
def held(context: Context, wanted: Dict[str, Any], caps: Iterable[float] = ()) -> Iterator[Caps]:
    """Set `wanted` ({"governor": name or None, "frequency_max_hz": number or None}) on every CPU meanwhile; a cap above
    what some CPUs can is their own highest. What could not be given back is told as an event. caps: all that `Caps.set`
    will be asked for.

    Raises RemoteError('bad-request') when this board, or this user there, cannot.
    """
    settings = _settings(wanted)
    capped = {cap_hz: _settings({"frequency_max_hz": cap_hz}) for cap_hz in caps}
    if not settings and not capped:
        yield Caps({})
        return
    record = os.path.join(context.root, RECORD)
    changed = list({path: (path, value) for own in (settings, *capped.values()) for path, value in own}.values())
    with _sole(changed) as lock:
        before = _before(changed)
        write_json(record, {"boot_id": read("/proc/sys/kernel/random/boot_id"), "settings": before})
        guardian = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, code_path(), record],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(lock,),  # until it has given back
        )
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        try:
            if not guardian.stdout.readline():
                raise RemoteError("crash", "the process that would give the power mode back does not start")
            for path, value in settings:
                _write(path, value)
            yield Caps(capped)
        finally:
            guardian.stdin.close()
            try:
                guardian.wait(GIVE_BACK_S)
            except subprocess.TimeoutExpired:
                guardian.kill()
            guardian.stdout.close()
            if os.path.exists(record):
                were = ", ".join(f"{path} was {value}" for path, value in before)
                context.emit({"event": "waiting", "what": f"the board's power mode was not given back: {were}"})


@contextmanager
def _sole(settings: List[Tuple[str, str]]) -> Iterator[int]:
    """Of several edgeopt folders of a board one at a time: each would give back what another has set. A handle that
    holds it as long as any process has it open. Raises RemoteError('bad-request')."""
    handle = os.open(os.path.dirname(settings[0][0]), os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            words = "a job of another edgeopt folder on this board holds its power mode; wait for its end"
            raise RemoteError("bad-request", words) from error
        yield handle
    finally:
        os.close(handle)


def _before(settings: List[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """(file, value) as they are; given back from the last to the first."""
    found = []
    for path, _ in settings:
        value = read(path) or ""
        if path.endswith("_governor") and value == "userspace":  # the speed that it holds goes with it
            speed = os.path.join(os.path.dirname(path), "scaling_setspeed")
            found.append((speed, read(speed) or ""))
        found.append((path, value))
    return found


def guard(record: str) -> None:
    """Wait until the job is over, then give back what the record says."""
    with open(record, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(1, b"guarding\n")
        while sys.stdin.buffer.read(4096):
            pass
        _give_back(record)


def recover(root: str) -> None:
    """Give back what a killed job and its killed guardian left. Only while no job works."""
    record = os.path.join(root, RECORD)
    try:
        with open(record, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a guardian that still works is waited for
            if os.path.exists(record):
                with _sole(_read(record)["settings"]):
                    _give_back(record)
    except FileNotFoundError:
        return
    except ValueError as error:  # what it held cannot be given back, and must not stop all that is done here
        set_aside(record)
        note(f"the power mode that a job left behind cannot be given back: {error}")
    except RemoteError as error:  # the record stays until that one has ended
        note(str(error))


def _read(record: str) -> Dict[str, Any]:
    """Raises ValueError for what is no record of `held`."""
    left = read_json(record)
    settings = left.get("settings") if isinstance(left, dict) else None
    if not isinstance(settings, list) or not settings or "boot_id" not in left:
        raise ValueError(f"{record} is no record of a power mode")
    for setting in settings:
        is_pair = isinstance(setting, list) and len(setting) == 2 and all(isinstance(text, str) for text in setting)
        if not is_pair or not _is_setting(setting[0]):
            raise ValueError(f"{record} names {str(setting)[:80]}, which is no frequency setting of this board")
    found: Dict[str, Any] = left
    return found


def _is_setting(path: str) -> bool:
    """Whether it is a file of a policy, be its processors there now or not."""
    return os.path.normpath(path) == path and fnmatch.fnmatch(os.path.dirname(path), POLICIES)


def _give_back(record: str) -> None:
    left = _read(record)
    still: List[List[str]] = []
    if left["boot_id"] == read("/proc/sys/kernel/random/boot_id"):
        for path, value in reversed(left["settings"]):
            try:
                _write(path, value)
            except RemoteError as error:  # it stays in the record, for whoever may, or for when its processor is back
                note(str(error))
                still.insert(0, [path, value])
    if not still:
        os.unlink(record)
    elif still != left["settings"]:
        write_json(record, dict(left, settings=still))


def control() -> Optional[Dict[str, Any]]:
    """Between which clocks (Hz) this board can be capped, in which steps where it tells them, and whether this user
    may; None where it has no frequency control."""
    policies = sorted(glob.glob(POLICIES))
    if not policies:
        return None

    def khz(name: str) -> List[int]:
        return [int(word) for policy in policies for word in (read(f"{policy}/{name}") or "").split() if word.isdigit()]

    lows, highs = khz("cpuinfo_min_freq"), khz("scaling_max_freq")
    return {
        "min_hz": 1000.0 * max(lows, default=0),
        "max_hz": 1000.0 * max(highs, default=0),
        "steps_hz": [1000.0 * step for step in sorted(set(khz("scaling_available_frequencies")))],
        "settable": all(os.access(f"{policy}/scaling_max_freq", os.W_OK) for policy in policies),
    }


def _settings(wanted: Dict[str, Any]) -> List[Tuple[str, str]]:
    """(file, value) in the order to write them."""
    governor, cap_hz = wanted.get("governor"), wanted.get("frequency_max_hz")
    if governor is None and cap_hz is None:
        return []
    policies = [policy for policy in sorted(glob.glob(POLICIES)) if not _is_off(f"{policy}/scaling_max_freq")]
    if not policies:
        raise RemoteError(
            "bad-request", f"this board has no frequency control ({POLICIES}); leave its power mode alone"
        )
    settings = []
    for policy in policies:
        if governor is not None:
            known = (read(f"{policy}/scaling_available_governors") or "").split()
            if governor not in known:
                raise RemoteError("bad-request", f"governor '{governor}': {policy} has: {', '.join(known) or 'none'}")
            settings.append((f"{policy}/scaling_governor", str(governor)))
        if cap_hz is not None:
            low, high = (int(read(f"{policy}/cpuinfo_{end}_freq") or 0) for end in ("min", "max"))
            if cap_hz / 1000 < low:
                raise RemoteError(
                    "bad-request",
                    f"a frequency cap of {cap_hz / 1e6:g} MHz: {policy} goes from {low / 1e3:g} to {high / 1e3:g} MHz",
                )
            settings.append((f"{policy}/scaling_max_freq", str(min(int(cap_hz / 1000), high))))
    if cap_hz is not None and (hot := cooling()):
        raise RemoteError(
            "bad-request",
            f"the board throttles now ({', '.join(hot)}), so the cap to give back cannot be read; let it cool first",
        )
    return settings


def _is_off(path: str) -> bool:
    """Whether the processors of a policy were switched off meanwhile: it cannot be read then, or is gone."""
    return read(path) is None


def _write(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(value)
    except OSError as error:
        mend = "log in as root" if error.errno in (errno.EACCES, errno.EPERM) else "set it on the board"
        raise RemoteError("bad-request", f"{path} cannot be set to '{value}' ({error.strerror}); {mend}") from error
    kept = read(path) or ""
    lower = path.endswith("_max_freq") and kept.isdigit() and int(kept) <= int(value)  # its own table has steps
    if kept != value and not lower:
        raise RemoteError("bad-request", f"{path} was set to '{value}', but the board keeps '{kept}'")
