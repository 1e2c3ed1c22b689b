"""OpenVINO IR: an .xml with the operators and a .bin with the constants beside it
(https://docs.openvino.ai/2025/documentation/openvino-ir-format.html)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.parsers import expat

from edgeopt.errors import ModelError

from . import Contents, Operator, Port, latest

KIND = "OpenVINO model"

# Since which release: the newest operator set and the newest format (IR version).
# https://docs.openvino.ai/2024/documentation/openvino-ir-format/operation-sets/available-opsets.html
OPSETS = (
    *(((2020, 1), 1), ((2020, 2), 2), ((2020, 4), 3), ((2021, 1), 4), ((2021, 2), 5), ((2021, 3), 6), ((2021, 4), 7)),
    *(((2022, 1), 8), ((2022, 2), 9), ((2022, 3), 10), ((2023, 0), 11), ((2023, 1), 12), ((2023, 2), 13)),
    *(((2024, 0), 14), ((2024, 3), 15), ((2025, 0), 16)),
)
FORMATS = (((2020, 1), 10), ((2022, 1), 11))
OLDEST_FORMAT = 10
NEWEST_KNOWN = (2026, 4)
TYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "boolean": "bool"} | {
    f"{short}{bits}": f"{long}{bits}" for short, long in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)
}
TOP_LEVEL = ["net", "layers", "layer"]
# Operator sets of extension libraries, and of what a converter could not translate.
FOREIGN = {"extension", "custom_opset", "util"}


class Walk:
    """Collects what `read` wants while the file is parsed; nothing of it stays in memory."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.open: list[str] = []
        self.layer: dict[str, str] = {}
        self.operators: list[Operator] = []
        self.inputs: list[Port] = []
        self.bytes = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self.open:
            if name != "net" or not attributes.get("version", "").isdigit():
                raise ValueError(f"it begins with <{name}>, not with <net version=…>")
            self.version = int(attributes["version"])
        self.open.append(name)
        if name == "layer":
            self.layer = attributes
            kind = attributes.get("type", "")
            if kind not in ("Const", "Parameter", "Result"):
                self.operators.append(Operator(kind, attributes.get("name", ""), attributes.get("version", "")))
        elif name == "data":
            self._data(attributes)

    def _data(self, attributes: dict[str, str]) -> None:
        kind = self.layer.get("type")
        if kind == "Const":
            self.bytes = max(self.bytes, int(attributes.get("offset", 0)) + int(attributes.get("size", 0)))
        elif kind == "Parameter" and self.open[:-1] == TOP_LEVEL:
            sizes = [text.strip() for text in attributes.get("shape", "").split(",") if text.strip()]
            shape = tuple(int(size) if size.isdigit() else None for size in sizes)
            type_name = attributes.get("element_type", "").lower()
            self.inputs.append(Port(self.layer.get("name", ""), shape, TYPES.get(type_name, type_name)))

    def end(self, _name: str) -> None:
        self.open.pop()


def read(path: Path) -> Contents:
    """See the package's docstring. Raises ModelError for a .bin that is not there or too short."""
    walk = Walk()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = walk.start, walk.end
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise ValueError(f"XML: {error}") from error
    if not walk.operators or walk.version is None:
        raise ValueError("it has no operator")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{path}: its weights {weights.name} are not beside it; put them there")
    size = weights.stat().st_size
    if size < walk.bytes:
        raise ModelError(
            f"{path}: its constants end at byte {walk.bytes} of {weights.name}, which has {size}; get that file again"
        )
    return Contents("openvino", (path, weights), tuple(walk.inputs), tuple(walk.operators), {"ir": walk.version})


def problems(contents: Contents, package: dict[str, str], _options: Mapping[str, Any]) -> list[str]:
    """See the package's docstring."""
    found = []
    version, ir = package["version"], contents.versions["ir"]
    newest = latest(FORMATS, version, NEWEST_KNOWN)
    if newest is not None and not OLDEST_FORMAT <= ir <= newest:
        found.append(f"it has IR version {ir}, that release takes {OLDEST_FORMAT} to {newest}; convert the model again")
    limit = latest(OPSETS, version, NEWEST_KNOWN)
    for kind, domain in dict.fromkeys((operator.kind, operator.domain) for operator in contents.operators):
        node = next(own.node for own in contents.operators if (own.kind, own.domain) == (kind, domain))
        number = re.fullmatch(r"opset(\d+)", domain)
        if number and limit is not None and int(number[1]) > limit:
            found.append(
                f"operator '{kind}' (node '{node}') is of {domain}, that release has opset{limit} at most; install a "
                "newer openvino there"
            )
        elif domain in FOREIGN:
            found.append(
                f"operator '{kind}' (node '{node}') is of '{domain}', not of OpenVINO itself, and edgeopt loads no "
                "extension there; convert the model without it"
            )
    return found


def _refuse_doctype(*_: Any) -> None:
    raise ValueError("it declares a document type, which no model does")
