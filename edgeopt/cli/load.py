"""edgeopt load: throughput by streams and batches, latency under random arrivals, slow inputs."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from .common import Where, device_options, json_option, power_mode_options, print_json, repeat_option
from .display import Display, echo, screen
from .keep import Keep, keep_options, keeping, stop_words, stopped
from .queries import Queries, made_for, query_options
from .queries import load as load_inputs

MOST_STREAMS, MOST_BATCH = 64, 4096


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--streams",
    type=click.IntRange(1, MOST_STREAMS),
    multiple=True,
    help="So many copies of the model at once; repeat it for several. One is always measured.  [default: 1, cores]",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(2, MOST_BATCH),
    multiple=True,
    help="So many samples a query, one copy of the model; repeat it for several. Of one sample it is always measured.",
)
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="Queries a second that arrive at random (Poisson); repeat it.  [default: 50 and 80 % of what one stream does]",
)
@click.option(
    "--seconds", type=click.FloatRange(1, 3600), default=10.0, show_default=True, help="Length of each measurement."
)
@repeat_option
@device_options
@power_mode_options
@query_options
@keep_options
@json_option
def load(
    model: Path,
    streams: tuple[int, ...],
    batches: tuple[int, ...],
    rates: tuple[float, ...],
    seconds: float,
    no_repeat: bool,
    where: Where,
    power_mode: dict[str, Any],
    queries: Queries,
    keep: Keep,
    as_json: bool,
) -> int:
    """MODEL (a bundle or a model file) under load: how many samples a second, how late the answers come when queries
    arrive at random times, and how much slower the slowest 1 % of real inputs are.

    \b
    Example:
      edgeopt load model.tflite --inputs real.npz --batch 8 --rate 20 --rate 40 --device ssh://pi@raspberrypi
    """
    from .. import load as job
    from .. import measure, placement

    if any(len(set(values)) < len(values) for values in (rates, streams, batches)):
        raise ConfigError("--rate, --streams and --batch: each value once")
    if keep.stop:
        ended = stopped(keep, where, made_for([model]))
        print_json(ended) if as_json else echo(stop_words(ended))
        return 0
    wanted = job.Asked(list(streams), list(batches), list(rates), seconds, queries.seed)
    asked = {"model": str(model), **dataclasses.asdict(wanted), "no_repeat": no_repeat}
    with (
        tempfile.TemporaryDirectory(prefix="edgeopt-load-") as text,
        Display(f"{model.name} on {where.device}") as show,
        keeping(keep, "load", asked, wanted.timed_s(), show) as kept,
    ):
        loaded = load_inputs([model], queries, Path(text), where)
        (artifact,), shards = loaded.artifacts, loaded.shards
        session, python = where.open(show, made_for([model]))
        with session:
            if kept.journal:
                session.keep(kept.journal)
            facts = session.facts()
            measure.require_runtime(facts, artifact.runtime, session.address, python)
            artifact.require_fit(facts["runtimes"], session.address, model if model.suffix == ".edgeopt" else None)
            placement.checked(session, artifact, shards, placement.Demand(), wanted=False)
            if not streams:
                wanted = dataclasses.replace(wanted, streams=[min(MOST_STREAMS, facts["cores_allowed"])])
            job.settled(session, artifact, shards, wanted, kept.samples, show.event, power_mode, repeat=not no_repeat)
            board = {**facts, **where.board(session)}
        names = {
            "name": artifact.name,
            "runtime": artifact.runtime,
            "threads": artifact.threads,
            "inputs": loaded.bound[0],
        }
        document = kept.document({"device": session.address, "board": board, **names, "random_inputs": queries.random})
    print_json(document) if as_json else _show(document)
    return 0


def _show(document: dict[str, Any]) -> None:
    from ..report import under_load

    under_load.render(document, screen())
