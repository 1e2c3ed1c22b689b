"""A JSON document against a JSON Schema: the keywords that run.schema.json uses, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "number": (int, float),
    "integer": (int,),
    "null": (type(None),),
}
KNOWN = {
    *("$schema", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties"),
    *("items", "enum", "const", "anyOf", "pattern", "minItems", "maxItems"),
}


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "run") -> Iterator[str]:
    """What is wrong, and every key of an object with `properties` that the schema does not describe."""
    assert set(schema) <= KNOWN, f"{at}: {set(schema) - KNOWN} is not checked here"
    if "$ref" in schema:
        yield from problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "anyOf" in schema:
        branches = [list(problems(value, branch, root, at)) for branch in schema["anyOf"]]
        if all(branches):
            yield from min(branches, key=len)
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{at}: {json.dumps(value)[:60]} is no {schema['type']}"
        return
    if isinstance(value, dict):
        yield from _of_object(value, schema, root, at)
    if isinstance(value, list):
        low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not low <= len(value) <= high:
            yield f"{at}: {len(value)} items, not {low} to {high}"
        for number, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), root, f"{at}[{number}]")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at}: {value!r} does not match {schema['pattern']}"


def _of_object(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str) -> Iterator[str]:
    described = schema.get("properties")
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{at}: {key} is absent"
    for key, item in value.items():
        if described is not None and key in described:
            yield from problems(item, described[key], root, f"{at}.{key}")
        elif "additionalProperties" in schema:
            yield from problems(item, schema["additionalProperties"], root, f"{at}.{key}")
        elif described is not None:
            yield f"{at}.{key} is not described"


def _is(value: Any, kinds: str | list[str]) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    return any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names)
