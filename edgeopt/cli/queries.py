"""What the queries of bench, compare, load and power are made of: models as artifacts, inputs real or random."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .common import Where, shape_option

if TYPE_CHECKING:
    from ..artifact import Artifact


@dataclasses.dataclass(frozen=True)
class Queries:
    """What the options say. inputs: an .npz; shapes: of random tensors; neither and not `random`: the bundle's own."""

    inputs: Path | None
    random: bool
    shapes: tuple[tuple[int, ...], ...]
    threads: int | None
    seed: int


def query_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--inputs, --random, --shape, --threads and --seed as one `queries` argument."""

    @click.option(
        "--inputs",
        type=click.Path(path_type=Path),
        help="An .npz of real inputs, an array (n, ...) for each, before preprocessing; default: the bundle's own.",
    )
    @click.option("--random", is_flag=True, help="Random tensors instead of real inputs; marked so.")
    @shape_option("Shape of random tensors, for a model whose sizes are free: 1,3,48,320; once per input.")
    @click.option("--threads", type=click.IntRange(1), help="Threads of the runtime; default: the bundle's, else 1.")
    @click.option("--seed", default=0, show_default=True, help="Seed of the order of queries.")
    @functools.wraps(command)
    def wrapped(
        inputs: Path | None,
        random: bool,
        shapes: tuple[tuple[int, ...], ...],
        threads: int | None,
        seed: int,
        **options: Any,
    ) -> Any:
        if inputs is not None and (random or shapes):
            raise ConfigError(f"--inputs and {'--random' if random else '--shape'} contradict each other; give one")
        return command(queries=Queries(inputs, random or bool(shapes), shapes, threads, seed), **options)

    return wrapped


def made_for(paths: list[Path]) -> str | None:
    """The profile that the first bundle among `paths` names; None where there is no bundle."""
    from .. import bundle

    return next((bundle.read(path).manifest.profile for path in paths if path.suffix == ".edgeopt"), None)


def load(
    paths: list[Path], queries: Queries, folder: Path, where: Where, settings: dict[str, str] | None = None
) -> tuple[list[Artifact], list[bytes]]:
    """The artifacts, and the shards of their inputs (none: the board makes up random tensors).

    settings: the runtime's own.
    """
    from .. import measure
    from ..task import Samples, read_npz

    loaded = [
        _artifact(path, queries.threads, folder / str(number), where, settings or {})
        for number, path in enumerate(paths)
    ]
    artifacts, own = [artifact for artifact, _ in loaded], [shard for _, shard in loaded]
    if queries.shapes:
        return _shaped(artifacts, queries.shapes)
    if queries.random:
        for artifact in artifacts:
            artifact.require_fixed_sizes()
        return artifacts, []
    if queries.inputs is not None:
        arrays = tuple(read_npz(queries.inputs, "--inputs").values())
        if len({len(array) if array.ndim else 0 for array in arrays}) != 1 or not len(arrays[0]):
            raise ConfigError(f"--inputs {queries.inputs}: every array needs the same number of samples, at least one")
        return artifacts, measure.shards(Samples(arrays, None, None))
    if None in own:
        bare = paths[own.index(None)]
        raise ConfigError(f"{bare}: a model file brings no inputs; give real ones with --inputs FILE.npz, or --random")
    if len(set(own)) > 1:
        raise ConfigError(
            "the bundles bring different inputs; give one set for both with --inputs FILE.npz, or --random"
        )
    return artifacts, [shard for shard in own[:1] if shard]


def _shaped(artifacts: list[Artifact], shapes: tuple[tuple[int, ...], ...]) -> tuple[list[Artifact], list[bytes]]:
    """As `load`, of random tensors; like those that the board makes up they are what the model itself takes."""
    from .. import formats, measure
    from ..task import Samples
    from ..tools import source

    models = [formats.read(artifact.paths[0], artifact.runtime) for artifact in artifacts]
    arrays = source.random_arrays(models[0], shapes)
    for artifact, contents in zip(artifacts, models, strict=True):
        for problem in source.unfit(contents, arrays):
            raise ConfigError(f"--shape: {artifact.name}: {problem}")
    bare = [dataclasses.replace(artifact, preprocess=[]) for artifact in artifacts]
    return bare, measure.shards(Samples(arrays, None, None))


def _artifact(
    path: Path, threads: int | None, folder: Path, where: Where, settings: dict[str, str]
) -> tuple[Artifact, bytes | None]:
    """(artifact, the inputs that a bundle brings)."""
    from .. import artifact, bundle, validate

    board = where.known_profile()
    if path.suffix != ".edgeopt":
        return artifact.of_model(path, threads or 1, options=artifact.options_for(path, board, settings)), None
    opened = bundle.read(path)
    opened.require_own_libraries(board, settings)
    folder.mkdir()
    made = opened.artifact(folder, path.stem, threads)
    return dataclasses.replace(made, options={**made.options, **settings}), validate.health_inputs(opened)
