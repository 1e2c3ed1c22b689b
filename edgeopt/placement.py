"""Which operators ran where and in what, as the runtime itself tells, and whether that is what was asked for.

Falling back is never silent: where an accelerator was asked for, or a share of int8, whatever runs otherwise is an
error that names the operators, unless it was allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from . import formats, measure
from .artifact import Artifact
from .device.session import Session
from .errors import AgentFailure, ModelError
from .formats import tflite

RUNS = 20  # queries behind each operator's time
SHOWN = 5
ANY = "any"
# Operators that change only how numbers are laid out or written: what going to an accelerator and back costs.
CONVERSIONS = {
    *("QUANTIZE", "DEQUANTIZE", "CAST", "RESHAPE", "TRANSPOSE"),
    *("QuantizeLinear", "DequantizeLinear", "Cast", "Reshape", "Transpose", "ReorderInput", "ReorderOutput"),
    *("Convert", "Reorder", "FakeQuantize"),
}
CPU = {"openvino": "CPU", "onnxruntime": "CPUExecutionProvider"}


@dataclass(frozen=True)
class Demand:
    """int8_share: of the multiply-accumulates, at least. allowed: operators that may run outside the accelerator that
    the artifact's options ask for; "any" stands for all."""

    int8_share: float | None = None
    allowed: tuple[str, ...] = ()


def accelerator(runtime: str, options: Mapping[str, Any]) -> str | None:
    """The place that an artifact's options ask for, as the runtime's operators name it; None for the processor."""
    if "delegate" in options:
        return PurePosixPath(str(options["delegate"])).name
    asked = options.get("provider") or options.get("device")
    return None if asked in (None, CPU.get(runtime)) else str(asked)


def operators(session: Session, artifact: Artifact, inputs: Sequence[bytes], runs: int = RUNS) -> dict[str, Any]:
    """{"operators": [{"op", "name", "place", "type", "macs", "seconds"}], "executed"}, from a run of its own.

    Raises ModelError, with the operators' names, where the accelerator that was asked for is not there; AgentFailure.
    """
    measure.send(session, artifact)
    hashes = [session.send(data, "inputs") for data in inputs[:1]]
    try:
        _, found = session.run({"kind": "operators", "artifact": artifact.entry(), "shards": hashes, "runs": runs})
    except AgentFailure as error:
        if error.kind == "fallback":
            raise ModelError(f"{error}: {_all_of(artifact)}") from error
        raise
    return dict(found)


def checked(
    session: Session, artifact: Artifact, inputs: Sequence[bytes], demand: Demand, wanted: bool
) -> dict[str, Any] | None:
    """What `operators` finds, where it is wanted or something is demanded; else None. Raises ModelError as require."""
    asked = accelerator(artifact.runtime, artifact.options)
    if not wanted and asked is None and demand.int8_share is None:
        return None
    found = operators(session, artifact, inputs, RUNS if wanted else 0)
    require(found, artifact, demand, session.address)
    return found


def require(found: Mapping[str, Any], artifact: Artifact, demand: Demand, where: str) -> None:
    """Raises ModelError for what `operators` found and the demand does not allow."""
    if why := refusal(found["operators"], artifact, demand):
        raise ModelError(f"{artifact.name} on {where}: {why}")


def refusal(ran: Sequence[Mapping[str, Any]], artifact: Artifact, demand: Demand) -> str | None:
    """Why these operators are not what was asked for, in words; None where they are."""
    wanted = accelerator(artifact.runtime, artifact.options)
    outside = [] if wanted is None else left_out(ran, wanted, demand.allowed)
    if outside:
        macs = share([one for one in ran if one["place"] != wanted], ran)
        much = f", {macs:.1%} of its multiply-accumulates" if macs is not None else ""
        return (
            f"{len(outside)} of {len(ran)} operators do not run on {wanted}{much}: {_names(outside, 'place')}; allow "
            "it by the operator's name with --allow-fallback or [ladder] allow_fallback, or take another model"
        )
    if demand.int8_share is None:
        return None
    counted = [one for one in ran if one["macs"]]
    found = share([one for one in counted if one["type"] == "int8"], ran)
    if found is None and wanted is not None:
        return None  # the accelerator does not tell, and computes nothing in float
    if found is None:
        return "the runtime tells of no multiply-accumulates, so a share of int8 cannot be shown; leave --require-int8"
    if found >= demand.int8_share:
        return None
    others = [one for one in counted if one["type"] != "int8"]
    return (
        f"{found:.1%} of its multiply-accumulates are computed in int8, {demand.int8_share:.1%} are required; in other "
        f"types: {_names(others, 'type')}"
    )


def is_refused(executed: Mapping[str, Any], artifact: Artifact, demand: Demand) -> bool:
    """As refusal, by what every measurement brings; it has no operators' names."""
    wanted, macs = accelerator(artifact.runtime, artifact.options), executed.get("macs") or {}
    kinds = [{"op": op, "place": place} for place, own in (executed.get("places") or {}).items() for op in own]
    if wanted is not None and left_out(kinds, wanted, demand.allowed):
        return True
    total = sum(macs.values())
    return demand.int8_share is not None and bool(total) and macs.get("int8", 0) / total < demand.int8_share


def planned(npu: Mapping[str, Any] | None, demand: Demand) -> str | None:
    """Why what an NPU's compiler left to the processor is not allowed, in words; None where it is."""
    left = (npu or {}).get("placement", {}).get("on_cpu") or []
    outside = [
        one for one in left if one["operator"] not in CONVERSIONS and not {one["operator"], ANY} & set(demand.allowed)
    ]
    if not outside:
        return None
    told = ", ".join(f"{one['operator']} '{_short(one['name'])}' ({one['reason']})" for one in outside[:SHOWN])
    more = f" and {len(outside) - SHOWN} more" if len(outside) > SHOWN else ""
    return f"the NPU's compiler leaves {len(outside)} operators to the CPU: {told}{more}; name them in [ladder] " + (
        "allow_fallback to allow it"
    )


def left_out(ran: Sequence[Mapping[str, Any]], wanted: str, allowed: Sequence[str] = ()) -> list[Mapping[str, Any]]:
    """The operators that compute outside the accelerator `wanted` and are not allowed to."""
    if ANY in allowed:
        return []
    return [one for one in ran if one["place"] != wanted and one["op"] not in CONVERSIONS and one["op"] not in allowed]


def share(some: Sequence[Mapping[str, Any]], of: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the multiply-accumulates; None where none is told."""
    total = sum(one["macs"] or 0 for one in of)
    return sum(one["macs"] or 0 for one in some) / total if total else None


def conversions(ran: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Operators that only change layout or type, and how often each runs."""
    found: dict[str, int] = {}
    for one in ran:
        if one["op"] in CONVERSIONS:
            found[one["op"]] = found.get(one["op"], 0) + 1
    return found


def _names(ran: Sequence[Mapping[str, Any]], key: str) -> str:
    told = [f"{one['op']} '{_short(str(one['name']))}' ({one[key]})" for one in ran[:SHOWN]]
    return ", ".join(told) + (f" and {len(ran) - SHOWN} more" if len(ran) > SHOWN else "")


def _short(name: str) -> str:
    """The end of a long name tells more: converters put every module that a tensor came through before it."""
    return name if len(name) <= 60 else f"…{name[-59:]}"


def _all_of(artifact: Artifact) -> str:
    """The operators of the file, by kind."""
    found = formats.read(artifact.paths[0], artifact.runtime).operators
    names = {one.kind: tflite.NAMES.get(int(one.kind), "") if one.kind.isdigit() else one.kind for one in found}
    kinds = sorted({name for name in names.values() if name})
    named = f" ({', '.join(kinds[: 2 * SHOWN])}{', …' if len(kinds) > 2 * SHOWN else ''})" if kinds else ""
    return f"its {len(found)} operators{named}"
