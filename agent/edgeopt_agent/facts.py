"""What this board is and how it feels now. Parsing stands apart from reading, so tests feed recorded text."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Dict, Optional

FILLER = ("none", "default string", "not applicable", "not specified")  # for a serial number


def read(path: str) -> Optional[str]:
    """The text of a small file, or None where the board has none or does not show it."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace").replace("\0", "").strip()
    except OSError:
        return None


def parse_cpuinfo(text: str) -> Dict[str, Any]:
    """/proc/cpuinfo of x86 or Arm: the processor's name (or implementer and part), board, serial, feature words."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or fields.get("cpu model")
    if not name and "cpu part" in fields:
        name = f"Arm implementer {fields.get('cpu implementer', '?')} part {fields['cpu part']}"
    words = (fields.get("flags") or fields.get("features") or "").split()
    keep = {"neon", "asimd", "asimddp", "i8mm", "sve", "avx2", "avx512_vnni", "avx_vnni", "amx_int8"}
    return {
        "cpu_model": name,
        "cpu_features": sorted(keep & set(words)),
        "board_model": fields.get("model") if "cpu part" in fields else None,
        "serial": fields.get("serial"),
    }


def parse_meminfo(text: str) -> Dict[str, int]:
    """/proc/meminfo: total and available memory in bytes."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE))
    return {name: int(value) * 1024 for name, value in found.items()}


def parse_oom_kills(text: str) -> Optional[int]:
    """/proc/vmstat: processes killed since boot because memory ran out; None before Linux 4.13."""
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def oom_kills() -> Optional[int]:
    return parse_oom_kills(read("/proc/vmstat") or "")


def parse_throttled(text: str) -> Optional[Dict[str, bool]]:
    """Raspberry Pi's get_throttled word (hexadecimal): bit 0 undervoltage, 1 frequency capped, 2 throttled, 3 soft
    temperature limit, now; `happened`: any of them since the board's start."""
    found = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)", text.strip())
    if found is None:
        return None
    bits = int(found[1], 16)
    names = ("undervoltage", "frequency_capped", "throttled", "soft_limit")
    return {**{name: bool(bits >> bit & 1) for bit, name in enumerate(names)}, "happened": bool(bits >> 16)}


def real_serial(text: Optional[str]) -> Optional[str]:
    """A serial number, unless it is what makers leave where they give none: all zeros, "Default string", …"""
    words = (text or "").strip()
    low = words.lower()
    filler = low in FILLER or low.startswith(("to be filled", "system serial")) or not low.strip("0x.- \t\n")
    return None if filler else words


def identity() -> Dict[str, Optional[str]]:
    """Which one of many boards this is; what cannot be read is None."""
    cpu = parse_cpuinfo(read("/proc/cpuinfo") or "")
    serials = (read("/proc/device-tree/serial-number"), cpu["serial"], read("/sys/class/dmi/id/product_serial"))
    return {
        "model": read("/proc/device-tree/model") or cpu["board_model"] or read("/sys/class/dmi/id/product_name"),
        "serial": next((serial for serial in map(real_serial, serials) if serial), None),
        "machine_id": read("/etc/machine-id"),
    }


def collect() -> Dict[str, Any]:
    """The board's identity and abilities; what cannot be read is None."""
    from . import power, power_mode, runtimes  # not at every start

    cpu = parse_cpuinfo(read("/proc/cpuinfo") or "")
    memory = parse_meminfo(read("/proc/meminfo") or "")
    system = os.uname()
    sensors, problems = power.described()
    return {
        "hostname": system.nodename,
        **identity(),
        "machine": system.machine,
        "kernel": system.release,
        "cpu_model": cpu["cpu_model"],
        "cpu_features": cpu["cpu_features"],
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": memory.get("MemTotal"),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_control": power_mode.control(),
        "runtimes": {name: runtimes.load(name).available() for name in runtimes.names()},
        "sensors": sensors,
        "sensor_problems": problems,
    }
