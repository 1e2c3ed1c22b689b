"""Reads TOML into strict pydantic models. Every problem of a file ends in one ConfigError that says how to mend it."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema
from pydantic_core import ErrorDetails as PydanticError

from edgeopt.errors import ConfigError
from edgeopt.toml_lines import line_numbers, line_of

M = TypeVar("M", bound=BaseModel)

UNITS = {"_s": "seconds", "_w": "watts", "_j": "joules", "_hz": "hertz", "_bytes": "bytes", "_ratio": "as a fraction"}
RANGES = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}
LENGTHS = {"min_length": "at least {} characters", "max_length": "at most {} characters", "pattern": "matching {}"}
PLAIN = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "absent"}


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file: the dotted key, its line where found, what was there, what may be, what to do."""

    key: str
    line: int | None
    found: str
    allowed: str
    mend: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.key or '(file)'}: found {self.found}; allowed: {self.allowed}; {self.mend}"


@dataclass(frozen=True)
class Conflict:
    """Keys of one section, each fine alone, that contradict one another; dotted from that section."""

    keys: tuple[str, ...]
    found: str
    allowed: str
    mend: str


class ConflictError(ValueError):
    """Carries conflicts through pydantic; never leaves this module."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        super().__init__("; ".join(conflict.found for conflict in conflicts))
        self.conflicts = tuple(conflicts)


@dataclass(frozen=True)
class Allowed:
    """Annotation that puts a rule (a pattern, say) into words: `Annotated[str, Field(pattern=…), Allowed("…")]`."""

    text: str


@dataclass(frozen=True)
class Choices:
    """Annotation that closes a text to a list known only at run time: `Annotated[str, Choices(names)]`."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if value not in self.names:
            raise ValueError("not one of the choices")
        return value


class Section(BaseModel):
    """Base of every table of a configuration file: unknown keys refused, no conversions, no changes afterwards.

    `inline` sections are written on one line (`{ value = 4, source = "…" }`) and explained as one key.
    Lists must be annotated `Annotated[tuple[X, ...], Field(strict=False)]`: TOML has arrays, Python has tuples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    inline: ClassVar[bool] = False

    def conflicts(self) -> Iterable[Conflict]:
        """Override to compare keys with one another; runs once every key of the section is valid by itself."""
        return ()

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        if conflicts := tuple(self.conflicts()):
            raise ConflictError(conflicts)
        return self


def load_toml(path: str | Path, schema: type[M]) -> M:
    """The file as an instance of `schema`. Raises ConfigError listing every problem of the file."""
    value, problems = check_toml(path, schema)
    if value is None:
        raise ConfigError(report(str(path), problems))
    return value


def parse_toml(text: str, schema: type[M], file: str) -> M:
    """As load_toml, for text that was read elsewhere; `file` is the name used in messages."""
    value, problems = check_text(text, schema)
    if value is None:
        raise ConfigError(report(file, problems))
    return value


def check_toml(path: str | Path, schema: type[M]) -> tuple[M | None, list[Problem]]:
    """(instance, []) or (None, problems): nothing is raised for whatever the file holds, or for its absence."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return None, [Problem("", None, f"byte {error.start} that is not UTF-8", "UTF-8", "save the file as UTF-8")]
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return None, [Problem("", None, reason.lower(), "a readable TOML file", _mend_path(path))]
    return check_text(text, schema)


def check_text(text: str, schema: type[M]) -> tuple[M | None, list[Problem]]:
    """As check_toml, for text that was read elsewhere."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        return None, [Problem("", None, "brackets nested too deeply", "TOML", "flatten the nested lists or tables")]
    except ValueError as error:
        line = re.search(r"at line (\d+)", str(error))
        found = f"a syntax error ({error})"
        mend = "text needs quotes, a key is given once, a list is closed by ]"
        return None, [Problem("", int(line[1]) if line else None, found, "TOML (https://toml.io)", mend)]
    return check_data(data, schema, line_numbers(text))


def check_data(
    data: Mapping[str, Any], schema: type[M], lines: Mapping[str, int] | None = None
) -> tuple[M | None, list[Problem]]:
    """As check_toml, for data that was parsed elsewhere; `lines` tells the line of each dotted key."""
    try:
        return schema.model_validate(data), []
    except ValidationError as error:
        return None, _problems(error, schema, lines or {})


def report(file: str, problems: Sequence[Problem]) -> str:
    """The text of the ConfigError: the file, then one line a problem."""
    head = f"{file}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return "\n  ".join([head, *map(str, problems)])


def nearest(word: str, words: Iterable[str]) -> str:
    """'did you mean …?' or an empty text."""
    close = difflib.get_close_matches(word.lower(), list(words), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _mend_path(path: str | Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        neighbours = [file.name for file in Path(path).parent.glob("*.toml") if file != Path(path)]
        return nearest(Path(path).name, neighbours) or "check the path and its permissions"
    return "check the path"


class _Place(NamedTuple):
    """Where an error's location leads in the schema: the dotted key, its type, and the table that holds it."""

    key: str
    name: str
    annotation: Any
    table: type[BaseModel] | None


def _problems(error: ValidationError, schema: type[BaseModel], lines: Mapping[str, int]) -> list[Problem]:
    found: dict[tuple[str, str], Problem] = {}
    for detail in error.errors(include_url=False):
        place = _locate(schema, detail["loc"])
        for problem in _translate(detail, place, lines):
            # A union reports each of its members; the reader needs the key once.
            found.setdefault((problem.key, problem.found), problem)
    return sorted(found.values(), key=lambda problem: (problem.line or 0, problem.key))


def _translate(detail: PydanticError, place: _Place, lines: Mapping[str, int]) -> Iterator[Problem]:
    line = line_of(place.key, lines)
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ConflictError):
        for conflict in cause.conflicts:
            keys = [f"{place.key}.{key}".lstrip(".") for key in conflict.keys]
            yield Problem(" and ".join(keys), line_of(keys[0], lines), conflict.found, conflict.allowed, conflict.mend)
    elif detail["type"] == "extra_forbidden":
        names = list(_fields(place.table)) if place.table else []
        mend = nearest(place.name, names) or "remove it or rename it"
        yield Problem(place.key, line, f"the unknown key {place.name}", ", ".join(names), mend)
    elif detail["type"] == "missing":
        yield Problem(place.key, line, "nothing", describe(place.annotation, place.name), f"add {place.key} = …")
    elif detail["type"] != "too_short" or len(detail["input"]) < detail["ctx"]["min_length"]:
        # A list with a wrong item is called too short as well, which would only confuse.
        value, allowed = detail["input"], describe(place.annotation, place.name)
        yield Problem(place.key, line, show(value), allowed, _mend(value, place))


def _mend(value: object, place: _Place) -> str:
    kind, _ = _unwrap(place.annotation)
    if isinstance(value, str) and kind in (int, float, bool):
        return "write it without quotes"
    if _is_table(kind) and getattr(kind, "inline", False):
        return f'write {place.name} = {{ value = {show(value)}, source = "…" }}'
    choices = choices_of(place.annotation)
    return (nearest(value, choices) if isinstance(value, str) else "") or "change it to what is allowed"


def _locate(schema: type[BaseModel], loc: Sequence[str | int]) -> _Place:
    place = _Place("", "", schema, None)
    for part in loc:
        kind, _ = _unwrap(place.annotation)
        if _is_table(kind):
            field = _fields(kind).get(str(part))
            key = f"{place.key}.{_quoted(str(part))}".lstrip(".")
            if field is None:
                return _Place(key, str(part), None, kind)
            # `value` of an inline table has the unit of the key that the table is given for.
            place = _Place(key, place.name if part == "value" else str(part), _annotation(field), kind)
        elif get_origin(kind) in (tuple, list) and isinstance(part, int):
            place = _Place(f"{place.key}[{part}]", place.name, get_args(kind)[0], None)
        elif get_origin(kind) is dict and len(get_args(kind)) == 2:
            place = _Place(f"{place.key}.{_quoted(str(part))}", str(part), get_args(kind)[1], None)
        else:
            break
    return place


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else json.dumps(key, ensure_ascii=False)


def show(value: object) -> str:
    """A value as the file's author would know it again, short."""
    if isinstance(value, dict):
        return "a table" if value else "an empty table"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # Python refuses to print whole numbers of more than 4300 digits
        return "a very long whole number"
    return text if len(text) <= 80 else f"{text[:77]}…"


def describe(annotation: Any, name: str = "") -> str:
    """What a key may hold: type, choices, range and the unit that its name carries."""
    kind, notes = _unwrap(annotation)
    for note in notes:
        if isinstance(note, Allowed):
            return note.text
    if choices := choices_of(annotation):
        return "one of " + ", ".join(choices)
    if _is_table(kind):
        if getattr(kind, "inline", False):
            return "{ " + ", ".join(_inline_keys(kind, name)) + " }"
        return "a table with the keys " + ", ".join(_fields(kind))
    if get_origin(kind) in (tuple, list):
        size = f" of at least {_bound(notes, 'min_length')}" if _bound(notes, "min_length") else ""
        return f"list{size}, each: {describe(get_args(kind)[0], name)}"
    if get_origin(kind) is dict:
        return f"table, each value: {describe(get_args(kind)[1])}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(describe(member, name) for member in get_args(kind))
    bounds = {words: _bound(notes, key) for key, words in (RANGES | LENGTHS).items()}
    words = [PLAIN.get(kind, getattr(kind, "__name__", str(kind)))]
    words += [word.format(bound) for word, bound in bounds.items() if bound is not None]
    unit = next((word for suffix, word in UNITS.items() if name.endswith(suffix)), "")
    return ", ".join(words) + (f", in {unit}" if unit and kind in (int, float) else "")


def _inline_keys(table: type[BaseModel], name: str) -> Iterator[str]:
    for key, field in _fields(table).items():
        optional = "" if field.is_required() else " (optional)"
        yield f"{key} = {describe(_annotation(field), name if key == 'value' else key)}{optional}"


def choices_of(annotation: Any) -> list[str]:
    """The closed list of a key (of a list's items too), or nothing."""
    kind, notes = _unwrap(annotation)
    for note in notes:
        if isinstance(note, Choices):
            return list(note.names)
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []


@dataclass(frozen=True)
class Key:
    """One key of a schema's documentation. `default` is None where the key is required."""

    key: str
    allowed: str
    default: str | None
    description: str


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key of a schema in the order of its fields; a table first itself, then its keys."""
    for name, field in _fields(schema).items():
        kind, _ = _unwrap(_annotation(field))
        many = get_origin(kind) in (tuple, list)
        table = _unwrap(get_args(kind)[0])[0] if many else kind
        nested = _is_table(table) and not getattr(table, "inline", False)
        key = f"{prefix}{name}[]" if many and nested else f"{prefix}{name}"
        allowed = ("list of tables" if many else "table") if nested else describe(_annotation(field), name)
        yield Key(key, allowed, _default(field), field.description or "")
        if nested:
            yield from keys(table, f"{key}.")


def explain(schema: type[BaseModel]) -> str:
    """The documentation of a file, key by key: what it may hold, its default, what it means."""
    return "\n".join(
        f"{key.key}   [{'required' if key.default is None else f'default: {key.default}'}]\n"
        f"    {key.allowed}" + (f"\n    {key.description}" if key.description else "")
        for key in keys(schema)
    )


def _fields(table: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in table.model_fields.items()}


def _annotation(field: FieldInfo) -> Any:
    """The field's type with its metadata put back, which pydantic keeps apart."""
    annotation: Any = field.annotation
    for note in field.metadata:
        annotation = Annotated[annotation, note]
    return annotation


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without `Annotated` and `| None`, and the metadata found on the way."""
    notes: list[Any] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            for note in more:
                notes.extend(note.metadata if isinstance(note, FieldInfo) else [note])
        elif get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation):
            members = [member for member in get_args(annotation) if member is not type(None)]
            annotation = Union[tuple(members)]  # noqa: UP007  (members are known at run time only)
        else:
            return annotation, notes


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _bound(notes: Iterable[Any], name: str) -> Any:
    return next((getattr(note, name) for note in notes if getattr(note, name, None) is not None), None)


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "as below"
    return "absent" if default is None else show(default)
