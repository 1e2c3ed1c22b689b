"""What the tools are given: a torch factory or an .onnx file, and samples (n, ...) of each of its inputs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import determinism, formats, model, onnx_model, parity, signature
from edgeopt.binding import Binding, Takes, bind
from edgeopt.errors import ConfigError, MissingDependency, ModelError
from edgeopt.task import Array, check_labels, check_outputs, read_npz

if TYPE_CHECKING:
    import torch

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
RANDOM_SAMPLES = parity.SAMPLES
SHOWN_NODES = 3
MEND_TORCH = "; give samples with --inputs, or --shape, in the shapes and types that the model takes"


@dataclass(frozen=True)
class Source:
    """A source model before it is loaded. contents: of an .onnx file; None for a torch factory."""

    named: str
    contents: formats.Contents | None

    @property
    def kind(self) -> str:
        return "torch" if self.contents is None else "onnx"

    def load(self, folder: Path) -> torch.nn.Module | Path:
        """The torch module, its factory looked up from `folder`, or the .onnx file's path.

        Raises MissingDependency, ConfigError, ModelError.
        """
        if self.contents is not None:
            return self.contents.path
        try:
            return model.load_torch(self.named, folder, {})
        except (ConfigError, ModelError, MissingDependency) as error:
            raise type(error)(str(error).replace("[model] torch = ", "MODEL ").replace("[model] ", "")) from error


@dataclass(frozen=True)
class Given:
    """Samples, one array (n, ...) per input in the model's order, and labels where they were named.

    Of a torch factory's inputs nothing is known before it is called: until then there is every array of the file that
    could be one. binding: which array is which input; outputs: what the source calls its outputs, where it does.
    metric: how answers are compared with the labels; reference: the source's, if they are to be.
    """

    arrays: tuple[Array, ...]
    labels: Array | None
    is_random: bool
    names: tuple[str, ...] = ()
    binding: Binding | None = None
    outputs: tuple[str, ...] = ()
    what: str = "--inputs"
    metric: str | None = None
    reference: tuple[Array, ...] = ()
    objects: tuple[str, ...] = ()  # arrays of the file that are not even read

    def __len__(self) -> int:
        return len(self.arrays[0])

    def bound(self, binding: Binding) -> Given:
        """Its arrays as `binding` says. Raises ConfigError where they are no samples."""
        own = dict(zip(self.names, self.arrays, strict=True))
        chosen = {name: own[name] for name in binding.arrays}
        require_rows(chosen, self.labels, self.what)
        binding = dataclasses.replace(binding, left=(*binding.left, *self.objects))
        return dataclasses.replace(self, arrays=tuple(chosen.values()), names=binding.arrays, binding=binding)

    def answered(self, run: Callable[[tuple[Array, ...]], tuple[Array, ...]]) -> Given:
        """With the source's answers, where they are to be compared with labels. Raises ConfigError for wrong labels."""
        if self.metric is None:
            return self
        reference = run(self.arrays)
        check_labels(self.labels, self.metric, None)
        check_outputs(reference, self.labels, self.metric, 0)
        return dataclasses.replace(self, reference=reference)

    def entry(self) -> dict[str, Any]:
        """Which array each input takes, JSON-able; nothing of random samples."""
        return {} if self.is_random or self.binding is None else self.binding.entry()


def open_source(text: str) -> Source:
    """What MODEL names. Raises ConfigError, ModelError for an .onnx file that is not whole."""
    path = Path(text)
    if path.suffix == ".onnx":
        return Source(text, formats.read(path))
    if path.suffix in formats.RUNTIME_OF:
        npu = "; an int8 .tflite can be compiled for the NPU of a --profile that has one"
        raise ConfigError(
            f"{text}: it is an artifact already; a source model is an .onnx file, or package.module:factory"
            + (npu if path.suffix == ".tflite" else "")
        )
    if not FACTORY.fullmatch(text):
        raise ConfigError(f"MODEL {text}: neither an .onnx file nor package.module:factory, a function that returns it")
    return Source(text, None)


def read_samples(
    source: Source,
    inputs: Path | None,
    shapes: Sequence[tuple[int, ...]],
    labels: str | None,
    metric: str | None = None,
) -> Given:
    """Samples from --inputs, random ones of --shape, or of the .onnx file's own shapes.

    metric: how answers are to be compared with the labels. Raises ConfigError; ModelError where the model's shapes are
    free or do not fit.
    """
    if inputs is not None and shapes:
        raise ConfigError("--inputs and --shape contradict each other; give one")
    if inputs is None:
        given = Given(_random(source, shapes), None, True)
    elif source.contents is None:
        given = _candidates(inputs, labels)
    else:
        given = read_inputs(inputs, labels, [port.name for port in source.contents.inputs])
    if source.contents is not None:
        for problem in unfit(source.contents, given.arrays):
            raise ModelError(f"{source.named}: {problem}")
    return dataclasses.replace(given, metric=metric)


def read_inputs(path: Path, labels: str | None, names: Sequence[str]) -> Given:
    """The arrays of an .npz that are a model's inputs, which are called `names`; the others are left alone.

    Raises ConfigError.
    """
    given = _candidates(path, labels)
    return given.bound(bind(Takes(tuple(names), tuple(names)), given.names, given.what))


def _candidates(path: Path, labels: str | None) -> Given:
    """Every array of the file that could be an input, and the labels."""
    objects: list[str] = []
    arrays = read_npz(path, "--inputs", objects)
    if labels is not None and labels not in arrays:
        raise ConfigError(f"--labels {labels}: {path} has no such array; it has: {', '.join(arrays)}")
    own = {name: array for name, array in arrays.items() if name != labels}
    if not own:
        raise ConfigError(f"--inputs {path}: it holds no array that could be an input")
    truth = None if labels is None else arrays[labels]
    return Given(tuple(own.values()), truth, False, tuple(own), what=f"--inputs {path}", objects=tuple(objects))


def require_rows(arrays: Mapping[str, Array], labels: Array | None, what: str) -> None:
    """Raises ConfigError where arrays and labels are not as many samples each, or an array holds no numbers."""
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if labels is not None:
        counts["the labels"] = len(labels) if labels.ndim else 0
    if len(set(counts.values())) != 1 or 0 in counts.values():
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ConfigError(f"{what}: every array needs the same number of samples, at least one; found {told}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"{what}: array '{name}' has type {array.dtype}; numbers are needed")


def load(source: Source, given: Given, folder: Path) -> tuple[torch.nn.Module | Path, Given]:
    """(the model, called by position; its samples in its order), after a few of them have shown that it gives one
    answer to each, whatever else is in its batch. folder: where a torch factory is looked up.

    Raises MissingDependency, ConfigError, ModelError.
    """
    loaded = source.load(folder)
    try:
        if isinstance(loaded, Path):
            determinism.check(loaded, given.arrays)
            return loaded, given.answered(lambda arrays: onnx_model.run(loaded, arrays, model.untold))
        given = _bound_to(loaded, given)
        assert given.binding is not None
        module = signature.by_position(loaded, given.binding.inputs)
        determinism.check(module, given.arrays)
        given = dataclasses.replace(given, outputs=model.output_names(module, given.arrays))
        return module, given.answered(lambda arrays: model.run_torch(module, arrays))
    except ModelError as error:
        raise ModelError(str(error).replace(model.MEND_INPUTS, MEND_TORCH)) from error


def _bound_to(module: torch.nn.Module, given: Given) -> Given:
    """The samples in the order of the inputs that a torch module names."""
    takes = signature.takes(module)
    if given.is_random and takes.rest == "keywords":
        raise ConfigError("--shape: the model takes its inputs by name; give samples with --inputs, which has names")
    if given.is_random:
        names = [f"--shape {number}" for number in range(len(given.arrays))]
        return dataclasses.replace(given, binding=bind(takes, names, "--shape", is_ordered=True))
    if not takes.names and takes.rest == "keywords" and signature.is_dictionary(module):
        named = zip(given.names, given.arrays, strict=True)
        rows = {name: array[:1] for name, array in named if array.ndim and array.dtype.kind in "fiub"}
        with model.user_code("running the source model on one sample of every array by its name", model.MEND_INPUTS):
            read = signature.keys_read(module, rows)
        takes = Takes(read, read)
    return given.bound(bind(takes, given.names, given.what))


def require_torch_runs(module: torch.nn.Module, arrays: Sequence[Array]) -> None:
    """Raises ModelError naming the user's line when the module does not take these samples."""
    try:
        model.run_torch(module, tuple(array[:1] for array in arrays))
    except ModelError as error:
        raise ModelError(str(error).replace(model.MEND_INPUTS, MEND_TORCH)) from error


def random_array(shape: Sequence[int], dtype: str, count: int) -> Array:
    """(count, *shape[1:]), always the same: floats of mean 0 and variance 1, whole numbers 0 and 1."""
    rng = np.random.default_rng(0)
    size = (count, *shape[1:])
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ModelError(f"an input of type {dtype} cannot be made up; give samples with --inputs") from error
    return rng.normal(size=size).astype(kind) if kind.kind == "f" else rng.integers(0, 2, size=size).astype(kind)


def _random(source: Source, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    if source.contents is not None:
        return random_arrays(source.contents, shapes)
    _require_samples(shapes)
    if not shapes:
        raise ConfigError("give samples with --inputs FILE.npz, or --shape 1,3,224,224 for random ones, once per input")
    return tuple(random_array(shape, "float32", RANDOM_SAMPLES) for shape in shapes)


def random_arrays(contents: formats.Contents, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    """Random samples (n, ...) of each input, in `shapes` (each of one sample), or else in the model's own.

    Raises ConfigError; ModelError where a size is free and no shape is given.
    """
    _require_samples(shapes)
    ports = contents.inputs
    if shapes and len(shapes) != len(ports):
        raise ConfigError(f"--shape is given {len(shapes)} times, the model takes {len(ports)} inputs: {_names(ports)}")
    for port in ports if not shapes else ():
        if None in port.shape[1:] or not port.shape:
            raise ModelError(
                f"{contents.path}: input {port} has sizes that are free; fix them with --inputs FILE.npz, whose "
                "samples have the sizes that the board will see, or with --shape"
            )
    wanted = shapes or [tuple(size or 1 for size in port.shape) for port in ports]
    return tuple(random_array(shape, port.dtype, RANDOM_SAMPLES) for shape, port in zip(wanted, ports, strict=True))


def _require_samples(shapes: Sequence[tuple[int, ...]]) -> None:
    for shape in shapes:
        if len(shape) < 1 or shape[0] != 1 or min(shape) < 1:
            raise ConfigError(
                f"--shape {','.join(map(str, shape))}: the first size is the sample's and must be 1: 1,3,224,224"
            )


def unfit(contents: formats.Contents, arrays: Sequence[Array]) -> list[str]:
    """Why the samples, each (n, ...), are not what the model takes, in words."""
    ports = contents.inputs
    if len(ports) != len(arrays):
        return [f"it takes {len(ports)} inputs ({_names(ports)}), {len(arrays)} arrays were given; give one for each"]
    found = []
    for port, array in zip(ports, arrays, strict=True):
        if not port.shape:
            found.append(no_axes(contents, port))
        elif port.shape[0] not in (None, 1):
            found.append(
                f"input {port} has a batch that is fixed at {port.shape[0]}; artifacts take one sample at a time: "
                "export the model with a batch of 1, or a free one"
            )
        elif len(port.shape) != array.ndim or not fits(port.shape[1:], array.shape[1:]):
            found.append(f"input {port}, but the samples are {array.dtype} {list(array.shape)}, the sample first")
        elif port.dtype != array.dtype.name:
            found.append(
                f"input {port}, but the samples are {array.dtype}; save them as {port.dtype}: "
                f"array.astype('{port.dtype}')"
            )
    return found


def no_axes(contents: formats.Contents, port: formats.Port) -> str:
    """Why an input of rank 0 cannot be given samples, in words."""
    takers = [f"'{own.node}' ({own.kind})" for own in contents.operators if port.name in own.takes]
    return (
        f"input {port} is a single number without axes, used by node {', '.join(takers[:SHOWN_NODES])}, and every "
        "sample has a value of its own along its first axis; export the model with an input of shape [1] or ['n', 1], "
        "or with that number as a constant"
    )


def fits(wanted: Sequence[int | None], found: Sequence[int]) -> bool:
    """Whether an array of sizes `found` can be given for `wanted`, where None is any size."""
    return len(wanted) == len(found) and all(own in (None, size) for own, size in zip(wanted, found, strict=True))


def named_nodes(message: str, contents: formats.Contents) -> str:
    """The message, with the nodes added that it means where it names none: those of a tensor that it mentions, or of an
    operator's kind that it mentions, which may be several."""
    words = set(re.findall(r"[\w./:]+", message)) | set(re.findall(r"'([^']+)'", message))
    operators = contents.operators
    if any(own.node in words for own in operators):
        return message
    tensors = [
        f"tensor '{name}' is {'an output' if name in own.gives else 'an input'} of node '{own.node}' ({own.kind})"
        for own in operators
        for name in (*own.gives, *own.takes)
        if name in words and (len(name) > 1 or f"'{name}'" in message)
    ]
    if tensors:
        return f"{message} ({'; '.join(tensors[:SHOWN_NODES])})"
    kinds: dict[str, list[str]] = {}
    for own in operators:
        if own.kind in words:
            kinds.setdefault(own.kind, []).append(f"'{own.node}'")
    told = [f"{kind} is {_one_of(nodes)}" for kind, nodes in kinds.items()]
    return f"{message} ({'; '.join(told[:SHOWN_NODES])})" if told else message


def _one_of(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - SHOWN_NODES} others" if len(nodes) > SHOWN_NODES else ""
    return f"node {nodes[0]}" if len(nodes) == 1 else f"one of the nodes {', '.join(nodes[:SHOWN_NODES])}{more}"


def _names(ports: Sequence[formats.Port]) -> str:
    return ", ".join(str(port) for port in ports)
