"""edgeopt bench and compare: latency and memory of artifacts on a board."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .common import (
    Boards,
    Where,
    boards_options,
    device_options,
    json_option,
    mode_options,
    power_mode_options,
    print_json,
    verdict_code,
)
from .display import Display
from .keep import Keep, keep_options, keeping, stop_words, stopped
from .many import Done, on_each

if TYPE_CHECKING:
    from ..artifact import Artifact


def input_options(command: Any) -> Any:
    """What the queries are made of, and by how many threads they are run."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Seed of the order of queries."),
        click.option(
            "--threads", type=click.IntRange(1), help="Threads of the runtime; default: the bundle's, else 1."
        ),
        click.option("--random", "use_random", is_flag=True, help="Random tensors instead of real inputs; marked so."),
        click.option(
            "--inputs",
            type=click.Path(path_type=Path),
            help="An .npz of real inputs, an array (n, ...) for each, before preprocessing; default: the bundle's own.",
        ),
    ):
        command = option(command)
    return command


def _options(command: Any) -> Any:
    return mode_options(power_mode_options(input_options(placement_options(keep_options(json_option(command))))))


def placement_options(command: Any) -> Any:
    """What the artifact may ask of its runtime, and what must run there."""
    for option in (
        click.option(
            "--allow-fallback",
            multiple=True,
            metavar="OPERATOR",
            help="May run outside the accelerator that is asked for; again for more, or any.",
        ),
        click.option(
            "--require-int8",
            type=click.FloatRange(0, 1),
            help="Least share of the multiply-accumulates that must be computed in int8: 0.95.",
        ),
        click.option(
            "--option",
            "settings",
            multiple=True,
            callback=_settings,
            metavar="KEY=VALUE",
            help="A setting of the runtime: delegate=/usr/lib/libx.so, provider=XnnpackExecutionProvider, device=NPU.",
        ),
    ):
        command = option(command)
    return command


def _settings(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key or not value:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE, as delegate=/usr/lib/libethosu_delegate.so")
        found[key] = value
    return found


@click.command(short_help="Latency and memory of one model on a board.")
@click.argument("model", type=click.Path(path_type=Path))
@boards_options
@click.option(
    "--operators", is_flag=True, help="Also where each operator ran, in what and how long, in a run of its own."
)
@_options
def bench(model: Path, boards: Boards, keep: Keep, as_json: bool, **how: Any) -> int:
    """Latency and peak memory of MODEL on a board: a bundle, a .tflite, an OpenVINO .xml with its .bin, or an .onnx.

    \b
    Example:
      edgeopt bench model.tflite --random --device ssh://pi@raspberrypi --profile raspberry-pi-4
      edgeopt bench runs/smartwatch-activity/smartwatch-activity.edgeopt
      edgeopt bench model.tflite --random --all-devices
      edgeopt bench model.tflite --inputs real.npz --mode sustained --minutes 30
      edgeopt bench int8.onnx --random --operators --require-int8 0.95
    """
    from ..report import units

    def work(where: Where) -> Done:
        if keep.stop:
            document = stopped(keep.of(where, boards), where, place([model]))
            return Done(document, "stopped", stop_words(document))
        document = _measure([model], where, keep.of(where, boards), **how)
        (result,) = document["results"]
        p50 = units.quantity(result["latency"]["p50_s"]["value"], "s")
        verdict = document.get("verdict")
        said = document.get("reasons") or [f"latency p50 {p50}"]
        code = verdict_code(verdict, allow_undecided=False) if verdict else 0
        return Done(document, verdict or "measured", "; ".join([*said, *result["marks"]]), code)

    return on_each(boards, work, _show, as_json)


@click.command(short_help="Two models in one job, in alternating blocks.")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@device_options
@_options
def compare(first: Path, second: Path, where: Where, keep: Keep, as_json: bool, **how: Any) -> int:
    """Compare FIRST and SECOND (bundles or model files) in one job, in alternating blocks: A B B A.

    \b
    Example:
      edgeopt compare fp32.tflite int8.tflite --random --device ssh://pi@raspberrypi --profile raspberry-pi-4
    """
    if keep.stop:
        document = stopped(keep, where, place([first, second]))
    else:
        document = _measure([first, second], where, keep, **how)
    print_json(document) if as_json else _show(document)
    return 0


def _measure(
    paths: list[Path],
    where: Where,
    keep: Keep,
    inputs: Path | None,
    use_random: bool,
    mode: str,
    minutes: float,
    no_repeat: bool,
    power_mode: dict[str, Any],
    threads: int | None,
    seed: int,
    settings: dict[str, str],
    require_int8: float | None,
    allow_fallback: tuple[str, ...],
    operators: bool = False,
) -> dict[str, Any]:
    from .. import measure, placement, stats

    subject = f"{', '.join(path.name for path in paths)} on {where.device}"
    expected_s = 60 * minutes if mode == stats.SUSTAINED else stats.MODES[mode].min_seconds * len(paths)
    asked = {"models": [str(path) for path in paths], "mode": mode, "seed": seed, "no_repeat": no_repeat}
    with (
        tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as text,
        Display(subject) as display,
        keeping(keep, "compare" if len(paths) == 2 else "bench", asked, expected_s, display) as kept,
    ):
        artifacts, shards = load(paths, inputs, use_random, threads, Path(text), where, settings)
        demand = placement.Demand(require_int8, allow_fallback)
        session, python = where.open(display, *place(paths))
        with session:
            if kept.journal:
                session.keep(kept.journal)
            facts = session.facts()
            for path, artifact in zip(paths, artifacts, strict=True):
                measure.require_runtime(facts, artifact.runtime, session.address, python)
                artifact.require_fit(facts["runtimes"], session.address, path if path.suffix == ".edgeopt" else None)
            ran = [placement.checked(session, one, shards, demand, operators) for one in artifacts]
            given = (session, artifacts, shards, mode, seed, kept.samples)
            if no_repeat or mode == stats.SUSTAINED:
                measure.bench(*given, minutes, power_mode)
            else:
                measure.settled(*given, display.event, power_mode)
            board = {**facts, **where.board(session)}
        return kept.document(
            {
                "device": session.address,
                "board": board,
                "artifacts": [_told(artifact) for artifact in artifacts],
                "operators": [found["operators"] if found and operators else None for found in ran],
                "budgets": _budgets(paths, where),
                "random_inputs": not shards,
            }
        )


def _told(artifact: Artifact) -> dict[str, Any]:
    names = ("name", "runtime", "size_bytes", "sha256")
    return {name: getattr(artifact, name) for name in names}


def _budgets(paths: list[Path], where: Where) -> dict[str, float]:
    """A bundle's own, else those of the board's profile."""
    from .. import bundle

    return dict(bundle.read(paths[0]).manifest.budgets) if paths[0].suffix == ".edgeopt" else where.budgets()


def place(paths: list[Path]) -> tuple[str | None, str | None]:
    """(edgeopt's folder, Python) as the first bundle among `paths` was made for."""
    from .. import bundle

    found = next((bundle.read(path).manifest for path in paths if path.suffix == ".edgeopt"), None)
    return (found.root, found.python) if found else (None, None)


def load(
    paths: list[Path],
    inputs: Path | None,
    use_random: bool,
    threads: int | None,
    folder: Path,
    where: Where | None = None,
    settings: dict[str, str] | None = None,
) -> tuple[list[Artifact], list[bytes]]:
    """The artifacts, and the shards of real inputs (none for random tensors). settings: the runtime's own."""
    from .. import measure
    from ..task import Samples, read_npz

    if inputs is not None and use_random:
        raise ConfigError("--inputs and --random contradict each other; give one")
    loaded = [
        _artifact(path, threads, folder / str(number), where, settings or {}) for number, path in enumerate(paths)
    ]
    artifacts, own = [artifact for artifact, _ in loaded], [shard for _, shard in loaded]
    if use_random:
        for artifact in artifacts:
            artifact.require_fixed_sizes()
        return artifacts, []
    if inputs is not None:
        arrays = tuple(read_npz(inputs, "--inputs").values())
        if len({len(array) if array.ndim else 0 for array in arrays}) != 1 or not len(arrays[0]):
            raise ConfigError(f"--inputs {inputs}: every array needs the same number of samples, at least one")
        return artifacts, measure.shards(Samples(arrays, None, None))
    if None in own:
        bare = paths[own.index(None)]
        raise ConfigError(f"{bare}: a model file brings no inputs; give real ones with --inputs FILE.npz, or --random")
    if len(set(own)) > 1:
        raise ConfigError(
            "the bundles bring different inputs; give one set for both with --inputs FILE.npz, or --random"
        )
    return artifacts, [shard for shard in own[:1] if shard]


def _artifact(
    path: Path, threads: int | None, folder: Path, where: Where | None, settings: dict[str, str]
) -> tuple[Artifact, bytes | None]:
    """(artifact, the inputs that a bundle brings)."""
    import dataclasses

    from .. import artifact, bundle, profile, validate

    if path.suffix != ".edgeopt":
        known = where.profile if where else None
        board = profile.load(known) if isinstance(known, str) else known
        return artifact.of_model(path, threads or 1, options=artifact.options_for(path, board, settings)), None
    opened = bundle.read(path)
    folder.mkdir()
    made = opened.artifact(folder, path.stem, threads)
    return dataclasses.replace(made, options={**made.options, **settings}), validate.health_inputs(opened)


def _show(document: dict[str, Any]) -> None:
    if "stopped" in document:
        click.echo(stop_words(document))
        return
    from rich.console import Console

    from ..report import measured

    measured.render_bench(document, Console())
