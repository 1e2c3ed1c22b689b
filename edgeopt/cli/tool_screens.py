"""What convert, quantize, prune and bundle did, on one screen."""

from __future__ import annotations

import textwrap
from typing import Any

from ..floor import FLOOR_SAYS
from .display import echo

SHOWN_OPERATORS = 8
SHOWN_PARTS = 6
SHOWN_NAME = 60


def show(document: dict[str, Any]) -> None:
    from ..report import units

    for file in document["files"]:
        echo(f"{file['file']}  {units.quantity(file['size_bytes'], 'bytes')}")
    echo(f"{document['runtime']} {document['scheme']} of {document['model']}")
    if cut := document.get("prune"):
        for title, lines in _pruned(cut):
            for number, line in enumerate(lines):
                echo(f"  {title if not number else '':<12} {line}")
    for title, lines in _sections(document):
        for number, line in enumerate(lines):
            echo(f"  {title if not number else '':<12} {line}")
    if score := document["score"]:
        metric, source, own = score["metric"], score["source"], score["artifact"]
        words = (
            f"{units.score(own, metric)} on these {score['n']} samples here, the source's {units.score(source, metric)}"
        )
        used = ["set its ranges"] if document["scheme"].startswith("int8") else []
        used += ["trained it"] if document.get("prune", {}).get("epochs") else []
        echo(f"  {metric:<12} {words}" + (f"; they also {' and '.join(used)}" if used else ""))
    if document["large_error"]:
        echo(_large_error(document["large_error"]))
        if document["refused"] is not None:
            echo(f"nothing was written: the floor is {FLOOR_SAYS}; --accept-error writes it")
    if document["refused"]:
        return
    source = document["model"] if document["source_inputs"] else "SOURCE.onnx"
    echo(
        f"accuracy was not judged: `edgeopt bundle --labels … --reference {source}` and then `edgeopt validate` tell "
        "the loss on the board; `edgeopt optimize` does all of it"
    )


def _pruned(cut: dict[str, Any]) -> list[tuple[str, list[str]]]:
    from ..report import units

    (macs, macs_left), (size, size_left) = cut["macs"], cut["parameters"]
    left = (
        f"{units.count(macs_left)} of {units.count(macs)} multiply-accumulates left ({units.share(macs_left / macs)}), "
        f"{units.count(size_left)} of {units.count(size)} parameters; "
        + (f"recovered over {cut['epochs']} epochs" if cut["epochs"] else "not recovered")
    )
    widths = [f"{name} {before} → {after}" for name, (before, after) in cut["widths"].items() if before != after]
    by_reason: dict[str, list[str]] = {}
    for own in cut["whole"]:
        by_reason.setdefault(own["why"], []).append(f"{own['layer']} ({own['width']})")
    proof = cut["proof"]
    tried = f"{proof['samples']} samples" + (f", {proof['noise']} of them noise" if proof["noise"] else "")
    sections = [
        ("pruned", [left]),
        ("widths", textwrap.wrap(", ".join(widths), 100, break_on_hyphens=False)),
        ("left whole", [f"{', '.join(layers)}: {why}" for why, layers in by_reason.items()]),
        (
            "proof",
            [f"as the source with these channels at 0, on {tried}" + _noise(proof)],
        ),
        (
            "from source",
            [line for own in cut["parity"] for line in _parity(own, is_last=False)],
        ),
    ]
    if score := cut["accuracy"]:
        source, pruned = (units.score(score[name], score["metric"]) for name in ("source", "pruned"))
        learned = f"on the {score['samples']} samples that it learned from"
        sections.append(("score", [f"{score['metric']}: source {source}, pruned {pruned} {learned}"]))
    return sections


def show_npu(document: dict[str, Any]) -> None:
    """A .tflite that was compiled for an NPU."""
    from ..report import placement, units

    (file,) = document["files"]
    echo(f"{file['file']}  {units.quantity(file['size_bytes'], 'bytes')}")
    accelerator = document["npu"]["compiler"]["accelerator"]
    echo(f"{document['model']} compiled for {accelerator}; not run here, so not compared with it")
    delegate = document["options"].get("delegate")
    needs = f"tflite with the delegate {delegate}" if delegate else "tflite with the vendor's delegate"
    for title, lines in [*placement.npu(document["npu"]), ("runs on", [needs])]:
        for number, line in enumerate(lines):
            echo(f"  {title if not number else '':<12} {line}")
    echo(f"  {'':<12} {units.quantity(document['total_s'], 's')} in all")


def _large_error(found: dict[str, Any]) -> str:
    from ..lower import ways_in_words

    place = f" in {found['where']}" if found["where"] else ""
    threads = f" ({found['threads']})" if found["threads"] else ""
    return f"large error{place}: {found['figure']}{threads}; {ways_in_words(found)}"


def _sections(document: dict[str, Any]) -> list[tuple[str, list[str]]]:
    from ..report import units

    inputs = _inputs(document)
    calls = document["source_outputs"]
    outputs = [f"{own['name']} {own['dtype']} {own['shape']}" for own in document["outputs"]]
    outputs = [f"{own}, the source's {calls[n]}" if n < len(calls) else own for n, own in enumerate(outputs)]
    samples = document["samples"]
    stages = document["parity"] or []
    parity = [line for stage in stages for line in _parity(stage, stage is stages[-1])]
    operators = sorted((document["ops"] or {}).items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} {name}" for name, count in operators[:SHOWN_OPERATORS])
    more = f" and {len(operators) - SHOWN_OPERATORS} other kinds" if len(operators) > SHOWN_OPERATORS else ""
    moved = document["transposes_and_pads"]
    sections = [
        ("inputs", inputs),
        ("outputs", outputs),
        (
            "samples",
            [f"{samples['n']}" + (", random: ranges and errors of real ones may differ" if samples["random"] else "")],
        ),
        ("parity", parity),
        (
            "int8",
            [f"{units.share(document['int8_mac_share'])} of the multiply-accumulates"]
            if document["int8_mac_share"] is not None
            else [],
        ),
        ("in float", _in_float(document)),
        ("widened", _widened(document)),
        ("operators", [shown + more] if shown else []),
        ("layout", [_layout(moved)] if moved is not None else []),
        ("options", [_option(key, value) for key, value in document["options"].items()]),
        (
            "time",
            [
                f"{units.quantity(part['seconds'], 's')} {part['what']}"
                for part in document["seconds"]
                if part["seconds"] >= 0.05
            ],
        ),
        ("", [f"{units.quantity(document['total_s'], 's')} in all"]),
    ]
    return [(title, lines) for title, lines in sections if lines]


def _inputs(document: dict[str, Any]) -> list[str]:
    """What the artifact takes, which input of the source that is, and which array of --inputs it was given."""
    told, pairs = document["source_inputs"] or [], document["binding"].get("inputs", [])
    lines = []
    for number, (own, steps) in enumerate(zip(document["inputs"], document["preprocess"], strict=True)):
        line = f"{own['name']} {own['dtype']} {own['shape']}"
        if number < len(told) or number < len(pairs):
            line += f", from {told[number] if number < len(told) else pairs[number]['input']}"
        if number < len(pairs):
            line += f" ← array {pairs[number]['array']}"
        line += _steps(steps)
        lines.append(line)
    return lines + how_bound(document["binding"])


def _bound(binding: dict[str, Any], steps: list[list[dict[str, Any]]]) -> list[str]:
    """Which array of --inputs each input takes, and what was left alone; nothing of random samples."""
    pairs = binding.get("inputs", [])
    lines = [f"{own['input']} ← array {own['array']}{_steps(steps[n])}" for n, own in enumerate(pairs)]
    return lines + how_bound(binding)


def how_bound(binding: dict[str, Any]) -> list[str]:
    """That the order decided, where it did, and the arrays that no input takes."""
    by_order = binding.get("by") == "order" and len(binding["inputs"]) > 1
    left = ", ".join(binding.get("left", []))
    return [*(["taken in their order"] if by_order else []), *([f"left alone: {left}"] if left else [])]


def _layout(moved: dict[str, int]) -> str:
    """moved: operators that only copy numbers to other places, by kind."""
    told = ", ".join(f"{count} {name}" for name, count in moved.items())
    return f"{told}: operators that only move numbers" if told else "no Transpose or Pad operators"


def _option(key: str, value: Any) -> str:
    return f"float parts run in {value}" if key == "precision" else f"{key} {value}"


def _parity(stage: dict[str, Any], is_last: bool) -> list[str]:
    """Its worst part, and of the artifact every part where there are some."""
    from .. import fidelity

    parts, count = fidelity.parts(stage["outputs"]), len(stage["outputs"])
    worst = fidelity.worst(stage["outputs"]) or parts[0]
    place = fidelity.where(worst, count)
    head = f"{stage['stage']}: off by {stage['max_abs_error']:.3g} at most, {fidelity.figure(worst)}"
    if len(parts) == 1 or fidelity.figure(worst) == "equal":
        return [head]
    if not is_last:
        return [f"{head} in the worst: {place}"]
    told = [f"  {fidelity.where(part, count)}: {fidelity.figure(part)}" for part in parts[:SHOWN_PARTS]]
    more = [f"  and {len(parts) - SHOWN_PARTS} more in --json"] if len(parts) > SHOWN_PARTS else []
    return [f"{head} in the worst: {place}", *told, *more]


def _in_float(document: dict[str, Any]) -> list[str]:
    joined = document["in_float"] or []
    told = [f"{', '.join(joined)}: what is joined there differs in size by orders"] if joined else []
    told += [
        f"{own['operator']} '{_end(own['name'])}': {own['reason']}"
        for own in (document["notes"].get("out_of_range") or [])[:SHOWN_PARTS]
    ]
    return ([", ".join(document["float_ops"])] if document["float_ops"] else []) + told


def _widened(document: dict[str, Any]) -> list[str]:
    widened = list((document["notes"].get("widened") or {}).items())
    more = [f"and {len(widened) - SHOWN_PARTS} more in --json"] if len(widened) > SHOWN_PARTS else []
    return [f"'{_end(name)}': {why}" for name, why in widened[:SHOWN_PARTS]] + more


def _end(name: str) -> str:
    """TFLite's names hold every module on the way to the operator."""
    return name if len(name) <= SHOWN_NAME else f"…{name[1 - SHOWN_NAME :]}"


def _noise(figures: dict[str, Any]) -> str:
    from .. import fidelity

    return f", {fidelity.figure({'equal_share': None, **figures})}"


def _steps(steps: list[dict[str, Any]]) -> str:
    said = [f"{step['op']} " + " ".join(str(value) for key, value in step.items() if key != "op") for step in steps]
    return f", after {', '.join(said)}" if said else ""


def show_refused_bundle(document: dict[str, Any]) -> None:
    echo(f"large error against {document['reference']}: {document['refused']}")
    echo(f"no bundle was written: the floor is {FLOOR_SAYS}; make the model again, or add --accept-error")


def show_bundle(document: dict[str, Any]) -> None:
    from ..report import board, units

    echo(f"{document['bundle']}  {units.quantity(document['size_bytes'], 'bytes')}")
    echo(f"{document['name']} {document['release'][:12]}, {document['runtime']}, for {document['profile']}")
    health = document["health"]
    limits = ["finite outputs"]
    if health["greatest_output_error"] is not None:
        limits.append(f"outputs within {units.share(health['greatest_output_error'])} of their range")
    if health["greatest_median_latency_s"] is not None:
        limits.append(f"median latency up to {units.quantity(health['greatest_median_latency_s'], 's')}")
    if health["least_correct"] is not None:
        limits.append(f"at least {health['least_correct']} of {health['of']} right")
    kind = "random" if document["samples"]["random"] else "given"
    for number, line in enumerate(_bound(document["binding"], document["preprocess"])):
        echo(f"  {'' if number else 'inputs':<14} {line}")
    echo(f"  health check   {', '.join(limits)}; on {health['of']} {kind} samples")
    for number, line in enumerate(_to_validate(document)):
        echo(f"  {'' if number else 'to validate':<14} {line}")
    for mark in document["marks"]:
        echo(f"  marked         {mark}")
    if on := document["board"]:
        echo(f"  measured on    {board.described(on)}")
        if said := board.mark(on):
            echo(f"  marked         measured {said}; {board.different(on)}")
    echo("accuracy was not judged" + ("; flash it, then `edgeopt validate`" if document["evaluation"] else ""))


def _to_validate(document: dict[str, Any]) -> list[str]:
    from ..report import units

    count, metric = document["evaluation"], document["metric"]
    if not count:
        return ["nothing; --labels with --device adds samples, --reference what they are compared with"]
    source = document["lineage"]["reference"]
    score = units.score(document["reference_score"], metric)
    if isinstance(source, dict):
        fed = "" if source["samples"] == "as given" else f", fed {source['samples']}"
        lines = [f"{count} samples; reference: {source['file']}{fed}, {score} here"]
    else:
        lines = [f"{count} samples; reference: {source}, {score}: a drop says what changed since, not what was lost"]
        lines += ["name the model that it was made from with --reference to see the loss"]
    needed, drop = document["needed_samples"], units.drop(document["floor_drop"], metric)
    if needed is None:
        lines.append(f"a drop within {drop} cannot be shown by any count of samples; raise --floor-drop")
    elif needed > count:
        lines.append(
            f"{count} samples: a drop within {drop} needs at least n={needed} to be shown, more where answers differ"
        )
    return lines
