"""What a model file holds, read without any framework: operators, versions, inputs, and whether every byte is there.

One file per runtime, its name is the runtime's name. A format is a module of this package that has

    KIND                            what its files are called
    read(path) -> Contents          raises ValueError for bytes that are not such a whole file
    problems(contents, package, options)    what the board's {"package", "version"}, with those options of the artifact,
                                    cannot take, in words with the mend

Files come from anywhere: nothing in them is trusted, no length is followed past the file's end, and the time that
reading takes is bounded by the file's size.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import ConfigError, ModelError

RUNTIME_OF = {".tflite": "tflite", ".xml": "openvino", ".onnx": "onnxruntime"}
SHOWN = 5
QUANTIZED = re.compile(
    r"QLinear\w+|QAttention|QGemm|QMoE|QOrdered\w+|\w*[Qq]uantizeLinear|DynamicQuantize\w+|\w+Integer\w*|MatMulNBits"
)


class Operator(NamedTuple):
    """domain: the namespace, operator set or library that it belongs to; empty for the format's own.

    takes, gives: the names of the tensors that go in and come out, where the format has such.
    """

    kind: str
    node: str
    domain: str = ""
    version: int | None = None
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Port:
    """shape: None for a size that is free. dtype: numpy's name, or the format's where numpy has none."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Fed:
    """What a conversion of ours made an input of: the source's own, by its name, after preprocess steps."""

    name: str
    steps: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Contents:
    """paths: the model's file, then those that it needs beside it. versions: what its format says of itself.

    fed: per input, what it was in the source, where the file says so.
    """

    runtime: str
    paths: tuple[Path, ...]
    inputs: tuple[Port, ...]
    operators: tuple[Operator, ...]
    versions: dict[str, Any] = field(default_factory=dict)
    fed: tuple[Fed, ...] = ()

    @property
    def path(self) -> Path:
        return self.paths[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs: the source's, where they are known."""
        return tuple(own.name for own in self.fed) or tuple(port.name for port in self.inputs)

    def int8_nodes(self) -> list[Operator]:
        """Operators that round, widen or compute whole numbers: those of a model that is quantized already."""
        return [operator for operator in self.operators if QUANTIZED.fullmatch(operator.kind)]


def read(path: Path, runtime: str | None = None) -> Contents:
    """What is in a model file; `runtime` says of which kind it is, else its suffix does.

    Raises ConfigError (no such file, no such format), ModelError naming the file that is damaged or missing.
    """
    if runtime is None and path.suffix not in RUNTIME_OF:
        raise ConfigError(f"{path}: not a model; a model file ends in {', '.join(RUNTIME_OF)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    module = _format(runtime or RUNTIME_OF[path.suffix])
    try:
        found: Contents = module.read(path)
    except (ValueError, struct.error, IndexError, OverflowError, RecursionError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole {module.KIND} ({error}); it was cut short, or is another kind of file: get it again"
        ) from error
    return found


def check(
    contents: Contents, runtimes: Mapping[str, Any], where: str, options: Mapping[str, Any] | None = None
) -> None:
    """Raises ModelError for what the runtime there cannot take; `runtimes` as the agent's facts tell them. options: the
    runtime's own settings that the artifact is loaded with.

    A runtime that is missing, or newer than what is known of it here, is not judged.
    """
    package = runtimes.get(contents.runtime)
    if package is None:
        return
    found = _format(contents.runtime).problems(contents, package, options or {})
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ModelError(
            f"{contents.path}: {package['package']} {package['version']} at {where} cannot take it: "
            + "; ".join(found[:SHOWN])
            + more
        )


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file's bytes, of which only those that are looked at are read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def release(version: str) -> tuple[int, int]:
    """Major and minor number."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else 0


def latest(table: Sequence[tuple[tuple[int, int], int]], version: str, known: tuple[int, int]) -> int | None:
    """What the newest row not above `version` says; rows: (release since which, value), ascending.

    known: the newest release that the table knows of. None where nothing is known of that version.
    """
    own = release(version)
    return None if own > known else next((value for since, value in reversed(table) if since <= own), None)


def _format(runtime: str) -> Any:
    return importlib.import_module(f"{__name__}.{runtime}")
