"""What convert, quantize, prune and bundle did, on one screen."""

from __future__ import annotations

import textwrap
from typing import Any

import click

SHOWN_OPERATORS = 8


def show(document: dict[str, Any]) -> None:
    from ..report import units

    for file in document["files"]:
        click.echo(f"{file['file']}  {units.quantity(file['size_bytes'], 'bytes')}")
    click.echo(f"{document['runtime']} {document['scheme']} of {document['model']}")
    if cut := document.get("prune"):
        for title, lines in _pruned(cut):
            for number, line in enumerate(lines):
                click.echo(f"  {title if not number else '':<12} {line}")
    for title, lines in _sections(document):
        for number, line in enumerate(lines):
            click.echo(f"  {title if not number else '':<12} {line}")
    if document["large_error"]:
        click.echo(_large_error(document["large_error"]))
    source = document["model"] if document["source_inputs"] else "SOURCE.onnx"
    click.echo(
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
            [f"as the source with these channels at 0, on {tried}" + _noise(proof["sqnr_db"])],
        ),
        (
            "from source",
            [
                f"{own['stage']}: off by {own['max_abs_error']:.3g} at most" + _noise(own["sqnr_db"])
                for own in cut["parity"]
            ],
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
    click.echo(f"{file['file']}  {units.quantity(file['size_bytes'], 'bytes')}")
    accelerator = document["npu"]["compiler"]["accelerator"]
    click.echo(f"{document['model']} compiled for {accelerator}; not run here, so not compared with it")
    delegate = document["options"].get("delegate")
    needs = f"tflite with the delegate {delegate}" if delegate else "tflite with the vendor's delegate"
    for title, lines in [*placement.npu(document["npu"]), ("runs on", [needs])]:
        for number, line in enumerate(lines):
            click.echo(f"  {title if not number else '':<12} {line}")
    click.echo(f"  {'':<12} {units.quantity(document['total_s'], 's')} in all")


def _large_error(found: dict[str, Any]) -> str:
    schemes = " or ".join(found["schemes"])
    runtimes = " or ".join(found["runtimes"])
    ways = [f"--scheme {schemes}"] if schemes else []
    ways += [f"another runtime with --to {runtimes}"] if runtimes else []
    return f"large error: {found['sqnr_db']:.1f} dB; " + (
        f"try {', or '.join(ways)}" if ways else "no other scheme or runtime takes this model: leave it in float"
    )


def _sections(document: dict[str, Any]) -> list[tuple[str, list[str]]]:
    from ..report import units

    told = document["source_inputs"] or []
    inputs = [f"{own['name']} {own['dtype']} {own['shape']}" for own in document["inputs"]]
    inputs = [f"{own}, from {told[n]}" if n < len(told) else own for n, own in enumerate(inputs)]
    inputs = [own + _steps(steps) for own, steps in zip(inputs, document["preprocess"], strict=True)]
    samples = document["samples"]
    parity = [
        f"{stage['stage']}: off by {stage['max_abs_error']:.3g} at most" + _noise(stage["sqnr_db"])
        for stage in document["parity"] or []
    ]
    operators = sorted((document["ops"] or {}).items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} {name}" for name, count in operators[:SHOWN_OPERATORS])
    more = f" and {len(operators) - SHOWN_OPERATORS} other kinds" if len(operators) > SHOWN_OPERATORS else ""
    moved = document["transposes_and_pads"]
    sections = [
        ("inputs", inputs),
        ("outputs", [f"{own['name']} {own['dtype']} {own['shape']}" for own in document["outputs"]]),
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
        ("in float", [", ".join(document["float_ops"])] if document["float_ops"] else []),
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


def _layout(moved: dict[str, int]) -> str:
    """moved: operators that only copy numbers to other places, by kind."""
    told = ", ".join(f"{count} {name}" for name, count in moved.items())
    return f"{told}: operators that only move numbers" if told else "no Transpose or Pad operators"


def _option(key: str, value: Any) -> str:
    return f"float parts run in {value}" if key == "precision" else f"{key} {value}"


def _noise(sqnr_db: float | None) -> str:
    if sqnr_db is None:
        return ", equal"
    return f", signal to noise {sqnr_db:.1f} dB" + (": MORE NOISE THAN SIGNAL" if sqnr_db < 0 else "")


def _steps(steps: list[dict[str, Any]]) -> str:
    said = [f"{step['op']} " + " ".join(str(value) for key, value in step.items() if key != "op") for step in steps]
    return f", after {', '.join(said)}" if said else ""


def show_bundle(document: dict[str, Any]) -> None:
    from ..report import units

    click.echo(f"{document['bundle']}  {units.quantity(document['size_bytes'], 'bytes')}")
    click.echo(f"{document['name']} {document['release'][:12]}, {document['runtime']}, for {document['profile']}")
    health = document["health"]
    limits = ["finite outputs"]
    if health["greatest_output_error"] is not None:
        limits.append(f"outputs within {units.share(health['greatest_output_error'])} of their range")
    if health["greatest_median_latency_s"] is not None:
        limits.append(f"median latency up to {units.quantity(health['greatest_median_latency_s'], 's')}")
    if health["least_correct"] is not None:
        limits.append(f"at least {health['least_correct']} of {health['of']} right")
    kind = "random" if document["samples"]["random"] else "given"
    click.echo(f"  health check   {', '.join(limits)}; on {health['of']} {kind} samples")
    for number, line in enumerate(_to_validate(document)):
        click.echo(f"  {'' if number else 'to validate':<14} {line}")
    for mark in document["marks"]:
        click.echo(f"  marked         {mark}")
    click.echo("accuracy was not judged" + ("; flash it, then `edgeopt validate`" if document["evaluation"] else ""))


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
