"""ONNX: a protobuf message ModelProto (schema: onnx/onnx.proto), and the files that hold its external data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import ModelError

from . import Contents, Operator, Port, latest, mapped

KIND = "ONNX model"

# The schema's field numbers.
MODEL_IR, MODEL_GRAPH, MODEL_OPSET, MODEL_FUNCTION = 1, 7, 8, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_SPARSE = 1, 5, 11, 15
TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 8, 13, 14
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
DEEPEST = 64  # graphs within graphs
NEGATIVE = 1 << 63  # what a size of -1 is read as
TYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool"},
    **{10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"},
}
# Since which release of ONNX Runtime: the newest opset of ai.onnx, and the newest format (IR version). Tried with
# the releases themselves from 1.15 on; before it, https://onnxruntime.ai/docs/reference/compatibility.html.
OPSETS = (
    *(
        ((1, 0), 11),
        ((1, 3), 12),
        ((1, 6), 13),
        ((1, 8), 14),
        ((1, 9), 15),
        ((1, 11), 16),
        ((1, 12), 17),
        ((1, 14), 18),
    ),
    *(((1, 15), 19), ((1, 17), 20), ((1, 18), 21), ((1, 21), 22), ((1, 23), 23), ((1, 24), 25), ((1, 25), 26)),
    ((1, 32), 28),
)
FORMATS = (
    ((1, 0), 6),
    ((1, 3), 7),
    ((1, 9), 8),
    ((1, 15), 9),
    ((1, 18), 10),
    ((1, 23), 11),
    ((1, 24), 13),
    ((1, 32), 14),
)
NEWEST_KNOWN = (1, 32)
# Whose operators ONNX Runtime has kernels for.
DOMAINS = {"", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft", "org.pytorch.aten"}
INTERNAL = ("com.microsoft.", "com.ms.")


class Message:
    """A protobuf message: bytes `start` to `stop` of the file. Fields are looked at one by one, never copied."""

    def __init__(self, data: Any, start: int, stop: int) -> None:
        self._data, self._start, self._stop = data, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def fields(self) -> Iterator[tuple[int, Any]]:
        """(field number, whole number or Message); numbers of fixed width are passed over."""
        at = self._start
        while at < self._stop:
            key, at = self._varint(at)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise ValueError(f"byte {at} begins no field")
            if wire == VARINT:
                value, at = self._varint(at)
                yield number, value
            elif wire == LENGTH:
                size, at = self._varint(at)
                self._require(at + size)
                yield number, Message(self._data, at, at + size)
                at += size
            elif wire in (EIGHT_BYTES, FOUR_BYTES):
                at += 8 if wire == EIGHT_BYTES else 4
                self._require(at)
            else:
                raise ValueError(f"byte {at} has a field of kind {wire}")

    @property
    def start(self) -> int:
        """Where it begins in the file."""
        return self._start

    def content(self) -> bytes:
        return bytes(self._data[self._start : self._stop])

    def numbers(self) -> Iterator[int]:
        """The integers that a packed field holds."""
        at = self._start
        while at < self._stop:
            value, at = self._varint(at)
            yield value

    def text(self) -> str:
        return self.content().decode("utf-8", "replace")

    def _require(self, stop: int) -> None:
        if stop > self._stop:
            raise ValueError(f"a field ends at byte {stop}, its holder at byte {self._stop}")

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            self._require(at + 1)
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError(f"byte {at} ends a number of more than 64 bits")


class Found:
    """What a walk through the model collects."""

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.inputs: list[Port] = []
        self.initialized: set[str] = set()
        self.external: dict[str, tuple[str, int]] = {}  # file: (a tensor in it, bytes that it must have at least)
        self.opsets: dict[str, int] = {}
        self.functions: set[str] = set()
        self.ir: int | None = None
        self.graphs = 0


def read(path: Path) -> Contents:
    """See the package's docstring. Raises ModelError for external data that is not there."""
    found = Found()
    with mapped(path) as data:
        for number, value in Message(data, 0, len(data)).fields():
            if number == MODEL_IR and isinstance(value, int):
                found.ir = value
            elif isinstance(value, Message):
                _part(found, number, value)
    if found.graphs == 0 or not found.operators:
        raise ValueError("it has no node")
    if found.ir is None:
        raise ValueError("it names no IR version")
    paths = (path, *(_beside(path, name, *needed) for name, needed in sorted(found.external.items())))
    inputs = tuple(port for port in found.inputs if port.name not in found.initialized)
    versions = {"ir": found.ir, "opsets": found.opsets, "functions": sorted(found.functions)}
    return Contents("onnxruntime", paths, inputs, tuple(found.operators), versions)


def problems(contents: Contents, package: dict[str, str], _options: Mapping[str, Any]) -> list[str]:
    """See the package's docstring."""
    found = []
    opset, ir = contents.versions["opsets"].get("", 0), contents.versions["ir"]
    version = package["version"]
    for what, own, table, mend in (
        ("opset", opset, OPSETS, f"opset_version={latest(OPSETS, version, NEWEST_KNOWN)}"),
        ("IR version", ir, FORMATS, f"ir_version={latest(FORMATS, version, NEWEST_KNOWN)}"),
    ):
        newest = latest(table, version, NEWEST_KNOWN)
        if newest is not None and own > newest:
            found.append(
                f"it has {what} {own}, that release takes {newest} at most; export it with {mend}, or install a newer "
                "onnxruntime there"
            )
    return found + foreign(contents)


def foreign(contents: Contents) -> list[str]:
    """Operators of libraries that no onnxruntime package holds, in words."""
    own = set(contents.versions["functions"])
    return [
        f"operator '{operator.kind}' of domain '{operator.domain}' (node '{operator.node}') is in no release of ONNX "
        "Runtime; replace it by operators of ONNX"
        for operator in contents.operators
        if operator.domain not in DOMAINS | own and not operator.domain.startswith(INTERNAL)
    ]


def _part(found: Found, number: int, value: Message) -> None:
    if number == MODEL_GRAPH:
        found.graphs += 1
        _graph(found, value, 0)
    elif number == MODEL_OPSET:
        told = dict(value.fields())
        version = told.get(2, 0)
        if isinstance(version, int):
            found.opsets[_text(told.get(1)).removeprefix("ai.onnx") or ""] = version
    elif number == MODEL_FUNCTION:
        for inner, part in value.fields():
            if inner == 10 and isinstance(part, Message):
                found.functions.add(part.text())
            elif inner == 7 and isinstance(part, Message):
                _node(found, part, 0)


def _graph(found: Found, graph: Message, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"its graphs lie more than {DEEPEST} deep in one another")
    for number, part in graph.fields():
        if not isinstance(part, Message):
            continue
        if number == GRAPH_NODE:
            _node(found, part, depth)
        elif number == GRAPH_INITIALIZER:
            name = _tensor(found, part)
            if depth == 0:
                found.initialized.add(name)
        elif number == GRAPH_SPARSE:
            for tensor in (inner for _, inner in part.fields() if isinstance(inner, Message)):
                _tensor(found, tensor)
        elif number == GRAPH_INPUT and depth == 0:
            found.inputs.append(_port(part))


def _node(found: Found, node: Message, depth: int) -> None:
    told: dict[int, str] = {}
    tensors: dict[int, list[str]] = {1: [], 2: []}  # inputs and outputs
    for number, part in node.fields():
        if not isinstance(part, Message):
            continue
        if number in tensors:
            tensors[number].append(part.text())
        elif number in (3, 4, 7):
            told[number] = part.text()
        elif number == 5:
            _attribute(found, part, depth)
    name = told.get(3) or (f"output {tensors[2][0]}" if tensors[2] else "without a name")
    domain = "" if told.get(7) == "ai.onnx" else told.get(7, "")
    takes, gives = (tuple(filter(None, tensors[number])) for number in (1, 2))
    found.operators.append(Operator(told.get(4, ""), name, domain, takes=takes, gives=gives))


def _attribute(found: Found, attribute: Message, depth: int) -> None:
    for number, part in attribute.fields():
        if isinstance(part, Message) and number in (5, 10):
            _tensor(found, part)
        elif isinstance(part, Message) and number in (6, 11):
            _graph(found, part, depth + 1)


def _tensor(found: Found, tensor: Message) -> str:
    """The tensor's name; where its data lies in another file, that is noted."""
    name, is_external = "", False
    where: dict[str, str] = {}
    for number, part in tensor.fields():
        if number == TENSOR_NAME and isinstance(part, Message):
            name = part.text()
        elif number == TENSOR_LOCATION:
            is_external = part == 1
        elif number == TENSOR_EXTERNAL and isinstance(part, Message):
            entry = dict(part.fields())
            where[_text(entry.get(1))] = _text(entry.get(2))
    if is_external:
        file = where.get("location", "")
        end = int(where.get("offset") or 0) + int(where.get("length") or 0)
        found.external[file] = max(found.external.get(file, (name, 0)), (name, end), key=lambda entry: entry[1])
    return name


def _beside(path: Path, name: str, tensor: str, least_bytes: int) -> Path:
    """A file of external data, checked to be there and long enough."""
    what = f"{path}: the data of its tensor '{tensor}'"
    if not name or Path(name).name != name or name in (".", ".."):
        raise ModelError(
            f"{what} is in '{name}', not in a file beside it; save its external data in one file beside it"
        )
    file = path.parent / name
    if not file.is_file():
        raise ModelError(f"{what} is in '{name}', which is not beside it; put that file there")
    size = file.stat().st_size
    if size < least_bytes:
        raise ModelError(f"{what} ends at byte {least_bytes} of '{name}', which has {size}; get that file again")
    return file


def _port(value: Message) -> Port:
    """Of a ValueInfoProto: name = 1, type = 2 { tensor_type = 1 { elem_type = 1, shape = 2 { dim = 1 } } }."""
    told = dict(value.fields())
    tensor = _inner(_inner(told.get(2), 1), None)
    shape: list[int | None] = []
    kind = 0
    for number, part in tensor:
        if number == 1 and isinstance(part, int):
            kind = part
        elif number == 2 and isinstance(part, Message):
            for size in (dim for _, dim in part.fields() if isinstance(dim, Message)):
                fixed = dict(size.fields()).get(1)
                shape.append(fixed if isinstance(fixed, int) and 0 < fixed < NEGATIVE else None)
    return Port(_text(told.get(1)), tuple(shape), TYPES.get(kind, f"type {kind}"))


def _inner(message: Any, number: int | None) -> Any:
    """The inner message of a field; with None, the fields themselves; nothing where there is none."""
    if not isinstance(message, Message):
        return []
    return list(message.fields()) if number is None else dict(message.fields()).get(number)


def _text(value: Any) -> str:
    return value.text() if isinstance(value, Message) else ""
