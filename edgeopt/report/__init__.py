"""What people see: the page, the terminal's screens, and the schemas of what is written and printed as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

SCHEMA_VERSION = 1  # of run.json: one more where a key goes, or means something else; new keys may come without it
RUN = "run"
KINDS = (RUN, "bench", "compare", "load", "power", "validate")


def schema(kind: str = RUN) -> dict[str, Any]:
    """The JSON Schema of run.json, or of the document of another of KINDS: what its --json prints and --keep keeps."""
    run = _read("run.schema.json")
    if kind == RUN:
        return run
    told = _read("documents.schema.json")
    own = told["kinds"][kind]
    of_kind = {"const": kind, "description": "The command that measured it."}
    properties = {**told["head"], "kind": of_kind, **own["properties"]}
    found = {
        "$schema": run["$schema"],
        "title": f"What `edgeopt {kind} --json` prints",
        "description": f"{own['description']} SI units in the keys' names; null is not measured, never 0.",
        "type": "object",
        "properties": properties,
        "required": [key for key in properties if key not in own["optional"]],
    }
    return {**found, "$defs": _needed(found, {**run["$defs"], **told["$defs"]})}


def _needed(schema: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """Those of `parts` that a schema refers to, and those to which they refer in turn."""
    found: dict[str, Any] = {}
    left = [schema]
    while left:
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(left.pop())):
            if name not in found:
                found[name] = parts[name]
                left.append(parts[name])
    return found


def _read(name: str) -> dict[str, Any]:
    from importlib import resources

    found: dict[str, Any] = json.loads((resources.files(__name__) / name).read_text(encoding="utf-8"))
    return found
