"""edgeopt convert, quantize, prune and bundle: one stage each, without the ladder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .common import about_a_board, json_option, print_json, where_of
from .display import Display

if TYPE_CHECKING:
    from ..profile import DeviceProfile
    from ..tools.source import Given, Source

RUNTIMES = ("tflite", "openvino", "onnxruntime")
INT8_SCHEMES = ("int8", "int8-mixed", "int8-safe")
SHOWN_OPERATORS = 8


def _shapes(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(int(size) for size in text.split(",")) for text in texts)
    except ValueError:
        raise click.BadParameter(f"{texts[-1]!r} is not sizes with commas between, as 1,3,224,224") from None


REQUIRED = "  [required]"

to_option = click.option(
    "--to", type=click.Choice(RUNTIMES), help="Runtime; default: by --out's suffix, else the profile's first that fits."
)
profile_option = click.option(
    "--profile", help="Profile of the board, whose runtimes are admitted: a name, or a .toml."
)
out_option = click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")


def inputs_option(note: str = "") -> Callable[..., Any]:
    """note: what follows the help, as click's own "[required]": what is missing is told in our words."""
    told = "An .npz of real samples: one array (n, ...) per model input, by its name or else in its order."
    return click.option("--inputs", type=click.Path(path_type=Path), help=told + note)


def lowering_options(note: str = "") -> Callable[..., Any]:
    """note: as for inputs_option."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (json_option, overwrite_option, out_option, inputs_option(note), profile_option, to_option):
            command = option(command)
        return command

    return add


@click.command(short_help="Convert a model for a runtime, and compare with the source.")
@click.argument("model")
@lowering_options()
@click.option(
    "--scheme", default="fp32", show_default=True, help="fp32, fp16, fp16-compute, int8, … as the runtime has."
)
@click.option(
    "--shape", "shapes", callback=_shapes, multiple=True, help="Shape of random samples: 1,3,224,224; once per input."
)
def convert(model: str, shapes: tuple[tuple[int, ...], ...], as_json: bool, **how: Any) -> int:
    """Convert MODEL (an .onnx file, or package.module:factory of torch) and compare it with its source.

    Without --inputs and --shape an .onnx file of fixed shapes is compared on random samples. Accuracy is not judged.

    \b
    Example:
      edgeopt convert net.onnx --to openvino --out net.xml
      edgeopt convert my_package.models:load --shape 1,3,224,224 --scheme fp16 --out net.tflite
    """
    return _lower(model, shapes, as_json, **how)


@click.command(short_help="Make a model int8 with the ranges of real samples.")
@click.argument("model")
@lowering_options(REQUIRED)
@click.option(
    "--scheme",
    type=click.Choice(INT8_SCHEMES),
    default="int8",
    show_default=True,
    help="Of openvino also int8-mixed (slower, closer to the source) and int8-safe (for x86 without VNNI).",
)
def quantize(model: str, as_json: bool, **how: Any) -> int:
    """Convert MODEL (an .onnx file, or package.module:factory of torch) to int8, with --inputs as calibration samples.

    Reports how far each stage is from the source. Accuracy is not judged: that takes `optimize`, or `validate`.

    \b
    Example:
      edgeopt quantize net.onnx --inputs calibration.npz --to onnxruntime --out net-int8.onnx
    """
    if how["inputs"] is None:
        raise ConfigError("quantize needs real samples for its ranges: give --inputs FILE.npz")
    return _lower(model, (), as_json, **how)


def _lower(
    model: str,
    shapes: tuple[tuple[int, ...], ...],
    as_json: bool,
    to: str | None,
    profile: str | None,
    inputs: Path | None,
    out: Path,
    overwrite: bool,
    scheme: str,
) -> int:
    from ..tools import lowering

    source, runtime, place = _prepared(model, scheme, out, to, profile, overwrite)
    given = _samples(source, inputs, shapes, scheme)
    with Display(f"{model} to {runtime} {scheme}") as display:
        document = lowering.convert(source, given, runtime, scheme, place, Path.cwd(), display.event)
    print_json(document) if as_json else _show(document)
    return 0


@click.command(short_help="Remove channels, recover by distillation, convert.")
@click.argument("factory")
@lowering_options(REQUIRED)
@click.option("--labels", help="Name of an array in --inputs that is no input; it is left out.")
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    required=True,
    help="Share of channels to remove.",
)
@click.option("--round-to", type=click.IntRange(1), default=8, show_default=True, help="Widths become multiples of it.")
@click.option("--epochs", type=click.IntRange(0), default=20, show_default=True, help="To recover; 0: none.")
@click.option("--scheme", default="fp32", show_default=True, help="fp32, fp16, int8, … as the runtime has.")
def prune(
    factory: str,
    to: str | None,
    profile: str | None,
    inputs: Path | None,
    out: Path,
    overwrite: bool,
    labels: str | None,
    ratio: float,
    round_to: int,
    epochs: int,
    scheme: str,
    as_json: bool,
) -> int:
    """Prune the torch model that FACTORY (package.module:function) returns, let it learn the source's answers, convert.

    It learns on the samples of --inputs. Accuracy is not judged: that is `optimize`, or `validate` of a bundle.

    \b
    Example:
      edgeopt prune my_package.models:load --inputs train.npz --labels label --ratio 0.3 --to tflite --out small.tflite
    """
    from ..plan import Prune, Recover
    from ..tools import pruning

    if inputs is None:
        raise ConfigError("prune needs real samples to recover on: give --inputs FILE.npz")
    source, runtime, place = _prepared(factory, scheme, out, to, profile, overwrite)
    given = _samples(source, inputs, (), scheme, labels)
    recover = Recover(epochs, 1e-3, 64, 0) if epochs else None
    with Display(f"{factory} pruned to {runtime} {scheme}") as display:
        document = pruning.prune(
            source, given, Prune(ratio, round_to), recover, runtime, scheme, place, Path.cwd(), display.event
        )
    print_json(document) if as_json else _show(document)
    return 0


@click.command(short_help="Any model file as a bundle that can be flashed.")
@click.argument("model", type=click.Path(path_type=Path))
@out_option
@overwrite_option
@inputs_option()
@click.option("--labels", help="Name of the array of labels in --inputs; then validate can judge the bundle.")
@click.option("--metric", type=click.Choice(["top1", "top5", "negative_mae"]), help="How labels are compared.")
@click.option(
    "--floor-drop", type=click.FloatRange(0), default=0.01, show_default=True, help="Drop that validate allows."
)
@click.option(
    "--preprocess",
    type=click.Path(path_type=Path),
    help="A .toml or .json of steps per input that the board runs before the model; convert --json prints one.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the runtime.")
@click.option("--name", help="Name of the release; default: the file's.")
@click.option("--device", help='Board to try it on first: "local", "ssh://[user@]host[:port]", or a name.')
@about_a_board
@json_option
def bundle(
    model: Path,
    out: Path,
    overwrite: bool,
    inputs: Path | None,
    labels: str | None,
    metric: str | None,
    floor_drop: float,
    preprocess: Path | None,
    threads: int,
    name: str | None,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Bundle MODEL, anybody's .tflite, OpenVINO .xml with its .bin, or .onnx, for flash, bench, compare and validate.

    With --device the model runs there first: what it answers and how fast is what the board's health check expects from
    then on. Without, outputs need only be finite. With --labels, right answers count too, and the bundle can be
    validated: against the model's own outputs, so that a drop says what changed since.

    \b
    Example:
      edgeopt bundle vendor.tflite --profile raspberry-pi-4 --out vendor.edgeopt
      edgeopt bundle net.xml --profile intel-n100 --out n.edgeopt --inputs t.npz --labels y --metric top1 --device n100
    """
    from .. import formats, profile
    from ..tools import bundling, lowering

    known = options["profile"] or (where_of(device, dict(options)).profile if device else None)
    if known is None:
        raise ConfigError("bundle needs the board's profile: name it with --profile (`edgeopt profiles list`)")
    board = profile.load(str(known))
    root, python = options["root"] or board.board.root, options["board_python"] or board.board.python
    contents = formats.read(model)
    given, names = bundling.samples_of(contents, inputs, labels)
    steps, settings = bundling.read_steps(preprocess, names)
    bundling.require_samples_fit(contents, given, steps)
    wanted = bundling.Wanted(name or model.stem, board, root, python, threads, metric, floor_drop, steps, settings)
    place = lowering.writable(out, overwrite)
    if device is None:
        bundling.require_labels(given, metric, None)
        tried = None
    else:
        tried = _try(device, options, contents, wanted, given)
    _, document = bundling.write(place, contents, wanted, given, tried)
    print_json(document) if as_json else _show_bundle(document)
    return 0


def _try(device: str, options: dict[str, Any], contents: Any, wanted: Any, given: Given) -> Any:
    from .. import measure
    from ..tools import bundling

    artifact = bundling.as_artifact(contents, wanted)
    where = where_of(device, options)
    with Display(f"{wanted.name} on {device}") as display:
        session, python = where.open(display)
        with session:
            facts = session.facts()
            measure.require_runtime(facts, artifact.runtime, session.address, python)
            artifact.require_fit(facts["runtimes"], session.address)
            return bundling.try_on(session, artifact, given)


def _prepared(
    model: str, scheme: str, out: Path, to: str | None, profile: str | None, overwrite: bool
) -> tuple[Source, str, Path]:
    """(source, runtime, file to write): all that can be refused before anything heavy is loaded."""
    from ..profile import load
    from ..tools import lowering
    from ..tools.source import open_source

    source = open_source(model)
    board: DeviceProfile | None = load(profile) if profile else None
    runtime, place = lowering.target(source.kind, scheme, out, to, board, overwrite)
    return source, runtime, place


def _samples(
    source: Source, inputs: Path | None, shapes: tuple[tuple[int, ...], ...], scheme: str, labels: str | None = None
) -> Given:
    from ..tools.source import read_samples

    if scheme.startswith("int8") and inputs is None:
        raise ConfigError(f"--scheme {scheme} needs real samples for its ranges: give --inputs FILE.npz")
    return read_samples(source, inputs, shapes, labels)


def _show(document: dict[str, Any]) -> None:
    from ..report import units

    for file in document["files"]:
        click.echo(f"{file['file']}  {units.quantity(file['size_bytes'], 'bytes')}")
    click.echo(f"{document['runtime']} {document['scheme']} of {document['model']}")
    if cut := document.get("prune"):
        (macs, macs_left), (size, size_left) = cut["macs"], cut["parameters"]
        click.echo(
            f"pruned: {units.count(macs_left)} of {units.count(macs)} multiply-accumulates left "
            f"({units.share(macs_left / macs)}), {units.count(size_left)} of {units.count(size)} parameters; "
            + (f"recovered over {cut['epochs']} epochs" if cut["epochs"] else "not recovered")
        )
    for title, lines in _sections(document):
        for number, line in enumerate(lines):
            click.echo(f"  {title if not number else '':<12} {line}")
    click.echo("accuracy was not judged: `edgeopt optimize` does, or `edgeopt bundle --labels` and `edgeopt validate`")


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
        (
            "moved",
            [", ".join(f"{count} {name}" for name, count in moved.items()) or "no explicit transpose or pad"]
            if moved is not None
            else [],
        ),
        (
            "options",
            [", ".join(f"{key} {value}" for key, value in document["options"].items())] if document["options"] else [],
        ),
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


def _noise(sqnr_db: float | None) -> str:
    if sqnr_db is None:
        return ", equal"
    return f", signal to noise {sqnr_db:.1f} dB" + (": MORE NOISE THAN SIGNAL" if sqnr_db < 0 else "")


def _steps(steps: list[dict[str, Any]]) -> str:
    said = [f"{step['op']} " + " ".join(str(value) for key, value in step.items() if key != "op") for step in steps]
    return f", after {', '.join(said)}" if said else ""


def _show_bundle(document: dict[str, Any]) -> None:
    from ..report import units

    click.echo(f"{document['bundle']}  {units.quantity(document['size_bytes'], 'bytes')}")
    click.echo(
        f"{document['name']} {document['release'][:12]}, {document['runtime']}, for {document['profile']}: undecided"
    )
    health = document["health"]
    limits = ["finite outputs"]
    if health["greatest_output_error"] is not None:
        limits.append(f"outputs within {units.share(health['greatest_output_error'])} of their range")
    if health["greatest_median_latency_s"] is not None:
        limits.append(f"median latency up to {units.quantity(health['greatest_median_latency_s'], 's')}")
    if health["least_correct"] is not None:
        limits.append(f"{health['least_correct']} of {health['of']} right")
    kind = "random" if document["samples"]["random"] else "given"
    click.echo(f"  health check   {', '.join(limits)}; on {health['of']} {kind} samples")
    pack = (
        f"{document['evaluation']} samples; reference: this model's own outputs"
        if document["evaluation"]
        else "none; --labels with --device adds one"
    )
    click.echo(f"  to validate    {pack}")
    for mark in document["marks"]:
        click.echo(f"  marked         {mark}")
    click.echo("accuracy was not judged")
