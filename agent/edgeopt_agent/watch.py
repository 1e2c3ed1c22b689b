"""How the board feels while it is measured, and which other programs use it. Raw readings; the host judges."""

from __future__ import annotations

import glob
import os
import re
import threading
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .facts import parse_meminfo, parse_throttled, read

CPU = "/sys/devices/system/cpu"
HWMON = "/sys/class/hwmon"
FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
SHORTEST_S = 0.3  # the kernel counts in steps of 10 ms
LONGEST_READ_S = 5.0  # of a sensor
NAMED = 5  # other programs, the busiest first
SLOWS_CPUS = re.compile(r"(thermal-)?cpufreq|processor|intel_powerclamp", re.I)  # cooling devices' types


def parse_busy(text: str) -> Tuple[float, float]:
    """/proc/stat's first line: (seconds of all CPUs spent on work, of these stolen by a hypervisor) since boot."""
    ticks = [int(word) for word in text.split("\n", 1)[0].split()[1:]] + [0] * 8
    user, nice, system, _idle, _wait, irq, softirq, steal = ticks[:8]
    hertz = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq + steal) / hertz, steal / hertz


class Process(NamedTuple):
    name: str
    session: int
    cpu_s: float
    children_s: float  # of those that ended and were waited for


def parse_process(text: str) -> Process:
    """/proc/<pid>/stat; a name may hold blanks and brackets."""
    fields = text[text.rindex(")") + 2 :].split()
    user, system, children_user, children_system = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[11:15])
    name = text[text.index("(") + 1 : text.rindex(")")]
    return Process(name, int(fields[3]), user + system, children_user + children_system)


class Watch:
    """Looks at the board between blocks; a look tells what other programs used since the one before."""

    def __init__(self) -> None:
        self._hangs = False
        self._before: Optional[Tuple[float, Tuple[float, float], Dict[int, Process]]] = None

    def look(self) -> Dict[str, Any]:
        """Temperature (degrees), clocks (Hz), what slows them down, free memory, and `others`: {"seconds", "cores",
        "busiest": [{"name", "pid", "cores"}]}, None at the first look, too soon after another, and where /proc does not
        tell."""
        return dict(conditions(self._felt()), others=self._others())

    def _felt(self) -> Dict[str, Any]:
        """What `felt` tells; a sensor whose read never returns costs LONGEST_READ_S, once, and what it would tell."""
        found: List[Dict[str, Any]] = []
        if not self._hangs:
            reader = threading.Thread(target=lambda: found.append(felt()), daemon=True)
            reader.start()
            reader.join(LONGEST_READ_S)
            self._hangs = reader.is_alive()
        return found[0] if found else {"temperature_c": None, "throttle": None}

    def _others(self) -> Optional[Dict[str, Any]]:
        stat = read("/proc/stat")
        if not stat:
            return None
        if self._before is not None and time.monotonic() - self._before[0] < SHORTEST_S:
            return None
        now = time.monotonic(), parse_busy(stat), _processes()
        before, self._before = self._before, now
        if before is None:
            return None
        seconds = now[0] - before[0]
        busy = now[1][0] - before[1][0] - (_of_session(now[2]) - _of_session(before[2]))
        used = [(now[1][1] - before[1][1], 0, "the hypervisor")]
        for pid, process in now[2].items():
            if process.session != os.getsid(0):
                earlier = before[2].get(pid)
                used.append((process.cpu_s - (earlier.cpu_s if earlier else 0.0), pid, process.name))
        return {
            "seconds": seconds,
            "cores": max(0.0, busy) / seconds,
            "busiest": [
                {"name": name, "pid": pid, "cores": spent / seconds}
                for spent, pid, name in sorted(used, reverse=True)[:NAMED]
                if spent > 0
            ],
        }


def _of_session(processes: Dict[int, Process]) -> float:
    """CPU seconds of this job and its workers; those of workers that ended are their parent's."""
    return sum(one.cpu_s + one.children_s for one in processes.values() if one.session == os.getsid(0))


def _processes() -> Dict[int, Process]:
    found = {}
    for entry in os.listdir("/proc"):
        text = read(f"/proc/{entry}/stat") if entry.isdigit() else None
        if text:
            found[int(entry)] = parse_process(text)
    return found


def felt() -> Dict[str, Any]:
    """What sensors tell: degrees, and too little voltage or too much heat."""
    celsius = [value / 1000.0 for value in _numbers("/sys/class/thermal/thermal_zone*/temp")]
    return {"temperature_c": max(celsius) if celsius else None, "throttle": _throttle()}


def conditions(sensed: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """How the board feels at this moment; what cannot be read is None. sensed: what `felt` told, else it is asked."""
    memory = parse_meminfo(read("/proc/meminfo") or "")
    counts = _numbers(f"{CPU}/cpu[0-9]*/thermal_throttle/core_throttle_count")
    return {
        "at_s": time.monotonic(),
        "load_1min": os.getloadavg()[0],
        "memory_available_bytes": memory.get("MemAvailable"),
        **(felt() if sensed is None else sensed),
        "frequency_hz": [khz * 1000 for khz in _numbers(f"{CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq")] or None,
        "throttle_count": sum(counts) if counts else None,
        "cooling": cooling(),
        "power_mode": power_mode(),
        "cpus": sorted(os.sched_getaffinity(0)),  # those that may be used now
    }


def power_mode() -> Dict[str, Any]:
    """What decides on speed and power: governor, caps (Hz), boost, the maker's mode; None where there is no such."""
    return {
        "governor": _each(f"{CPU}/cpu[0-9]*/cpufreq/scaling_governor"),
        "frequency_max_hz": [khz * 1000 for khz in _numbers(f"{CPU}/cpu[0-9]*/cpufreq/scaling_max_freq")] or None,
        "boost": read(f"{CPU}/cpufreq/boost"),
        "no_turbo": read(f"{CPU}/intel_pstate/no_turbo"),
        "energy_preference": _each(f"{CPU}/cpu[0-9]*/cpufreq/energy_performance_preference"),
        "platform_profile": read("/sys/firmware/acpi/platform_profile"),
        "nvpmodel": read("/var/lib/nvpmodel/status"),
    }


def _each(pattern: str) -> Optional[str]:
    """What the files say that match: "schedutil", or "performance, powersave" where two CPUs differ."""
    words = [word for word in map(read, sorted(glob.glob(pattern))) if word]
    return ", ".join(words if len(set(words)) > 1 else words[:1]) or None


def _throttle() -> Optional[Dict[str, bool]]:
    """A Raspberry Pi's own word: of its firmware (Raspberry Pi OS), or of the driver rpi_volt (Linux 5.0 and later)."""
    found = parse_throttled(read(FIRMWARE) or "")
    for folder in glob.glob(f"{HWMON}/hwmon*"):
        if read(folder + "/name") == "rpi_volt":
            found = found or {}
            found["undervoltage"] = found.get("undervoltage", False) or read(folder + "/in0_lcrit_alarm") == "1"
    return found


def cooling() -> Optional[List[str]]:
    """Cooling devices of the CPUs that are at work: "cpufreq-cpu0 2"; None where the board has none."""
    found, there = [], False
    for folder in sorted(glob.glob("/sys/class/thermal/cooling_device*")):
        kind, state = read(folder + "/type") or "", read(folder + "/cur_state") or "0"
        if SLOWS_CPUS.match(kind):
            there = True
            found += [f"{kind} {state}"] if state not in ("0", "-1") else []
    return found if there else None


def _numbers(pattern: str) -> List[int]:
    """The whole numbers in the files that match, in the order of their names."""
    texts = map(read, sorted(glob.glob(pattern)))
    return [int(text) for text in texts if text and re.fullmatch(r"-?\d+", text)]
