"""Where operators ran or are to run, as words: an NPU's compiler's plan, and what a runtime tells of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import units

NAME_LIMIT = 60
REASON_LIMIT = 200
NOT_TOLD = "not told"
UNTIMED = "this runtime times no operator"


def npu(found: Mapping[str, Any] | None) -> list[tuple[str, list[str]]]:
    """What compiling for an NPU told, as titles with their lines; nothing where nothing was compiled.

    Estimates are Figures whose `how` is simulated; units.figure puts the mark behind every one.
    """
    if not found:
        return []
    placement, estimate, compiler = (found.get(name) or {} for name in ("placement", "estimate", "compiler"))
    share = f"{units.count(placement.get('on_npu'))} of {units.count(placement.get('operators'))} operators"
    lines = [f"{share} ({units.share(placement.get('share'))}) on {units.text(compiler.get('accelerator'), 40)}"]
    return [
        ("NPU", lines),
        ("on the CPU", [_left(entry) for entry in placement.get("on_cpu") or []] or ["nothing"]),
        ("estimate", [_estimate(estimate)]),
        ("compiler", [_compiler(compiler)]),
    ]


def npu_words(found: Mapping[str, Any] | None) -> str:
    """The same in one line; empty where nothing was compiled."""
    sections = dict(npu(found))
    if not sections:
        return ""
    left = [str(entry.get("operator")) for entry in ((found or {}).get("placement") or {}).get("on_cpu") or []]
    rest = f"; on the CPU: {units.text(', '.join(left), 200)}" if left else ""
    return f"{sections['NPU'][0]}{rest}; {sections['estimate'][0]}"


def places(executed: Mapping[str, Any]) -> str:
    """Where operators ran, the place with the most first: "XNNPACK 61, CPU 1 (CUMSUM, 0.0 % of the MACs)"."""
    found, macs = executed.get("places"), executed.get("macs_at") or {}
    if not found:
        return NOT_TOLD
    total = sum(macs.values())
    said = []
    for number, (place, own) in enumerate(sorted(found.items(), key=lambda item: -sum(item[1].values()))):
        part = f", {units.share(macs.get(place, 0) / total)} of the MACs" if total else ""
        names = f" ({units.text(', '.join(own), NAME_LIMIT)}{part})" if number else ""
        said.append(f"{units.text(place, 40)} {units.count(sum(own.values()))}{names}")
    return ", ".join(said)


def table(
    operators: Sequence[Mapping[str, Any]], conversions: Mapping[str, int]
) -> tuple[list[tuple[str, str, str, str, str]], str]:
    """(a row (operator, place, type, MACs, time) for each that ran, a note that sums up)."""
    rows = [
        (
            units.text(one["op"], 40),
            units.text(one["place"], 30),
            units.text(one["type"] or NOT_TOLD, 20),
            units.count(one["macs"]) if one["macs"] else "",
            units.quantity(one["seconds"], "s") if units.known(one["seconds"]) else "",
        )
        for one in operators
    ]
    times = [one["seconds"] for one in operators if units.known(one["seconds"])]
    said = ", ".join(f"{count} {units.text(name, 30)}" for name, count in conversions.items())
    timed = f"{units.quantity(sum(times), 's')} in all, of runs of their own" if times else UNTIMED
    return rows, f"{timed}; conversions: {said or 'none'}"


def _left(entry: Mapping[str, Any]) -> str:
    name, reason = units.text(entry.get("name"), NAME_LIMIT), units.text(entry.get("reason"), REASON_LIMIT)
    return f"{units.text(entry.get('operator'), 40)} '{name}': {reason}"


def _estimate(estimate: Mapping[str, Any]) -> str:
    """The NPU's part alone: its compiler knows nothing of what the processor does meanwhile."""
    cycles = estimate.get("cycles") or {}
    said = [
        f"{units.figure(estimate.get('latency_s'), 's')} on the NPU",
        f"{units.count(round(cycles.get('value') or 0))} cycles{units.mark(cycles)}" if cycles else "",
        f"{units.figure(estimate.get('sram_bytes'), 'bytes')} of SRAM",
        f"{units.figure(estimate.get('dram_bytes'), 'bytes')} of DRAM",
    ]
    return ", ".join(filter(None, said))


def _compiler(compiler: Mapping[str, Any]) -> str:
    parts = (units.text(compiler.get(name), 40) for name in ("vela", "accelerator", "system", "memory_mode"))
    return "Vela " + ", ".join(parts)
