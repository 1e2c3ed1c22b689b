"""A run file's text from its values: each key with its comment, from the schema; what is optional commented out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from .. import config
from ..plan import npu_of
from ..profile import DeviceProfile
from ..runfile import RUNGS

HEAD = """\
# {name}: written by `edgeopt init`. A line that begins with #key is an optional key with its default, or an example.
# `edgeopt optimize --explain` tells every key; paths are relative to this file.
"""
WIDTH = 40  # where a comment begins, if the value leaves room
INLINE = ("splits.train", "splits.calibration", "splits.selection", "splits.final")
# Of an optional key without a default that means something: what it may look like.
EXAMPLES: dict[str, Any] = {
    "model.arguments": {"width": 1.0},
    "task.labels": "label",
    "splits.train": {"count": 2000},
    "task.groups": "subject",
    "task.classes": ["first", "second"],
    "device.root": "/var/lib/edgeopt",
    "device.python": "python3",
    "device.identity": "~/.ssh/id_ed25519",
    "device.known_hosts": "~/.ssh/known_hosts",
    "device.transport": "auto",
    "ladder.require_int8": 0.95,
    "ladder.allow_fallback": ["SOFTMAX"],
    "task.confidence_threshold": 0.6,
    "budget.latency_p50_s": 0.02,
    "budget.latency_p95_s": 0.04,
    "budget.size_bytes": 1_000_000,
    "budget.peak_memory_bytes": 50_000_000,
    "budget.energy_j": 0.05,
    "budget.power_w": 5.0,
    "energy.sensor": "hwmon:VDD_IN",
    "energy.window_s": 10.0,
}
# One of several that exclude one another: only the chosen one is shown.
EXCLUSIVE = {"splits": ("column",), "model": ("torch", "onnx"), "task": ("arrays", "object", "images", "audio", "text")}
INSTEAD = re.compile(r"^Instead of \w+: ")  # the other is not shown
UNTRAINABLE = "model.onnx"  # no arguments, no pruning


def text_of(
    values: Mapping[str, Any],
    preprocess: Mapping[str, Sequence[Mapping[str, Any]]],
    schema: type[BaseModel],
    board: DeviceProfile,
) -> str:
    """values: by dotted key ("task.inputs"); a split's or [task.prepare]'s is a table. preprocess: steps by input.

    A step's "note" says in a comment why it is there; "off": it is commented out. board: whose demands and runtime
    stand in the examples.
    """
    table = ""
    lines = [HEAD.format(name=values["name"])]
    for key in config.keys(schema):
        section, _, name = key.key.rpartition(".")
        if section in INLINE or _hidden(key.key, section, name, values):
            continue
        if key.allowed == "table" and key.key not in INLINE:
            lines += _after(table, preprocess, values)
            table = key.key
            lines.append(f"\n[{table}]".ljust(WIDTH + 1) + f"# {_comment(key.description)}")
            continue
        if key.key in ("task.preprocess", "task.prepare"):
            continue
        demand = getattr(board.budget, name, None) if section == "budget" else None
        lines.append(_line(key, name, values, demand, board))
    return "\n".join(lines) + "\n"


def _after(table: str, preprocess: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """The tables within [task]; in TOML they come after its keys."""
    return [*_prepare(values.get("task.prepare")), *_preprocess(preprocess, values)] if table == "task" else []


def _hidden(full: str, section: str, name: str, values: Mapping[str, Any]) -> bool:
    if name in EXCLUSIVE.get(section, ()) and full not in values:
        return True
    return UNTRAINABLE in values and (full in ("model.arguments", "prune", "splits.train") or section == "prune")


def _line(key: config.Key, name: str, values: Mapping[str, Any], demand: Any, board: DeviceProfile) -> str:
    if key.key in values:
        return _commented(f"{name} = {toml(values[key.key])}", key.description)
    if demand is not None:
        return _commented(f"#{name} = {toml(demand)}", f"{key.description} The profile's, as given.")
    default = EXAMPLES.get(key.key)
    if key.key == "ladder.runtime":
        default = board.runtimes[0]
    if key.key == "ladder.rungs":
        left = {"frequency"} | ({"prune"} if UNTRAINABLE in values else set())
        default = [rung for rung in RUNGS if rung not in (left if npu_of(board) else left | {"npu"})]
    shown = toml(default) if default is not None else key.default
    return _commented(f"#{name} = {shown}", key.description)


def _commented(text: str, description: str) -> str:
    return f"{text.ljust(WIDTH - 1)} # {_comment(description)}"


def _comment(description: str) -> str:
    plain = " ".join(INSTEAD.sub("", description, count=1).split())
    return plain[:1].upper() + plain[1:] if INSTEAD.match(description) else plain


def _prepare(given: Mapping[str, Any] | None) -> Iterator[str]:
    """[task.prepare], after the keys of [task]; the values that init chose, with what its kind says of each key."""
    if given is None:
        return
    kind = given["kind"]
    yield "\n[task.prepare]".ljust(WIDTH + 1) + "# From files to arrays, once, on this machine."
    for key in config.keys(kind):
        value = given["values"].get(key.key)
        shown = toml(value) if value is not None else given["examples"].get(key.key, key.default)
        yield _commented(f"{'' if value is not None else '#'}{key.key} = {shown}", key.description)


def _preprocess(steps: Mapping[str, Sequence[Mapping[str, Any]]], values: Mapping[str, Any]) -> Iterator[str]:
    for name in values["task.inputs"]:
        for step in steps.get(name, ()):
            off = "#" if step.get("off") else ""
            yield f"\n{off}[[task.preprocess.{_key(name)}]]".ljust(WIDTH + 1) + f"# {step['note']}"
            for key, value in step.items():
                if key not in ("note", "off"):
                    yield f"{off}{key} = {toml(value)}"


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else toml(name)


def toml(value: Any) -> str:
    """A value as TOML writes it: text, numbers, booleans, lists and inline tables of these."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):  # JSON's text, whose escapes TOML has too, but for DEL, which JSON leaves bare
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)
