"""Which operators ran where and in what, as the runtime itself tells, and whether that is what was asked for.

Falling back is never silent: where an accelerator was asked for, or a share of int8, whatever runs otherwise is an
error that names the operators, unless it was allowed.
"""

from __future__ import annotations

import re
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
# Operators that multiply, by their names in all runtimes; those of them that tell no MACs leave a share unknown.
MULTIPLIES = re.compile(r"conv(?!ert)|matmul|gemm|fully_?connected|lstm|gru|rnn|svdf|attention|einsum|^mha", re.I)
INT8_ONLY = "libethosu_delegate.so"  # tells no MACs, and its NPU has no float
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
    return None if demand.int8_share is None else _not_int8(ran, artifact, demand.int8_share)


def _not_int8(ran: Sequence[Mapping[str, Any]], artifact: Artifact, least: float) -> str | None:
    """Why the share of multiply-accumulates in int8 is less, or cannot be shown, in words."""
    wanted = accelerator(artifact.runtime, artifact.options)
    uncounted = [one for one in ran if not one["macs"] and MULTIPLIES.search(one["op"])]
    if uncounted:
        return (
            f"the multiply-accumulates of {len(uncounted)} operators cannot be counted, so a share of int8 cannot be "
            f"shown: {_names(uncounted, 'type')}; leave --require-int8 and [ladder] require_int8"
        )
    counted = [one for one in ran if one["macs"]]
    found = share([one for one in counted if one["type"] == "int8"], ran)
    if found is None and wanted == INT8_ONLY:
        return None
    if found is None:
        who = f"{wanted} (which may compute in float)" if wanted else "the runtime"
        return f"{who} tells of no multiply-accumulates, so a share of int8 cannot be shown; leave --require-int8"
    if artifact.runtime == "tflite" and any(one["place"] == wanted for one in counted):
        return (
            f"{wanted} may compute int8 tensors in float and does not tell, so a share of int8 cannot be shown; leave "
            "--require-int8"
        )
    if found >= least:
        return None
    others = [one for one in counted if one["type"] != "int8"]
    return (
        f"{found:.1%} of its multiply-accumulates are computed in int8, {least:.1%} are required; in other "
        f"types: {_names(others, 'type')}"
    )


def may_be_refused(executed: Mapping[str, Any], artifact: Artifact, demand: Demand) -> bool:
    """Whether `refusal` must be asked, by what every measurement brings: that tells where each kind of operator ran,
    not which of them multiply uncounted, so a demand of int8 always needs the operators themselves."""
    if demand.int8_share is not None:
        return True
    wanted = accelerator(artifact.runtime, artifact.options)
    kinds = [{"op": op, "place": place} for place, own in (executed.get("places") or {}).items() for op in own]
    return wanted is not None and bool(left_out(kinds, wanted, demand.allowed))


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
