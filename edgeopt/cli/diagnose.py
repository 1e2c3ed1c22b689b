"""edgeopt diagnose: where a model's answers part from what they should be."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .common import VERDICT_CODES, Where, device_options, json_option, print_json
from .display import Display, echo, screen

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..device.session import Session


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@device_options
@click.option(
    "--golden",
    type=click.Path(path_type=Path),
    help="Write the bundle's golden samples into this folder, for your application to prepare, and stop.",
)
@click.option(
    "--prepared",
    type=click.Path(path_type=Path),
    help="An .npz of what your application made of the golden samples: input0, …, a row for each.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="The float model of the same runtime (a run's candidates/fp32), to compare every layer with.",
)
@click.option("--host-python", help="A Python of this machine that has the runtime; default: edgeopt's own.")
@click.option(
    "--samples", type=click.IntRange(1, 64), default=4, show_default=True, help="Samples that every layer is seen with."
)
@json_option
def diagnose(
    bundle: Path,
    where: Where,
    golden: Path | None,
    prepared: Path | None,
    reference: Path | None,
    host_python: str | None,
    samples: int,
    as_json: bool,
) -> int:
    """Find where the model of BUNDLE parts from what it should answer, and say what to try.

    First your application's preparation of the bundle's golden samples (with --prepared), then the layer where the
    board parts from this machine, then the layers where int8 parts from float. Exit code 10 when a fault is found.

    \b
    Example:
      edgeopt diagnose watch.edgeopt --golden golden
      edgeopt diagnose watch.edgeopt --prepared made-on-board.npz --device ssh://pi@raspberrypi
      edgeopt diagnose watch.edgeopt --reference runs/watch/candidates/fp32/model.tflite --device ssh://pi@raspberrypi
    """
    from .. import bundle as bundles

    opened = bundles.read(bundle)
    if golden is not None:
        return _write_golden(opened, golden, as_json)
    document = _run(opened, where, prepared, reference, host_python, samples)
    print_json(document) if as_json else _show(document)
    return VERDICT_CODES[document["verdict"]]


def _write_golden(opened: Bundle, folder: Path, as_json: bool) -> int:
    from ..diagnose import prepared

    written = prepared.write_golden(opened, folder)
    if as_json:
        print_json(written)
        return 0
    echo(f"{len(written['files'])} golden files in {folder}: {', '.join(written['files'])}")
    echo("Let your application prepare them in this order, and save what it hands to the model as an .npz:")
    for name, told in written["expected"].items():
        kind, *shape = told
        after = "after the bundle's preprocess steps" if name.startswith("model") else "before them"
        echo(f"  input{name.removeprefix('model').removeprefix('input')}  {kind} {shape}  {after}")
    echo("Then: edgeopt diagnose BUNDLE --prepared FILE.npz (expected.npz holds what it should be)")
    return 0


def _run(
    opened: Bundle, where: Where, prepared: Path | None, reference: Path | None, host_python: str | None, samples: int
) -> dict[str, Any]:
    from .. import measure, placement
    from ..diagnose import run

    manifest = opened.manifest
    runtime = manifest.artifact.runtime
    asked = placement.accelerator(runtime, manifest.artifact.options)
    opened.require_own_libraries(where.known_profile())
    with Display(f"diagnosis of {manifest.name} on {where.device}") as display:
        session, python = where.open(display, manifest.profile)
        with session, _host(where, python, host_python, runtime, asked, display) as (host, why_none):
            facts = session.facts()
            measure.require_runtime(facts, runtime, session.address, python)
            document = run.diagnose(session, host, why_none, opened, run.Asked(reference, prepared, samples))
            return {**document, "board": where.board(session), "host": host is not None}


@contextlib.contextmanager
def _host(
    where: Where, board_python: str, host_python: str | None, runtime: str, accelerator: str | None, display: Display
) -> Iterator[tuple[Session | None, str]]:
    """(a session with this machine, why there is none)."""
    from ..device import open_transport, parse_address
    from ..device.session import Placement, Session

    if accelerator is not None:
        yield None, f"the artifact asks for the accelerator '{accelerator}', which is the board's; it is not run here"
        return
    python = host_python or sys.executable
    if where.address().host is None and board_python == python:
        yield None, "the board is this machine, with the same Python"
        return
    with tempfile.TemporaryDirectory(prefix="edgeopt-host-") as folder:
        transport = open_transport(parse_address("local"))
        with Session(transport, Placement(folder, python), on_event=display.event) as session:
            if session.facts()["runtimes"].get(runtime) is not None:
                yield session, ""
                return
            if host_python is not None:
                raise ConfigError(f"--host-python {host_python}: runtime '{runtime}' is not installed for it")
            yield None, f"runtime '{runtime}' is not installed here; pip install 'edgeopt[{_extra(runtime)}]'"


def _extra(runtime: str) -> str:
    return {"onnxruntime": "onnx"}.get(runtime, runtime)


def _show(document: dict[str, Any]) -> None:
    from ..report import diagnosis

    diagnosis.render(document, screen())
