"""What was found, said: each finding names a fault, the layer, and what to try."""

from __future__ import annotations

import re
from typing import Any

Document = dict[str, Any]

NO_PREPARED = (
    "give --prepared FILE.npz with what your application made of the golden samples (--golden FOLDER writes them)"
)
NO_REFERENCE = "ranges look right; give --reference with the float model of the same runtime to compare every layer"
NO_RANGES = "no tensor has one fixed range; give --reference with the float model to compare every layer"
NO_ANSWERS = "the bundle holds no answers, and the model was not run here"
LONGEST_NAME = 60
TRY_SCHEMES = {
    "openvino": "take 7-bit weights, which is scheme int8-safe of `edgeopt quantize`",
    "onnxruntime": "take 7-bit weights (reduce_range=True of quantize_static), or signed activations",
}


def finding(kind: str, where: str | None, says: str, tries: str, is_fault: bool = True, **evidence: Any) -> Document:
    return {
        "kind": kind, "where": where, "says": says, "try": tries, "is_fault": is_fault, "evidence": evidence
    }  # fmt: skip


def check(name: str, state: str, says: str) -> Document:
    return {"check": name, "state": state, "says": says}


def short(name: str) -> str:
    """A layer's name without what a converter adds to every one; of joined layers the first."""
    last = re.sub(r";\d*$", "", name.split(";;")[-1]).replace("__module.", "")
    last = re.sub(r"^[\w.]+/(?=.*torch\.nn\.modules)", "", last)
    last = re.sub(r"torch\.nn\.modules\.(\w+\.)?", "", last)
    return last if len(last) <= LONGEST_NAME else "…" + last[1 - LONGEST_NAME :]


def decibels(told: Document) -> str:
    if told.get("shapes"):
        return "shape {} for {}".format(*told["shapes"])
    if told["max"] is None:
        return "NaN or infinite"
    place = f" in {told['part']}" if told.get("part") else ""
    if told["sqnr_db"] is None:
        return "equal"
    share = told.get("equal_share")
    return (f"{100 * share:.1f} % of values equal" if share is not None else f"{told['sqnr_db']:.1f} dB") + place


def layer(row: Document) -> str:
    return f"layer {row['number']} '{row['name']}' ({row['operator']})"


def damaged_release(problem: str, device: str) -> Document:
    return finding(
        "damaged-release", None, f"the release on {device} is damaged: {problem}",
        "flash the bundle again; where it happens again, the board's storage is failing",
    )  # fmt: skip


def other_than_recorded(device: str, told: Document) -> Document:
    says = f"{device} answers otherwise than was recorded when it was bundled ({decibels(told)})"
    tries = "run `diagnose` on a machine with the same runtime, so that the layer can be named; compare its versions"
    return finding("other-answers", None, says, tries, **told)


def far_from_source(told: Document) -> Document:
    says = f"the artifact's answers are far from the source model's ({decibels(told)})"
    tries = "give --reference with the float model of the same runtime, to see the layer"
    return finding("far-from-source", None, says, tries, is_fault=False, **told)


def fused_apart(told: Document, device: str) -> Document:
    if told.get("shapes"):
        return other_shape("the answers", told, device, 1)
    says = (
        f"{device} answers otherwise than this host ({decibels(told)}), yet no layer differs while it is watched: the "
        "fault is in how the runtime there joins layers, or in a delegate"
    )
    return finding("fusion", None, says, "try another version of the runtime there, or without its delegate", **told)


def other_shape(where: str, told: Document, device: str, count: int, **evidence: Any) -> Document:
    says = f"{device} gives {where} in another shape than this host: {decibels(told)}{more(count)}"
    tries = "compare the runtimes' versions here and there; give the model inputs of one fixed size"
    return finding("shape", where, says, tries, device=device, **evidence, **told)


def host_and_board(row: Document, told: Document, device: str, count: int) -> Document:
    says = f"host and board part at {layer(row)}: {decibels(told)}{greatest(told)}{more(count)}"
    tries = (
        "compare the runtimes' versions here and there; try another runtime, or that layer in float, and report it to "
        "the runtime's makers with the sample"
    )
    return finding("host-board", row["name"], says, tries, layer=row["number"], device=device, **told)


def overflow(
    row: Document, told: Document, trial: Document, device: str, vnni: list[str], runtime: str, count: int
) -> Document:
    why = (
        f"its CPU has {', '.join(vnni)}, which its runtime does not use (is ONEDNN_MAX_CPU_ISA set there?)"
        if vnni
        else "its CPU lacks VNNI"
    )
    says = (
        f"int16 overflow: host and board part at {layer(row)}: {decibels(told)}{more(count)}; with 7-bit weights they "
        f"agree there ({decibels(trial)}). The board adds pairs of u8×s8 products in 16 bits, which saturates: {why}"
    )
    tries = f"{TRY_SCHEMES.get(runtime, '7-bit weights')}; or fp16, or fp32 for that layer"
    evidence = {"layer": row["number"], "device": device, "with_7_bits": trial, "cpu_features": vnni}
    return finding("int16-overflow", row["name"], says, tries, **evidence, **told)


def greatest(told: Document) -> str:
    return f", greatest error {told['max']:.3g}" if told["max"] is not None else ""


def more(count: int) -> str:
    return f" ({count - 1} more part by their own doing)" if count > 1 else ""


def zero_point(row: Document, fits: int, share: float | None) -> Document:
    lost = f"{100 * share:.1f} % of its values are wrong" if share is not None else "one end of its range is crowded"
    says = f"wrong zero point at {layer(row)}: {row['zero_point']}, and {fits} would fit; {lost}"
    tries = f"convert the model again; its range must be written with zero point {fits}, scale {row['scale']:.6g}"
    return finding("zero-point", row["name"], says, tries, layer=row["number"], fits=fits, share=share)


def perhaps_zero_point(row: Document, fits: int) -> Document:
    says = (
        f"one end of the range of {layer(row)} is crowded and the other empty: zero point {row['zero_point']}, "
        f"{fits} would hold more; it may be meant so"
    )
    tries = "give --reference with the float model of the same runtime, to see whether values are lost there"
    return finding("zero-point", row["name"], says, tries, is_fault=False, layer=row["number"], fits=fits)


def narrow_range(row: Document, needs: list[float], share: float) -> Document:
    low, high = needs
    says = (
        f"range too narrow at {layer(row)}: {100 * share:.1f} % of its values are cut off; the float model's lie "
        f"from {low:.4g} to {high:.4g}"
    )
    tries = "calibrate with samples like these, with the true minimum and maximum (edgeopt's own int8 does)"
    return finding("range", row["name"], says, tries, layer=row["number"], share=share, needs=needs)


def weights(row: Document, wrong: int, of: int, channels: list[int], worst: float) -> Document:
    where = f"channel{'s' if len(channels) > 1 else ''} {', '.join(map(str, channels[:5]))}"
    where += f" and {len(channels) - 5} more" if len(channels) > 5 else ""
    says = (
        f"damaged weights at {layer(row)}: {wrong:,} of {of:,} differ from the reference's by more than rounding "
        f"({where}; up to {worst:.3g})"
    )
    tries = "make the artifact again from its source; if it comes out the same, its converter is at fault"
    return finding("weights", row["name"], says, tries, layer=row["number"], wrong=wrong, of=of, channels=channels)


def costly(rows: list[Document]) -> Document:
    told = "; ".join(f"{layer(row)} loses {row['loss_db']:.1f} dB" for row in rows)
    tries = (
        "keep these in float, or with 16-bit activations, where the quantizer can leave layers out; other int8 schemes "
        "and per-channel weights first"
    )
    return finding("costly-layers", rows[0]["name"], f"most is lost at: {told}", tries, is_fault=False)


def step_quantization(index: int, step: Document, scale: float, zero: int) -> Document:
    says = (
        f"wrong zero point or scale in the bundle's own preprocess steps: input {index} is quantized with scale "
        f"{step['scale']:.6g}, zero point {step['zero_point']}; the model takes {scale:.6g} and {zero}"
    )
    tries = f"bundle it again with scale = {scale:.9g}, zero_point = {zero} in that step"
    return finding("zero-point", f"preprocess of input {index}", says, tries, fits=zero)
