"""edgeopt bench and compare: latency and memory of artifacts on a board."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import (
    Boards,
    Where,
    boards_options,
    device_options,
    json_option,
    metric_option,
    mode_options,
    power_mode_options,
    print_json,
    require_labelled,
    verdict_code,
)
from .display import Display, echo, screen
from .keep import Keep, keep_options, keeping, stop_words, stopped
from .many import Done, on_each
from .queries import Queries, load, made_for, query_options

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..device.session import Session
    from ..task import Array


def _options(command: Any) -> Any:
    scored = metric_option("each model's score on the board is told")(json_option(command))
    return mode_options(power_mode_options(query_options(placement_options(keep_options(scored)))))


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


@click.command()
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
            document = stopped(keep.of(where, boards), where, made_for([model]))
            return Done(document, "stopped", stop_words(document))
        document = _measure([model], where, keep.of(where, boards), **how)
        (result,) = document["results"]
        p50 = units.quantity(result["latency"]["p50_s"]["value"], "s")
        verdict = document.get("verdict")
        said = document.get("reasons") or [f"latency p50 {p50}"]
        code = verdict_code(verdict, allow_undecided=False) if verdict else 0
        return Done(document, verdict or "measured", "; ".join([*said, *result["marks"]]), code)

    return on_each(boards, work, _show, as_json)


@click.command()
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
        document = stopped(keep, where, made_for([first, second]))
    else:
        document = _measure([first, second], where, keep, **how)
    print_json(document) if as_json else _show(document)
    return 0


def _measure(
    paths: list[Path],
    where: Where,
    keep: Keep,
    queries: Queries,
    mode: str,
    minutes: float,
    no_repeat: bool,
    power_mode: dict[str, Any],
    settings: dict[str, str],
    require_int8: float | None,
    allow_fallback: tuple[str, ...],
    metric: str | None,
    operators: bool = False,
) -> dict[str, Any]:
    from .. import measure, placement, stats

    require_labelled(queries.inputs, queries.labels, metric)
    subject = f"{', '.join(path.name for path in paths)} on {where.device}"
    expected_s = 60 * minutes if mode == stats.SUSTAINED else stats.MODES[mode].min_seconds * len(paths)
    asked = {"models": [str(path) for path in paths], "mode": mode, "seed": queries.seed, "no_repeat": no_repeat}
    with (
        tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as text,
        Display(subject) as display,
        keeping(keep, "compare" if len(paths) == 2 else "bench", asked, expected_s, display) as kept,
    ):
        loaded = load(paths, queries, Path(text), where, settings)
        artifacts, shards = loaded.artifacts, loaded.shards
        demand = placement.Demand(require_int8, allow_fallback)
        session, python = where.open(display, made_for(paths))
        with session:
            if kept.journal:
                session.keep(kept.journal)
            facts = session.facts()
            for path, artifact in zip(paths, artifacts, strict=True):
                measure.require_runtime(facts, artifact.runtime, session.address, python)
                artifact.require_fit(facts["runtimes"], session.address, path if path.suffix == ".edgeopt" else None)
            ran = [placement.checked(session, one, shards, demand, operators) for one in artifacts]
            given = (session, artifacts, shards, mode, queries.seed, kept.samples, display.event, power_mode, minutes)
            measure.settled(*given, repeat=not no_repeat)
            scores = [_score(session, one, shards, loaded.labels, metric) for one in artifacts]
            board = {**facts, **where.board(session)}
        return kept.document(
            {
                "device": session.address,
                "board": board,
                "artifacts": [
                    {**_told(own), "inputs": loaded.bound[n], "score": scores[n]} for n, own in enumerate(artifacts)
                ],
                "operators": [found["operators"] if found and operators else None for found in ran],
                "budgets": _budgets(paths, where),
                "random_inputs": queries.random,
            }
        )


def _score(
    session: Session, artifact: Artifact, shards: list[bytes], labels: Array | None, metric: str | None
) -> dict[str, Any] | None:
    """The mean score of what the board answers; None where it was not asked for."""
    from .. import measure
    from ..tools import scoring

    if labels is None or metric is None:
        return None
    value = scoring.mean(measure.outputs(session, artifact, shards), labels, metric)
    return {"metric": metric, "value": value, "n": len(labels)}


def _told(artifact: Artifact) -> dict[str, Any]:
    names = ("name", "runtime", "size_bytes", "sha256")
    return {name: getattr(artifact, name) for name in names}


def _budgets(paths: list[Path], where: Where) -> dict[str, float]:
    """A bundle's own, else those of the board's profile."""
    from .. import bundle

    return dict(bundle.read(paths[0]).manifest.budgets) if paths[0].suffix == ".edgeopt" else where.budgets()


def _show(document: dict[str, Any]) -> None:
    if "stopped" in document:
        echo(stop_words(document))
        return
    from ..report import measured

    measured.render_bench(document, screen())
