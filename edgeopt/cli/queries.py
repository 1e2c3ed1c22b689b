"""What the queries of bench, compare, load and power are made of: models as artifacts, inputs real or random."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .common import Where, labels_option, require_labelled, shape_option

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..task import Array
    from ..tools import feeding


@dataclasses.dataclass(frozen=True)
class Queries:
    """What the options say. inputs: an .npz; labels: of its arrays, the one that no model takes; shapes: of random
    tensors; neither and not `random`: the bundle's own."""

    inputs: Path | None
    labels: str | None
    random: bool
    shapes: tuple[tuple[int, ...], ...]
    threads: int | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Loaded:
    """shards: of the artifacts' inputs (none: the board makes up random tensors). bound: per artifact which array of
    --inputs each input takes and after which steps, None without --inputs. labels: (n, ...), where they are named."""

    artifacts: list[Artifact]
    shards: list[bytes]
    bound: list[dict[str, Any] | None]
    labels: Array | None = None


def query_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--inputs, --labels, --random, --shape, --threads and --seed as one `queries` argument."""

    @click.option(
        "--inputs",
        type=click.Path(path_type=Path),
        help="An .npz of real inputs: one array (n, ...) per input of the source model, by the input's name; others "
        "are left alone. Default: the bundle's own.",
    )
    @labels_option
    @click.option("--random", is_flag=True, help="Random tensors instead of real inputs; marked so.")
    @shape_option("Shape of random tensors, for a model whose sizes are free: 1,3,48,320; once per input.")
    @click.option("--threads", type=click.IntRange(1), help="Threads of the runtime; default: the bundle's, else 1.")
    @click.option("--seed", default=0, show_default=True, help="Seed of the order of queries.")
    @functools.wraps(command)
    def wrapped(
        inputs: Path | None,
        labels: str | None,
        random: bool,
        shapes: tuple[tuple[int, ...], ...],
        threads: int | None,
        seed: int,
        **options: Any,
    ) -> Any:
        if inputs is not None and (random or shapes):
            raise ConfigError(f"--inputs and {'--random' if random else '--shape'} contradict each other; give one")
        require_labelled(inputs, labels, None)
        return command(queries=Queries(inputs, labels, random or bool(shapes), shapes, threads, seed), **options)

    return wrapped


def made_for(paths: list[Path]) -> str | None:
    """The profile that the first bundle among `paths` names; None where there is no bundle."""
    from .. import bundle

    return next((bundle.read(path).manifest.profile for path in paths if path.suffix == ".edgeopt"), None)


def load(
    paths: list[Path], queries: Queries, folder: Path, where: Where, settings: dict[str, str] | None = None
) -> Loaded:
    """The artifacts and their inputs. settings: the runtime's own. Raises ConfigError, ModelError, IntegrityError."""
    from .. import measure
    from ..task import Samples
    from ..tools import feeding

    opened = [
        _artifact(path, queries.threads, folder / str(number), where, settings or {})
        for number, path in enumerate(paths)
    ]
    artifacts, own = [taker.artifact for taker, _ in opened], [shard for _, shard in opened]
    nothing: list[dict[str, Any] | None] = [None] * len(paths)
    if queries.shapes:
        return Loaded(*_shaped(artifacts, queries.shapes), nothing)
    if queries.random:
        for artifact in artifacts:
            artifact.require_fixed_sizes()
        return Loaded(artifacts, [], nothing)
    if queries.inputs is not None:
        given, artifacts, bound = feeding.feed([taker for taker, _ in opened], queries.inputs, queries.labels)
        return Loaded(artifacts, measure.shards(Samples(given.arrays, None, None)), list(bound), given.labels)
    if None in own:
        bare = paths[own.index(None)]
        raise ConfigError(f"{bare}: a model file brings no inputs; give real ones with --inputs FILE.npz, or --random")
    if len(set(own)) > 1:
        raise ConfigError(
            "the bundles bring different inputs; give one set for both with --inputs FILE.npz, or --random"
        )
    return Loaded(artifacts, [shard for shard in own[:1] if shard], nothing)


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
) -> tuple[feeding.Taker, bytes | None]:
    """(the artifact as one that takes samples, the inputs that a bundle brings)."""
    from .. import artifact, bundle, validate
    from ..tools import feeding

    board = where.known_profile()
    if path.suffix != ".edgeopt":
        options = artifact.options_for(path, board, settings)
        return feeding.Taker(artifact.of_model(path, threads or 1, options=options)), None
    opened = bundle.read(path)
    opened.require_own_libraries(board, settings)
    folder.mkdir()
    made = opened.artifact(folder, path.stem, threads)
    made = dataclasses.replace(made, options={**made.options, **settings})
    told = opened.manifest.lineage.get("inputs")
    names = tuple(told) if isinstance(told, list) and all(isinstance(name, str) for name in told) else ()
    return feeding.Taker(made, names, is_settled=True), validate.health_inputs(opened)
