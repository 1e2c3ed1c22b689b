"""edgeopt convert, quantize, prune and bundle: one stage each, without the ladder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from ..floor import FLOOR_SAYS
from . import tool_screens
from .common import (
    VERDICT_CODES,
    about_a_board,
    json_option,
    labels_option,
    metric_option,
    print_json,
    require_labelled,
    shape_option,
    where_of,
)
from .display import Display

if TYPE_CHECKING:
    from ..profile import DeviceProfile
    from ..tools.source import Given, Source

RUNTIMES = ("tflite", "openvino", "onnxruntime")
INT8_SCHEMES = ("int8", "int8-mixed", "int8-safe")
REQUIRED = "  [required]"

to_option = click.option(
    "--to", type=click.Choice(RUNTIMES), help="Runtime; default: by --out's suffix, else the profile's first that fits."
)
profile_option = click.option(
    "--profile", help="Profile of the board, whose runtimes are admitted: a name, or a .toml."
)
out_option = click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
accept_error_option = click.option(
    "--accept-error",
    is_flag=True,
    help=f"Write it even if its worst output is below the floor of {FLOOR_SAYS}; without, nothing is written then.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")


def inputs_option(note: str = "") -> Callable[..., Any]:
    """note: what follows the help, as click's own "[required]": what is missing is told in our words."""
    told = "An .npz of real samples: one array (n, ...) per model input, by the input's name; others are left alone."
    return click.option("--inputs", type=click.Path(path_type=Path), help=told + note)


def lowering_options(note: str = "") -> Callable[..., Any]:
    """note: as for inputs_option."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        scored = (metric_option("its score here, beside the source's, is told"), labels_option)
        given = (*scored, inputs_option(note), profile_option, to_option)
        for option in (json_option, accept_error_option, overwrite_option, out_option, *given):
            command = option(command)
        return command

    return add


@click.command()
@click.argument("model")
@lowering_options()
@click.option(
    "--scheme", default="fp32", show_default=True, help="fp32, fp16, fp16-compute, int8, … as the runtime has."
)
@shape_option("Shape of random samples: 1,3,224,224; once per input.")
def convert(model: str, shapes: tuple[tuple[int, ...], ...], as_json: bool, **how: Any) -> int:
    """Convert MODEL (an .onnx file, package.module:factory of torch, or a .tflite) and compare it with its source.

    Without --inputs and --shape an .onnx file of fixed shapes is compared on random samples. Accuracy is not judged.
    An int8 .tflite is compiled for the NPU of --profile; what its compiler estimates is marked simulated.

    \b
    Example:
      edgeopt convert net.onnx --to openvino --out net.xml
      edgeopt convert my_package.models:load --shape 1,3,224,224 --scheme fp16 --out net.tflite
      edgeopt convert int8.tflite --profile imx93-evk --out npu.tflite
    """
    if model.endswith(".tflite") and how["profile"]:
        return _compile(Path(model), shapes, as_json, **how)
    return _lower(model, shapes, as_json, **how)


@click.command()
@click.argument("model")
@lowering_options(REQUIRED)
@click.option(
    "--scheme",
    type=click.Choice(INT8_SCHEMES),
    default="int8",
    show_default=True,
    help="Of openvino also int8-mixed (slower, closer to the source) and int8-safe (for x86 without VNNI, sometimes "
    "closer elsewhere).",
)
def quantize(model: str, as_json: bool, **how: Any) -> int:
    """Convert MODEL (an .onnx file, or package.module:factory of torch) to int8, with --inputs as calibration samples.

    Reports how far each stage is from the source. Accuracy is not judged: that takes `optimize`, or `bundle` with
    --labels and --reference and then `validate`.

    \b
    Example:
      edgeopt quantize net.onnx --inputs calibration.npz --to onnxruntime --out net-int8.onnx
    """
    if how["inputs"] is None:
        raise ConfigError("quantize needs real samples for its ranges: give --inputs FILE.npz")
    return _lower(model, (), as_json, **how)


def _compile(
    model: Path,
    shapes: tuple[tuple[int, ...], ...],
    as_json: bool,
    to: str | None,
    profile: str,
    inputs: Path | None,
    labels: str | None,
    metric: str | None,
    out: Path,
    overwrite: bool,
    accept_error: bool,
    scheme: str,
) -> int:
    from ..profile import load
    from ..tools import lowering, npu

    given = {
        "--to": to not in (None, "tflite"),
        "--inputs": inputs,
        "--shape": shapes,
        "--scheme": scheme != "fp32",
        "--accept-error": accept_error,
    }
    given |= {"--labels": labels is not None, "--metric": metric is not None}
    if wrong := [name for name, value in given.items() if value]:
        raise ConfigError(f"{model}: compiling a .tflite for an NPU takes no {wrong[0]}; leave it out")
    if out.suffix != ".tflite":
        raise ConfigError(f"--out {out}: an artifact for tflite ends in .tflite; rename it")
    place = lowering.writable(out, overwrite)
    with Display(f"{model} for {profile}") as display:
        document = npu.convert(model, load(profile), place, display.event)
    print_json(document) if as_json else tool_screens.show_npu(document)
    return 0


def _lower(
    model: str,
    shapes: tuple[tuple[int, ...], ...],
    as_json: bool,
    to: str | None,
    profile: str | None,
    inputs: Path | None,
    labels: str | None,
    metric: str | None,
    out: Path,
    overwrite: bool,
    accept_error: bool,
    scheme: str,
) -> int:
    from ..tools import lowering

    source, runtime, place = _prepared(model, scheme, out, to, profile, overwrite)
    given = _samples(source, inputs, shapes, scheme, labels, metric)
    with Display(f"{model} to {runtime} {scheme}") as display:
        document = lowering.convert(
            source, given, runtime, scheme, place, Path.cwd(), display.event, accept_error=accept_error
        )
    print_json(document) if as_json else tool_screens.show(document)
    return VERDICT_CODES["fail" if document["refused"] else "pass"]


@click.command()
@click.argument("factory")
@lowering_options(REQUIRED)
@click.option(
    "--keep", multiple=True, metavar="LAYER", help="Layer to leave whole, by its name or a pattern: 'stage1.*'; repeat."
)
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
    accept_error: bool,
    labels: str | None,
    metric: str | None,
    keep: tuple[str, ...],
    ratio: float,
    round_to: int,
    epochs: int,
    scheme: str,
    as_json: bool,
) -> int:
    """Prune the torch model that FACTORY (package.module:function) returns, let it learn the source's answers, convert.

    It learns on the samples of --inputs. Before it learns, it must answer as the source does with the cut channels at
    0: layers where it does not are left whole, and named. Accuracy is not judged: that takes `optimize`, or `bundle`
    with --labels and --reference and then `validate`.

    \b
    Example:
      edgeopt prune my_package.models:load --inputs train.npz --labels label --ratio 0.3 --to tflite --out small.tflite
    """
    from ..plan import Prune, Recover
    from ..tools import pruning

    if inputs is None:
        raise ConfigError("prune needs real samples to recover on: give --inputs FILE.npz")
    source, runtime, place = _prepared(factory, scheme, out, to, profile, overwrite)
    given = _samples(source, inputs, (), scheme, labels, metric)
    recover = Recover(epochs, 1e-3, 64, 0) if epochs else None
    with Display(f"{factory} pruned to {runtime} {scheme}") as display:
        document = pruning.prune(
            source,
            given,
            Prune(ratio, round_to, keep=keep),
            recover,
            runtime,
            scheme,
            place,
            Path.cwd(),
            display.event,
            metric=metric,
            accept_error=accept_error,
        )
    print_json(document) if as_json else tool_screens.show(document)
    return VERDICT_CODES["fail" if document["refused"] else "pass"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@out_option
@overwrite_option
@inputs_option()
@shape_option("Shape of random samples, for a model whose sizes are free: 1,3,48,320; once per input.")
@labels_option
@metric_option("validate can judge the bundle")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="The .onnx file that MODEL was made from, run here on the same samples; then validate's drop is the loss "
    "against it.",
)
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
@accept_error_option
@json_option
def bundle(
    model: Path,
    out: Path,
    overwrite: bool,
    accept_error: bool,
    inputs: Path | None,
    shapes: tuple[tuple[int, ...], ...],
    labels: str | None,
    metric: str | None,
    reference: Path | None,
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
    validated: against --reference, or else against the model's own outputs, so that a drop says what changed since.
    Answers that are noise beside those of --reference are refused.

    \b
    Example:
      edgeopt bundle vendor.tflite --profile raspberry-pi-4 --out vendor.edgeopt
      edgeopt bundle net.xml --profile intel-n100 --out n.edgeopt --inputs t.npz --labels y --metric top1 --device n100
      edgeopt bundle q.onnx --reference net.onnx --inputs t.npz --labels y --metric top1 --device pi --out q.edgeopt
    """
    from .. import formats, profile
    from ..artifact import options_for
    from ..tools import bundling, feeding, lowering
    from ..tools import reference as references

    known = options["profile"] or (where_of(device, dict(options)).profile if device else None)
    if known is None:
        raise ConfigError("bundle needs the board's profile: name it with --profile (`edgeopt profiles list`)")
    board = profile.load(str(known))
    root, python = options["root"] or board.board.root, options["board_python"] or board.board.python
    contents = formats.read(model)
    given, names = bundling.samples_of(contents, inputs, shapes, labels)
    steps, settings = bundling.read_steps(preprocess, names)
    if preprocess is None and not given.is_random:
        steps = feeding.own_steps(contents, given.arrays)
    settings = options_for(model, board, settings)
    feeding.require_fit(contents, given, steps)
    wanted = bundling.Wanted(name or model.stem, board, root, python, threads, metric, floor_drop, steps, settings)
    bundling.require_wanted(contents, wanted)
    bundling.require_labels(given, metric, device is not None, reference is not None)
    place = lowering.writable(out, overwrite)
    ran = references.run(reference, given, names, steps) if reference else None
    tried = _try(device, options, contents, wanted, given) if device else None
    if tried and ran and not accept_error and (why := bundling.refusal(contents, tried, ran)):
        return _refused({"bundle": None, "reference": str(reference), "refused": why}, as_json)
    _, document = bundling.write(place, contents, wanted, given, tried, ran)
    print_json(document) if as_json else tool_screens.show_bundle(document)
    return 0


def _refused(document: dict[str, Any], as_json: bool) -> int:
    print_json(document) if as_json else tool_screens.show_refused_bundle(document)
    return VERDICT_CODES["fail"]


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
            return bundling.try_on(session, artifact, given, where.board(session))


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
    source: Source,
    inputs: Path | None,
    shapes: tuple[tuple[int, ...], ...],
    scheme: str,
    labels: str | None,
    metric: str | None,
) -> Given:
    from ..tools.source import read_samples

    require_labelled(inputs, labels, metric)
    if scheme.startswith("int8") and inputs is None:
        raise ConfigError(f"--scheme {scheme} needs real samples for its ranges: give --inputs FILE.npz")
    return read_samples(source, inputs, shapes, labels, metric)
