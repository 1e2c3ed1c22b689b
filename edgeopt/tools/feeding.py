"""Real samples for artifacts: which array of a file is which input, and the steps between the two.

An artifact of our own conversion says which inputs its source had and in which layout, so that it is given the samples
that the source is given; any other takes samples as its own inputs are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt_agent import preprocess as operations
from edgeopt_agent.wire import RemoteError

from edgeopt import formats
from edgeopt.artifact import Artifact
from edgeopt.errors import ConfigError
from edgeopt.task import Array

from .source import Given, fits, no_axes, read_inputs

Steps = list[list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Taker:
    """An artifact that is to be given samples. names: of its inputs, if they are known elsewhere than in its file;
    steps: whether its preprocess steps are settled, as a bundle's are."""

    artifact: Artifact
    names: tuple[str, ...] = ()
    is_settled: bool = False


def feed(takers: Sequence[Taker], path: Path, labels: str | None) -> tuple[Given, list[Artifact], list[dict[str, Any]]]:
    """(the samples, the artifacts with the steps that take them, JSON-able per artifact: which array each input takes).

    All artifacts are given the same arrays in the same order. Raises ConfigError where one of them takes others.
    """
    first: Given | None = None
    artifacts, told = [], []
    for taker in takers:
        own = taker.artifact
        contents = formats.read(own.paths[0], own.runtime)
        names = taker.names if len(taker.names) == len(contents.inputs) else contents.names
        given = read_inputs(path, labels, names)
        assert given.binding is not None
        first = first or given
        if given.names != first.names:
            raise ConfigError(
                f"--inputs {path}: {takers[0].artifact.name} takes the arrays {', '.join(first.names)}, and {own.name} "
                f"takes {', '.join(given.names)}; two models can be compared that take the same inputs in one order"
            )
        steps = own.preprocess if taker.is_settled and own.preprocess else own_steps(contents, given.arrays)
        if taker.is_settled:
            require_fit(contents, given, steps)
        artifacts.append(dataclasses.replace(own, preprocess=steps))
        told.append({**given.binding.entry(), "steps": steps})
    assert first is not None
    return first, artifacts, told


def own_steps(contents: formats.Contents, arrays: Sequence[Array]) -> Steps:
    """Per input the steps from samples, each (n, ...), to what the artifact takes: those that its conversion tells of,
    where the samples are the source's; none where they are the artifact's own.

    Raises ConfigError where neither fits.
    """
    found = []
    for number, (port, array) in enumerate(zip(contents.inputs, arrays, strict=True)):
        told = [list(contents.fed[number].steps)] if contents.fed else []
        fitting = [steps for steps in (*told, []) if _takes(port, array, steps)]
        if not fitting:
            raise ConfigError(_unfit(contents, number, array, told[0] if told else []))
        found.append(fitting[0])
    return found


def require_fit(contents: formats.Contents, given: Given, steps: Steps) -> None:
    """Raises ConfigError when a sample after its steps is not what the model takes."""
    for number, (port, array, own) in enumerate(zip(contents.inputs, given.arrays, steps, strict=True)):
        try:
            ready = operations.apply(own, array[:1])
        except RemoteError as error:
            raise ConfigError(f"{contents.path}: input '{port.name}': {error}") from error
        if not (fits(port.shape, ready.shape) and port.dtype == ready.dtype.name):
            raise ConfigError(_unfit(contents, number, ready, [], "after its preprocess steps " if own else ""))


def describe(path: Path, given: Given, steps: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Lets a TFLite artifact say which inputs of the source it has, after which steps: its own names do not."""
    if path.suffix == ".tflite" and given.binding is not None:
        from edgeopt.lower import tflite_inputs

        tflite_inputs.describe(path, given.binding.inputs, steps)


def _takes(port: formats.Port, array: Array, steps: Sequence[dict[str, Any]]) -> bool:
    try:
        ready = operations.apply(list(steps), array[:1])
    except RemoteError:
        return False
    return fits(port.shape, ready.shape) and port.dtype == ready.dtype.name


def _unfit(
    contents: formats.Contents, number: int, sample: Array, steps: Sequence[dict[str, Any]], done: str = ""
) -> str:
    port = contents.inputs[number]
    if not port.shape:
        return f"{contents.path}: {no_axes(contents, port)}"
    named = f"'{contents.fed[number].name}' of the source, which is {port}" if contents.fed else f"{port}"
    tried = f", as it is and after {' and '.join(str(step['op']) for step in steps)}," if steps else ""
    return (
        f"{contents.path}: input {named}, but a sample {done}is {sample.dtype} {[1, *sample.shape[1:]]}{tried}; change "
        "the samples, or give steps with --preprocess of `edgeopt bundle`"
    )
