"""What this board is and how it feels now. Parsing stands apart from reading, so tests feed recorded text."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Dict, Optional

# Parts of implementer 0x41 (Arm) as Linux names them: arch/arm/include/asm/cputype.h, arch/arm64/include/asm/cputype.h
ARM_CORES = {
    **{"0xc05": "Cortex-A5", "0xc07": "Cortex-A7", "0xc08": "Cortex-A8", "0xc09": "Cortex-A9", "0xc0d": "Cortex-A12"},
    **{"0xc0e": "Cortex-A17", "0xc0f": "Cortex-A15", "0xd01": "Cortex-A32", "0xd03": "Cortex-A53"},
    **{"0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72"},
    **{"0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1"},
    **{"0xd0d": "Cortex-A77", "0xd0e": "Cortex-A76AE", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78"},
    **{"0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710"},
    **{"0xd48": "Cortex-X2", "0xd49": "Neoverse-N2", "0xd4b": "Cortex-A78C", "0xd4d": "Cortex-A715"},
    **{"0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720"},
}
FILLER = ("none", "default string", "not applicable", "not specified")  # for a serial number


def read(path: str) -> Optional[str]:
    """The text of a small file, or None where the board has none or does not show it."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace").replace("\0", "").strip()
    except OSError:
        return None


def parse_cpuinfo(text: str) -> Dict[str, Any]:
    """/proc/cpuinfo of x86 or Arm: the processor's name, board, serial, feature words.

    Of an Arm processor each kind of core is named, as it names "ARMv7 Processor" what may be any.
    """
    fields: Dict[str, str] = {}
    cores: Dict[str, None] = {}
    implementer = "?"
    for line in text.splitlines():
        key, value = line.partition(":")[0].strip(), line.partition(":")[2].strip()
        fields.setdefault(key.lower(), value)
        if key == "CPU implementer":
            implementer = value
        elif key == "CPU part":
            other = "Arm implementer %s part %s" % (implementer, value)
            cores[ARM_CORES.get(value, other) if implementer == "0x41" else other] = None
    name = " + ".join(cores) or fields.get("model name") or fields.get("cpu model")
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


def parse_cpu_list(text: str) -> Optional[int]:
    """How many processors a list of the kernel names: "0-3,6"."""
    found = re.findall(r"(\d+)(?:-(\d+))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in found) or None


def parse_os_release(text: str) -> Optional[str]:
    """The system's name of /etc/os-release: "Debian GNU/Linux 12 (bookworm)"."""
    found = re.search(r"^PRETTY_NAME=[\"']?([^\"'\n]+)", text, re.MULTILINE)
    return found[1] if found else None


def architecture(kernel: str, pointer_bytes: int) -> str:
    """The architecture of this Python: a 64-bit kernel may run a 32-bit system."""
    if pointer_bytes == 4:
        return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(kernel, kernel)
    return kernel


def hardware() -> Dict[str, Any]:
    """What this board is, apart from its name: what a profile is compared with. What cannot be read is None.

    cores: that Linux sees; cores_present: with those that are switched off; userland: this Python's architecture.
    """
    cpu = parse_cpuinfo(read("/proc/cpuinfo") or "")
    machine = os.uname().machine
    return {
        "machine": machine,
        "userland": architecture(machine, 8 if sys.maxsize > 1 << 32 else 4),
        "cpu_model": cpu["cpu_model"],
        "cpu_features": cpu["cpu_features"],
        "cores": os.cpu_count(),
        "cores_present": parse_cpu_list(read("/sys/devices/system/cpu/present") or "") or os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": parse_meminfo(read("/proc/meminfo") or "").get("MemTotal"),
        "system": parse_os_release(read("/etc/os-release") or read("/usr/lib/os-release") or ""),
    }


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

    system = os.uname()
    sensors, problems = power.described()
    return {
        "hostname": system.nodename,
        **identity(),
        **hardware(),
        "kernel": system.release,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_control": power_mode.control(),
        "runtimes": {name: runtimes.load(name).available() for name in runtimes.names()},
        "sensors": sensors,
        "sensor_problems": problems,
    }
