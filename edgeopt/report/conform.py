"""A JSON document against a JSON Schema: the keywords that the schemas here use, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "number": (int, float),
    "integer": (int,),
    "null": (type(None),),
}
MOST_NUMBER = 1e18
MOST_DEPTH = 40
KNOWN = {
    *("$schema", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties"),
    *("items", "enum", "const", "anyOf", "pattern", "minItems", "maxItems"),
}


class Rules(NamedTuple):
    """whole: required keys are there; described: no others are."""

    whole: bool
    described: bool


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "run") -> Iterator[str]:
    """What is wrong in a document that is written: also every key of an object with `properties` that the schema does
    not describe."""
    yield from _problems(value, schema, root, at, Rules(whole=True, described=True))


def first(value: Any, schema: dict[str, Any], at: str, whole: bool = False) -> str | None:
    """What is wrong with a document that is read, in words; None where nothing is.

    Other keys may be there, and unless it must be `whole`, keys be absent: another version wrote it. Numbers and depth
    are bounded, so that no arithmetic on them overflows.
    """
    return next(_beyond(value, at, MOST_DEPTH), None) or next(
        _problems(value, schema, schema, at, Rules(whole, described=False)), None
    )


def _beyond(value: Any, at: str, depth: int) -> Iterator[str]:
    if isinstance(value, int | float) and abs(value) > MOST_NUMBER:
        yield f"{at}: more than {MOST_NUMBER:g}"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if depth == 0 and inner:
        yield f"{at}: nested more than {MOST_DEPTH} deep"
        return
    for key, item in inner:
        if isinstance(item, dict | list | int | float):
            yield from _beyond(item, f"{at}.{key!s:.60}", depth - 1)


def _problems(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str, rules: Rules) -> Iterator[str]:
    assert set(schema) <= KNOWN, f"{at}: {set(schema) - KNOWN} is not checked here"
    if "$ref" in schema:
        yield from _problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at, rules)
    if "anyOf" in schema:
        branches = [list(_problems(value, branch, root, at, rules)) for branch in schema["anyOf"]]
        if all(branches):
            yield from min(branches, key=len)
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r:.60} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r:.60} is none of {schema['enum']}"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{at}: {json.dumps(value)[:60]} is no {_named(schema['type'])}"
        return
    if isinstance(value, dict):
        yield from _of_object(value, schema, root, at, rules)
    if isinstance(value, list):
        low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not low <= len(value) <= high:
            yield f"{at}: {len(value)} items, not {low} to {high}"
        for number, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), root, f"{at}[{number}]", rules)
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at}: {value!r:.60} does not match {schema['pattern']}"


def _of_object(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str, rules: Rules
) -> Iterator[str]:
    described = schema.get("properties")
    for key in schema.get("required", ()):
        if rules.whole and key not in value:
            yield f"{at}: {key} is absent"
    for key, item in value.items():
        if described is not None and key in described:
            yield from _problems(item, described[key], root, f"{at}.{key:.60}", rules)
        elif "additionalProperties" in schema:
            yield from _problems(item, schema["additionalProperties"], root, f"{at}.{key:.60}", rules)
        elif described is not None and rules.described:
            yield f"{at}.{key} is not described"


def _named(kinds: str | list[str]) -> str:
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _is(value: Any, kinds: str | list[str]) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    return any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names)
